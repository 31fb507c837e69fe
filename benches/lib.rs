//! Drawn images, shared by the benchmarks.

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

/// A drawn image of some detail, encoded as JPEG.
///
/// # Panics
/// When the encoder fails, which it does not in memory.
pub fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let wave = (f64::from(x) / 9.0).sin() * 60.0 + (f64::from(y) / 7.0).cos() * 60.0 + 127.0;
        Rgb([wave as u8, (x * 3 + y) as u8, (x ^ y) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    let written = DynamicImage::from(picture).write_to(&mut bytes, ImageFormat::Jpeg);
    written.expect("memory takes any JPEG");
    bytes.into_inner()
}
