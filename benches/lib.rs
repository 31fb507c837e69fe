//! What the benchmarks share: drawn pictures, and `simple_cnn` with random weights.

use burn::tensor::{Device, Tensor, TensorData};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use petnet::model::{Architecture, Network, Normalization, SimpleCnnConfig};

/// Side of the input at which petnet is compared with its peers, in pixels.
pub const SIDE: usize = 128;

/// A drawn picture of some detail, encoded as JPEG.
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

/// `simple_cnn` of the default widths for two classes.
pub fn network(device: &Device) -> Network {
    let config = SimpleCnnConfig::default();
    Architecture::SimpleCnn(config).build(2, Normalization::default(), device)
}

/// `[n, 3, side, side]` of 0 to 255.
pub fn images(count: usize, side: usize, device: &Device) -> Tensor<4> {
    let values = (0..count * 3 * side * side).map(|i| (i * 7 % 256) as f32).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [count, 3, side, side]), device)
}
