//! Images as files and text: PNG, JPEG thumbnails, data URLs.

use anyhow::Result;
use serde::Serializer;

/// Encodes RGB bytes as a PNG file.
pub(crate) fn png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    use image::ImageEncoder as _;
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(
        pixels,
        width,
        height,
        image::ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

/// Serializes a JPEG file as a data URL.
pub(crate) fn data_url<S: Serializer>(jpeg: &[u8], to: S) -> Result<S::Ok, S::Error> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(jpeg);
    to.serialize_str(&format!("data:image/jpeg;base64,{encoded}"))
}

/// Encodes an image file as a JPEG of at most 160 x 160 pixels, the aspect ratio kept.
pub(crate) fn thumbnail(bytes: &[u8]) -> Result<Vec<u8>> {
    let limits = petnet::preprocess::Limits::default();
    let pixels = petnet::preprocess::decode_at_least(bytes, &limits, 160)?;
    let small = image::RgbImage::from_raw(pixels.width(), pixels.height(), pixels.into_data())
        .map(image::DynamicImage::ImageRgb8)
        .unwrap_or_default()
        .thumbnail(160, 160);
    let mut jpeg = std::io::Cursor::new(Vec::new());
    small.write_to(&mut jpeg, image::ImageFormat::Jpeg)?;
    Ok(jpeg.into_inner())
}
