//! Decoding of untrusted bytes. An image's header says what its pixels will take; all limits are checked against that
//! before a pixel is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::jpeg::Outline;
use super::{Limits, Pixels, REDUCED, exif, format, webp};
use crate::error::ImageError;

/// Most bytes that a PNG's metadata may expand to: profiles, texts, and the rows that the reader keeps.
const PNG_METADATA: u64 = 1 << 20;
/// Images of [`Limits::max_pixels`] may have so many scans; encoders write about ten. Smaller ones may have more.
const SCANS_OF_LARGEST: u64 = 16;
/// Memory that one byte of lossless WebP can ask for: tables of prefix codes, 4096 bytes for eleven.
const WEBP_TABLES: u64 = 512;
/// Coefficients, in bytes, that a JPEG's entropy decoder is ahead of its inverse DCT at most.
const JPEG_QUEUE: u64 = 8 << 20;
/// Rows, tables and other small buffers of a decoder.
const SMALL: u64 = 1 << 20;

/// An image, perhaps at a reduced size, and the width and height that it has.
pub(super) type Measured = (Pixels, (u32, u32));

/// The way in which an image will be decoded; no pixel of it has been.
pub(super) struct Plan<'a> {
    bytes: &'a [u8],
    way: Way<'a>,
    /// Width and height in pixels, as stored.
    size: (u32, u32),
    /// Width and height in pixels that will be decoded.
    pub(super) decoded: (u32, u32),
    /// Turns and flips that make the image upright.
    orientation: Orientation,
    /// Most bytes that decoding takes at a time, those of the result among them.
    pub(super) memory: u64,
}

enum Way<'a> {
    /// Any format but JPEG.
    Other(Box<dyn ImageDecoder + 'a>),
    Jpeg,
    /// A JPEG at an eighth or a quarter of its size, by a smaller inverse DCT.
    ReducedJpeg,
}

impl<'a> Plan<'a> {
    /// Reads the header. Reduced images keep at least twice `side` pixels on both sides, where one is given.
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

    /// Reads the markers alone: a decoder's tables take as long as decoding a small image.
    fn jpeg(bytes: &'a [u8], limits: &Limits, side: Option<u32>) -> Result<Self, ImageError> {
        let outline = Outline::of(bytes);
        // Decoders fill what is missing with grey and say nothing.
        let length = outline.length.ok_or_else(|| broken("the JPEG data ends too early"))?;
        if outline.arithmetic {
            return Err(ImageError::Unsupported("JPEG with arithmetic coding".into()));
        }
        let (bytes, size, orientation) = (&bytes[..length], outline.size, outline.orientation);
        check_scans(&outline, limits)?;
        let pixels = u64::from(size.0) * u64::from(size.1) * 3;
        let turned = u64::from(is_turned(orientation));
        let shorter = size.0.min(size.1);
        let enough = |factor: &u32| {
            let side = side.map(|side| side.saturating_mul(2));
            side.is_some_and(|side| shorter / factor >= side) && matches!(outline.components, 1 | 3)
        };
        let factor = [8, 4].into_iter().find(enough);
        let times = if factor.is_some() { REDUCED } else { 1 };
        check_size(size, limits.max_side, limits.max_pixels.saturating_mul(times))?;
        let Some(factor) = factor else {
            // The decoder copies the file. A turn needs the image twice.
            let decoding = pixels + outline.kept() + 2 * length as u64;
            let memory = decoding.max((1 + turned) * pixels) + SMALL;
            return Ok(Self { bytes, way: Way::Jpeg, size, decoded: size, orientation, memory });
        };
        // Planes of the components, and the pixels that are put together from them. The decoder hands coefficients to
        // threads of its own through a queue without a limit: all of them at once where they were kept, else as many as
        // are read while such a thread waits for a core.
        let decoded = (size.0.div_ceil(factor), size.1.div_ceil(factor));
        let reduced = u64::from(decoded.0) * u64::from(decoded.1) * 3;
        let queued = outline.kept().max(outline.coefficients.min(JPEG_QUEUE));
        let memory = outline.kept() + queued + (2 + turned) * reduced + SMALL;
        Ok(Self { bytes, way: Way::ReducedJpeg, size, decoded, orientation, memory })
    }

