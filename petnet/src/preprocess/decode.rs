//! Decoding of untrusted bytes. The memory for an image's pixels is computed from its header, and all limits are checked,
//! before a pixel is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::jpeg::JpegMarkers;
use super::{Limits, Pixels, REDUCED_JPEG_PIXEL_FACTOR, exif, format, webp};
use crate::error::ImageError;

/// Largest size in bytes of a PNG's expanded metadata: profiles, texts, and the rows that the reader keeps.
const PNG_METADATA: u64 = 1 << 20;
/// Largest number of scans of an image with [`Limits::max_pixels`]; smaller images may have more. Encoders write about ten.
const SCANS_AT_MAX_PIXELS: u64 = 16;
/// Memory in bytes per byte of lossless WebP: eleven bytes can define tables of prefix codes of 4096 bytes, which is 372 per
/// byte, rounded up to a power of two.
const WEBP_TABLES: u64 = 512;
/// Largest size in bytes of the coefficients by which a JPEG's entropy decoder is ahead of its inverse DCT.
const JPEG_QUEUE: u64 = 8 << 20;
/// Size in bytes of rows, tables and other small buffers of a decoder.
const SMALL_BUFFERS: u64 = 1 << 20;

/// An image, perhaps decoded at a reduced size, and its own width and height.
pub(super) type SizedPixels = (Pixels, (u32, u32));

/// The method by which an image will be decoded, and the memory for it, from its header.
pub(super) struct DecodePlan<'a> {
    bytes: &'a [u8],
    method: DecodeMethod<'a>,
    /// Width and height in pixels, as stored.
    size: (u32, u32),
    /// Width and height in pixels as it will be decoded.
    pub(super) decoded: (u32, u32),
    /// The rotation and mirroring that make the image upright.
    orientation: Orientation,
    /// Upper bound of the memory in bytes that decoding takes, with the result.
    pub(super) memory: u64,
}

enum DecodeMethod<'a> {
    /// Any format but JPEG.
    Other(Box<dyn ImageDecoder + 'a>),
    Jpeg,
    /// JPEG at an eighth or a quarter of its size, by a smaller inverse DCT.
    ReducedJpeg,
}

