//! Decoding of untrusted bytes. An image's header says what its pixels will take; all limits are checked against that
//! before a pixel is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::jpeg::Outline;
use super::{Limits, Pixels, webp};
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
    Whole(Box<dyn ImageDecoder + 'a>),
    /// A JPEG at an eighth or a quarter of its size, by a smaller inverse DCT.
    Reduced(Box<jpeg_decoder::Decoder<&'a [u8]>>),
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
        let format = image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat)?;
        let outline = (format == ImageFormat::Jpeg).then(|| Outline::of(bytes));
        let length = outline.as_ref().map_or(Some(bytes.len()), |outline| outline.length);
        // Decoders fill what is missing with grey and say nothing.
        let length = length.ok_or_else(|| broken("the JPEG data ends too early"))?;
        let bytes = &bytes[..length];
        let reduced = match (&outline, side) {
            (Some(outline), Some(side)) => Self::reduced(bytes, outline, limits, side)?,
            _ => None,
        };
        let plan = match reduced {
            Some(plan) => plan,
            None => Self::whole(bytes, format, outline.as_ref(), limits)?,
        };
        if plan.memory > limits.max_alloc {
            return Err(ImageError::TooMuchMemory);
        }
        Ok(plan)
    }

    /// `None` when the JPEG cannot be decoded at a reduced size, or is not worth it.
    fn reduced(
        bytes: &'a [u8],
        outline: &Outline,
        limits: &Limits,
        side: u32,
    ) -> Result<Option<Self>, ImageError> {
        let mut decoder = jpeg_decoder::Decoder::new(bytes);
        decoder.set_max_decoding_buffer_size(limits.max_alloc as usize);
        if decoder.read_info().is_err() {
            return Ok(None);
        }
        let Some(info) = decoder.info() else { return Ok(None) };
        let size = (info.width.into(), info.height.into());
        check_size(size, limits)?;
        check_scans(outline, size, limits)?;
        let known = matches!(
            info.pixel_format,
            jpeg_decoder::PixelFormat::RGB24 | jpeg_decoder::PixelFormat::L8
        );
        let (enough, shorter) = (side.saturating_mul(2), size.0.min(size.1));
        let factor = [8, 4].into_iter().find(|factor| known && shorter / factor >= enough);
        let Some(factor) = factor else { return Ok(None) };
        let reduced = |side: u32| (side / factor) as u16;
        let Ok((width, height)) = decoder.scale(reduced(size.0), reduced(size.1)) else {
            return Ok(None);
        };
        // Planes of the components, and the pixels that are put together from them. The decoder hands coefficients to
        // threads of its own through a queue without a limit: all of them at once where they were kept, else as many as
        // are read while such a thread waits for a core.
        let pixels = u64::from(width) * u64::from(height) * 3;
        let queued = outline.kept().max(outline.coefficients.min(JPEG_QUEUE));
        let memory = outline.kept() + queued + 2 * pixels + SMALL;
        let turn = if is_turned(outline.orientation) { pixels } else { 0 };
        let memory = memory + turn;
        let (way, orientation) = (Way::Reduced(Box::new(decoder)), outline.orientation);
        let decoded = (width.into(), height.into());
        Ok(Some(Self { bytes, way, size, decoded, orientation, memory }))
    }

    fn whole(
        bytes: &'a [u8],
        format: ImageFormat,
        outline: Option<&Outline>,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let mut bounds = image::Limits::no_limits();
        let mut decoder: Box<dyn ImageDecoder + 'a> = if format == ImageFormat::Png {
            // Its metadata is expanded, and its rows are measured, before the decoder is there to be asked.
            let side = |at: usize| bytes.get(at..).and_then(|side| side.first_chunk());
            if let (Some(width), Some(height)) = (side(16), side(20)) {
                check_size((u32::from_be_bytes(*width), u32::from_be_bytes(*height)), limits)?;
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
        check_size(size, limits)?;
        if let Some(outline) = outline {
            check_scans(outline, size, limits)?;
        }
        let orientation = match outline {
            Some(outline) => outline.orientation,
            None => decoder.orientation().unwrap_or(Orientation::NoTransforms),
        };
        let memory = memory(&*decoder, format, bytes, outline)?;
        // A turn needs the image twice.
        let (width, height) = (u64::from(size.0), u64::from(size.1));
        let turn = if is_turned(orientation) { 2 * width * height * 3 } else { 0 };
        let memory = memory.max(turn) + SMALL;
        bounds.max_alloc = Some(limits.max_alloc);
        decoder.set_limits(bounds).map_err(from_image)?;
        Ok(Self { bytes, way: Way::Whole(decoder), size, decoded: size, orientation, memory })
    }

    /// Decodes the pixels, upright, over white where they are transparent.
    pub(super) fn run(self, limits: &Limits) -> Result<Measured, ImageError> {
        let Self { bytes, way, size, orientation, .. } = self;
        let own = if is_turned(orientation) { (size.1, size.0) } else { size };
        let picture = match way {
            Way::Whole(decoder) => DynamicImage::from_decoder(decoder).map_err(from_image)?,
            Way::Reduced(mut decoder) => match reduced_pixels(&mut decoder) {
                Some(picture) => picture,
                // The other decoder takes some files that this one does not.
                None => return Self::new(bytes, limits, None)?.run(limits),
            },
        };
        Ok((upright(picture, orientation), own))
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

fn reduced_pixels(decoder: &mut jpeg_decoder::Decoder<&[u8]>) -> Option<DynamicImage> {
    let data = decoder.decode().ok()?;
    let info = decoder.info()?;
    let (width, height) = (info.width.into(), info.height.into());
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

/// Most bytes that decoding the whole image to RGB takes at a time.
fn memory(
    decoder: &dyn ImageDecoder,
    format: ImageFormat,
    bytes: &[u8],
    outline: Option<&Outline>,
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
        // The file is copied, and read again for its orientation.
        ImageFormat::Jpeg => outline.map_or(0, Outline::kept) + 2 * bytes.len() as u64,
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

fn check_size((width, height): (u32, u32), limits: &Limits) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(broken("a side of zero pixels"));
    }
    if width.max(height) > limits.max_side {
        return Err(ImageError::TooLong { width, height, limit: limits.max_side });
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    Ok(())
}

/// Each scan passes over all of the image, however few bytes it has.
fn check_scans(
    outline: &Outline,
    (width, height): (u32, u32),
    limits: &Limits,
) -> Result<(), ImageError> {
    let pixels = u64::from(width) * u64::from(height);
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