    fn other(bytes: &'a [u8], format: ImageFormat, limits: &Limits) -> Result<Self, ImageError> {
        let mut bounds = image::Limits::no_limits();
        let mut decoder: Box<dyn ImageDecoder + 'a> = if format == ImageFormat::Png {
            // Its metadata is expanded, and its rows are measured, before the decoder is there to be asked.
            let side = |at: usize| bytes.get(at..).and_then(|side| side.first_chunk());
            if let (Some(width), Some(height)) = (side(16), side(20)) {
                let size = (u32::from_be_bytes(*width), u32::from_be_bytes(*height));
                check_size(size, limits.max_side, limits.max_pixels)?;
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
        check_size(size, limits.max_side, limits.max_pixels)?;
        let exif = decoder.exif_metadata().ok().flatten();
        let orientation = exif.and_then(|exif| exif::orientation(&exif));
        let orientation = orientation.unwrap_or(Orientation::NoTransforms);
        // A turn needs the image twice.
        let pixels = u64::from(size.0) * u64::from(size.1);
        let turn = if is_turned(orientation) { 2 * pixels * 3 } else { 0 };
        let memory = memory(&*decoder, format, bytes)?.max(turn) + SMALL;
        bounds.max_alloc = Some(limits.max_alloc);
        decoder.set_limits(bounds).map_err(from_image)?;
        Ok(Self { bytes, way: Way::Other(decoder), size, decoded: size, orientation, memory })
    }

    /// Decodes the pixels, upright, over white where they are transparent.
    pub(super) fn run(self, limits: &Limits) -> Result<Measured, ImageError> {
        let Self { bytes, way, size, decoded, orientation, .. } = self;
        let own = if is_turned(orientation) { (size.1, size.0) } else { size };
        let picture = match way {
            Way::Other(decoder) => {
                let picture = DynamicImage::from_decoder(decoder).map_err(from_image)?;
                if bytes.starts_with(b"BM") { opaque_if_blank(picture) } else { picture }
            }
            Way::Jpeg => whole_jpeg(bytes, size, limits)?,
            Way::ReducedJpeg => match reduced_jpeg(bytes, size, decoded) {
                Some(picture) => picture,
                // The other decoder takes some files that this one does not.
                None => return Self::new(bytes, limits, None)?.run(limits),
            },
        };
        Ok((upright(picture, orientation), own))
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

/// `None` for a JPEG that this decoder does not take.
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

fn is_turned(orientation: Orientation) -> bool {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => false,
    }
}

/// Most bytes that decoding the whole image to RGB takes at a time.
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
        // A frame of another size than the canvas is kept beside it, and its color numbers.
        ImageFormat::Gif => pixels * 5,
        ImageFormat::WebP => {
            let (largest, lossless) = webp::frames(bytes);
            if largest > pixels {
                return Err(broken("a frame is larger than the canvas"));
            }
            // Planes at half again a byte a pixel, or four bytes a pixel, a frame beside a canvas.
            pixels * 8 + lossless * WEBP_TABLES
        }
        // Metadata is expanded into a buffer that grows, beside the one that it outgrows.
        ImageFormat::Png => 2 * PNG_METADATA,
        _ => 0,
    };
    Ok(stored + converted.max(decoding))
}

fn check_size(
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

/// Each scan passes over all of the image, however few bytes it has.
fn check_scans(outline: &Outline, limits: &Limits) -> Result<(), ImageError> {
    let pixels = u64::from(outline.size.0) * u64::from(outline.size.1);
    let most = limits.max_pixels.saturating_mul(SCANS_OF_LARGEST) / pixels.max(1);
    let limit = most.min(limits.max_scans);
    if outline.scans > limit {
        return Err(ImageError::TooManyScans { scans: outline.scans, limit });
    }
    Ok(())
}

fn upright(picture: DynamicImage, orientation: Orientation) -> Pixels {
    let rgb = if picture.color().has_alpha() {
        over_white(picture.into_rgba8())
    } else {
        picture.into_rgb8()
    };
    let mut picture = DynamicImage::ImageRgb8(rgb);
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    Pixels { width: rgb.width(), height: rgb.height(), data: rgb.into_raw() }
}

/// Programs that know no transparency leave the fourth byte of a BMP's pixels zero.
fn opaque_if_blank(picture: DynamicImage) -> DynamicImage {
    match picture {
        DynamicImage::ImageRgba8(mut rgba) if rgba.pixels().all(|pixel| pixel[3] == 0) => {
            rgba.pixels_mut().for_each(|pixel| pixel[3] = 255);
            DynamicImage::ImageRgba8(rgba)
        }
        other => other,
    }
}

/// Blends in place: three bytes of each four stay.
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

/// Runs a decoder; its panic becomes an error.
pub(super) fn contain<T>(work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
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