impl<'a> DecodePlan<'a> {
    /// Reads the header. Where a `side` is given, a JPEG may be decoded at a reduced size of at least twice `side` pixels on
    /// both sides.
    pub(super) fn new(
        bytes: &'a [u8],
        limits: &Limits,
        side: Option<u32>,
    ) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        if bytes.len() as u64 > limits.max_bytes {
            return Err(ImageError::TooLarge {
                bytes: bytes.len() as u64,
                limit: limits.max_bytes,
            });
        }
        let plan = match format::format(bytes)? {
            ImageFormat::Jpeg => Self::jpeg(bytes, limits, side)?,
            other => Self::other(bytes, other, limits)?,
        };
        if plan.memory > limits.max_alloc {
            return Err(ImageError::TooMuchMemory);
        }
        Ok(plan)
    }

    /// The plan of a JPEG, from its markers alone: making a decoder takes as long as decoding a small image.
    fn jpeg(bytes: &'a [u8], limits: &Limits, side: Option<u32>) -> Result<Self, ImageError> {
        let markers = JpegMarkers::read(bytes);
        // Decoders fill missing pixels with grey and report no error.
        let length = markers.length.ok_or_else(|| broken("the JPEG data ends too early"))?;
        if markers.arithmetic {
            return Err(ImageError::Unsupported("JPEG with arithmetic coding".into()));
        }
        let (bytes, size, orientation) = (&bytes[..length], markers.size, markers.orientation);
        validate_scans(&markers, limits)?;
        let pixels = u64::from(size.0) * u64::from(size.1);
        let rgb_bytes = pixels * 3;
        let rotated = u64::from(swaps_sides(orientation));
        let shorter = size.0.min(size.1);
        let keeps_twice_the_side = |factor: &u32| {
            let side = side.map(|side| side.saturating_mul(2));
            side.is_some_and(|side| shorter / factor >= side) && matches!(markers.components, 1 | 3)
        };
        let factor = [8, 4].into_iter().find(keeps_twice_the_side);
        let pixel_limit_factor = if factor.is_some() { REDUCED_JPEG_PIXEL_FACTOR } else { 1 };
        validate_size(size, limits.max_side, limits.max_pixels.saturating_mul(pixel_limit_factor))?;
        let Some(factor) = factor else {
            // The decoder copies the file. A grey image is copied to RGB, and a rotation needs the image twice.
            let decoding = rgb_bytes + markers.kept_coefficients() + 2 * length as u64;
            let grey = if markers.components == 1 { pixels } else { 0 };
            let converting = rgb_bytes + grey.max(rotated * rgb_bytes);
            let memory = decoding.max(converting) + SMALL_BUFFERS;
            let method = DecodeMethod::Jpeg;
            return Ok(Self { bytes, method, size, decoded: size, orientation, memory });
        };
        // Memory for the planes of the components, and for the pixels that are put together from them. The decoder passes
        // coefficients to its own threads through an unbounded queue: all of them at once where they were kept, otherwise
        // as many as are read while such a thread waits for a core.
        let decoded = (size.0.div_ceil(factor), size.1.div_ceil(factor));
        let reduced = u64::from(decoded.0) * u64::from(decoded.1) * 3;
        let queued = markers.kept_coefficients().max(markers.coefficients.min(JPEG_QUEUE));
        let memory = markers.kept_coefficients() + queued + (2 + rotated) * reduced + SMALL_BUFFERS;
        Ok(Self { bytes, method: DecodeMethod::ReducedJpeg, size, decoded, orientation, memory })
    }

    /// The plan of any format but JPEG.
    fn other(bytes: &'a [u8], format: ImageFormat, limits: &Limits) -> Result<Self, ImageError> {
        let mut bounds = image::Limits::no_limits();
        let mut decoder: Box<dyn ImageDecoder + 'a> = if format == ImageFormat::Png {
            // Making the decoder already expands metadata and allocates a row: the size is read from the header here.
            let side = |at: usize| bytes.get(at..).and_then(|side| side.first_chunk());
            if let (Some(width), Some(height)) = (side(16), side(20)) {
                let size = (u32::from_be_bytes(*width), u32::from_be_bytes(*height));
                validate_size(size, limits.max_side, limits.max_pixels)?;
            }
            bounds.max_alloc = Some(PNG_METADATA);
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), bounds.clone());
            Box::new(decoder.map_err(from_image)?)
        } else {
            let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
            reader.no_limits();
            Box::new(reader.into_decoder().map_err(from_image)?)
        };
        let size = decoder.dimensions();
        validate_size(size, limits.max_side, limits.max_pixels)?;
        let exif = decoder.exif_metadata().ok().flatten();
        let orientation = exif.and_then(|exif| exif::orientation(&exif));
        let orientation = orientation.unwrap_or(Orientation::NoTransforms);
        // A rotation needs the image twice.
        let pixels = u64::from(size.0) * u64::from(size.1);
        let rotation = if swaps_sides(orientation) { 2 * pixels * 3 } else { 0 };
        let memory = memory(&*decoder, format, bytes)?.max(rotation) + SMALL_BUFFERS;
        bounds.max_alloc = Some(limits.max_alloc);
        decoder.set_limits(bounds).map_err(from_image)?;
        let method = DecodeMethod::Other(decoder);
        Ok(Self { bytes, method, size, decoded: size, orientation, memory })
    }

    /// Decodes the pixels, makes the image upright, and blends transparent pixels over white.
    pub(super) fn run(self, limits: &Limits) -> Result<SizedPixels, ImageError> {
        let Self { bytes, method, size, decoded, orientation, .. } = self;
        let original_size = if swaps_sides(orientation) { (size.1, size.0) } else { size };
        let image = match method {
            DecodeMethod::Other(decoder) => {
                let image = DynamicImage::from_decoder(decoder).map_err(from_image)?;
                if bytes.starts_with(b"BM") { opaque_if_blank(image) } else { image }
            }
            DecodeMethod::Jpeg => whole_jpeg(bytes, size, limits)?,
            DecodeMethod::ReducedJpeg => match reduced_jpeg(bytes, size, decoded) {
                Some(image) => image,
                // The other decoder supports some files that this one does not.
                None => return Self::new(bytes, limits, None)?.run(limits),
            },
        };
        Ok((upright(image, orientation), original_size))
    }
}

fn whole_jpeg(bytes: &[u8], size: (u32, u32), limits: &Limits) -> Result<DynamicImage, ImageError> {
    let mut decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(from_image)?;
    if decoder.dimensions() != size {
        return Err(broken("frames of several sizes"));
    }
    let mut bounds = image::Limits::no_limits();
    bounds.max_alloc = Some(limits.max_alloc);
    decoder.set_limits(bounds).map_err(from_image)?;
    DynamicImage::from_decoder(decoder).map_err(from_image)
}

/// Decodes at a reduced size; `None` for a JPEG that this decoder does not support.
fn reduced_jpeg(bytes: &[u8], size: (u32, u32), decoded: (u32, u32)) -> Option<DynamicImage> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().ok()?;
    let info = decoder.info()?;
    if (u32::from(info.width), u32::from(info.height)) != size {
        return None;
    }
    let (width, height) = decoder.scale(decoded.0 as u16, decoded.1 as u16).ok()?;
    if u32::from(width) > decoded.0 || u32::from(height) > decoded.1 {
        return None;
    }
    let data = decoder.decode().ok()?;
    let (width, height) = (width.into(), height.into());
    match info.pixel_format {
        jpeg_decoder::PixelFormat::RGB24 => {
            image::RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8)
        }
        jpeg_decoder::PixelFormat::L8 => {
            image::GrayImage::from_raw(width, height, data).map(DynamicImage::ImageLuma8)
        }
        jpeg_decoder::PixelFormat::L16 | jpeg_decoder::PixelFormat::CMYK32 => None,
    }
}

/// True for an orientation that exchanges width and height.
fn swaps_sides(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// Upper bound of the memory in bytes that decoding the whole image to RGB takes.
fn memory(
    decoder: &dyn ImageDecoder,
    format: ImageFormat,
    bytes: &[u8],
) -> Result<u64, ImageError> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let color = decoder.color_type();
    let stored = pixels * u64::from(color.bytes_per_pixel());
    let converted = match color {
        ColorType::Rgb8 | ColorType::Rgba8 => 0,
        color if color.has_alpha() => pixels * 4,
        _ => pixels * 3,
    };
    let decoding = match format {
        // A frame of another size than the canvas is kept in addition to it, with its colour indices.
        ImageFormat::Gif => pixels * 5,
        ImageFormat::WebP => {
            let (largest, lossless) = webp::frames(bytes);
            if largest > pixels {
                return Err(broken("a frame is larger than the canvas"));
            }
            // A canvas and a frame, each of four bytes per pixel at most; the planes of a lossy frame take less.
            pixels * 8 + lossless * WEBP_TABLES
        }
        // Metadata is expanded into a growing buffer, which is copied when it is full.
        ImageFormat::Png => 2 * PNG_METADATA,
        _ => 0,
    };
    Ok(stored + converted.max(decoding))
}

fn validate_size(
    (width, height): (u32, u32),
    max_side: u32,
    max_pixels: u64,
) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(broken("a side of zero pixels"));
    }
    if width.max(height) > max_side {
        return Err(ImageError::TooLong { width, height, limit: max_side });
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: max_pixels });
    }
    Ok(())
}

/// Limits the number of scans: decoding a scan takes time for all pixels of the image, even if the scan is empty.
fn validate_scans(markers: &JpegMarkers, limits: &Limits) -> Result<(), ImageError> {
    let pixels = u64::from(markers.size.0) * u64::from(markers.size.1);
    let most = limits.max_pixels.saturating_mul(SCANS_AT_MAX_PIXELS) / pixels.max(1);
    let limit = most.min(limits.max_scans);
    if markers.scans > limit {
        return Err(ImageError::TooManyScans { scans: markers.scans, limit });
    }
    Ok(())
}

fn upright(image: DynamicImage, orientation: Orientation) -> Pixels {
    let rgb =
        if image.color().has_alpha() { over_white(image.into_rgba8()) } else { image.into_rgb8() };
    let mut image = DynamicImage::ImageRgb8(rgb);
    image.apply_orientation(orientation);
    let rgb = image.into_rgb8();
    Pixels { width: rgb.width(), height: rgb.height(), data: rgb.into_raw() }
}

/// Sets alpha to opaque where it is zero for all pixels: programs without transparency write BMP files so.
fn opaque_if_blank(image: DynamicImage) -> DynamicImage {
    match image {
        DynamicImage::ImageRgba8(mut rgba) if rgba.pixels().all(|pixel| pixel[3] == 0) => {
            rgba.pixels_mut().for_each(|pixel| pixel[3] = 255);
            DynamicImage::ImageRgba8(rgba)
        }
        other => other,
    }
}

/// Blends over white in place: of four bytes per pixel three are kept.
fn over_white(rgba: image::RgbaImage) -> image::RgbImage {
    let (width, height) = rgba.dimensions();
    let mut data = rgba.into_raw();
    let pixels = data.len() / 4;
    for pixel in 0..pixels {
        let alpha = u32::from(data[pixel * 4 + 3]);
        for channel in 0..3 {
            let color = u32::from(data[pixel * 4 + channel]);
            data[pixel * 3 + channel] = ((color * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
    }
    data.truncate(pixels * 3);
    image::RgbImage::from_raw(width, height, data).unwrap_or_default()
}

/// Runs a decoder and converts its panic to an error.
pub(super) fn catch_panics<T>(
    work: impl FnOnce() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ImageError::DecoderPanicked))
}

fn broken(reason: &str) -> ImageError {
    ImageError::Broken(reason.into())
}

fn from_image(error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Limits(_) => ImageError::TooMuchMemory,
        image::ImageError::Unsupported(e) => ImageError::Unsupported(e.to_string()),
        other => ImageError::Broken(other.to_string()),
    }
}
