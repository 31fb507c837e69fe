//! Untrusted bytes to pixels: decode within limits, turn upright, resize.
//!
//! The one path that training, evaluation and serving share. It knows no tensors and no labels.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// Largest side of a network's input, in pixels.
pub(crate) const MAX_SIZE: u32 = 1024;

/// Bounds that are checked before any pixel is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file in bytes (32 MiB).
    pub max_bytes: u64,
    /// Largest width x height in pixels (50 million).
    pub max_pixels: u64,
    /// Most memory that a decoder may take, in bytes (512 MiB).
    pub max_alloc: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 32 << 20, max_pixels: 50_000_000, max_alloc: 512 << 20 }
    }
}

/// File endings of the formats that can be decoded.
pub const PICTURE_ENDINGS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// An RGB picture, eight bits a channel, rows from the top, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Pixels {
    /// Wraps `width * height * 3` bytes; `None` when the length differs or a side is zero.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let fits = data.len() as u64 == u64::from(width) * u64::from(height) * 3;
        (fits && width > 0 && height > 0).then_some(Self { width, height, data })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Gives the bytes away, `[height, width, 3]`.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}

/// How a picture of any shape becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resize {
    /// Both sides to the target, the aspect ratio is lost (what the reference system does).
    #[default]
    Squeeze,
    /// The short side to the target, then the middle square.
    CenterCrop,
}

/// The way from a photo's bytes to the square that a network sees; stored with every model.
///
/// ```
/// # let mut photo = std::io::Cursor::new(Vec::new());
/// # image::RgbImage::from_pixel(8, 6, image::Rgb([90, 60, 30])).write_to(&mut photo, image::ImageFormat::Png).unwrap();
/// # let photo = photo.into_inner();
/// use petnet::ImageError;
/// use petnet::preprocess::{Limits, Preprocess, Resize};
///
/// let preprocess = Preprocess { size: 4, resize: Resize::CenterCrop };
/// let picture = preprocess.run(&photo, &Limits::default())?;
/// assert_eq!((picture.width(), picture.height()), (4, 4));
/// let limits = Limits { max_pixels: 10, ..Limits::default() };
/// assert!(preprocess.run(&photo, &limits).is_err(), "48 pixels are more than 10");
/// # Ok::<(), ImageError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Side of the square in pixels.
    pub size: u32,
    /// What happens to the aspect ratio.
    pub resize: Resize,
}

impl Preprocess {
    /// Decodes and resizes; the result is `size` x `size`.
    ///
    /// # Errors
    /// Any [`ImageError`]: the bytes decide which.
    pub fn run(&self, bytes: &[u8], limits: &Limits) -> Result<Pixels, ImageError> {
        self.run_measured(bytes, limits).map(|(pixels, _)| pixels)
    }

    /// Like [`Preprocess::run`], with the photo's own width and height in pixels, upright.
    ///
    /// # Errors
    /// As [`Preprocess::run`].
    pub fn run_measured(
        &self,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<(Pixels, (u32, u32)), ImageError> {
        let (pixels, own) = contain(bytes, limits, || decode_reduced(bytes, limits, self.size))?;
        Ok((resize(&pixels, self.size, self.resize)?, own))
    }
}

/// Decodes a whole picture, upright (EXIF orientation applied), over white where it is transparent.
///
/// JPEG (grey, YCbCr, CMYK, YCCK), PNG, WebP, GIF (first frame) and BMP, of any bit depth.
///
/// # Errors
/// Any [`ImageError`]; limits are checked before pixels are decoded, and a decoder's panic is
/// contained.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels, ImageError> {
    contain(bytes, limits, || decode_full(bytes, limits))
}

/// Like [`decode`], but a large JPEG may come back at 1/4 or 1/8 of its size, as long as both
/// sides keep at least twice `side` pixels: the inverse DCT is then much cheaper. (At 1/2 the
/// decoder that can scale is slower than the one that cannot: `benches/preprocess.rs`.)
///
/// # Errors
/// As [`decode`].
pub fn decode_at_least(bytes: &[u8], limits: &Limits, side: u32) -> Result<Pixels, ImageError> {
    contain(bytes, limits, || decode_reduced(bytes, limits, side)).map(|(pixels, _)| pixels)
}

/// A picture, perhaps smaller than it is, and the width and height that it has.
type Measured = (Pixels, (u32, u32));

fn decode_reduced(bytes: &[u8], limits: &Limits, side: u32) -> Result<Measured, ImageError> {
    if let Some(reduced) = decode_scaled_jpeg(bytes, limits, side)? {
        return Ok(reduced);
    }
    let pixels = decode_full(bytes, limits)?;
    let own = (pixels.width, pixels.height);
    Ok((pixels, own))
}

/// Resizes to a square of `size` with a Lanczos filter of three lobes, antialiased as Pillow does.
///
/// # Errors
/// [`ImageError::Unsupported`] when `size` is zero.
pub fn resize(pixels: &Pixels, size: u32, how: Resize) -> Result<Pixels, ImageError> {
    let options = match how {
        Resize::Squeeze => lanczos(),
        Resize::CenterCrop => lanczos().fit_into_destination(Some((0.5, 0.5))),
    };
    resize_with(pixels, size, size, &options)
}

pub(crate) fn lanczos() -> fir::ResizeOptions {
    fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Lanczos3))
}

pub(crate) fn resize_with(
    pixels: &Pixels,
    width: u32,
    height: u32,
    options: &fir::ResizeOptions,
) -> Result<Pixels, ImageError> {
    let unsupported = |e: &dyn std::fmt::Display| ImageError::Unsupported(e.to_string());
    let mut data = vec![0; width as usize * height as usize * 3];
    // Typed images keep the code for all other kinds of pixels, megabytes of it, out of the program.
    let from = TypedImageRef::<U8x3>::from_buffer(pixels.width, pixels.height, &pixels.data)
        .map_err(|e| unsupported(&e))?;
    let mut to =
        TypedImage::<U8x3>::from_buffer(width, height, &mut data).map_err(|e| unsupported(&e))?;
    fir::Resizer::new().resize_typed(&from, &mut to, options).map_err(|e| unsupported(&e))?;
    Pixels::new(width, height, data)
        .ok_or_else(|| ImageError::Unsupported("resize to an empty picture".into()))
}

fn contain<T>(
    bytes: &[u8],
    limits: &Limits,
    decode: impl FnOnce() -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooLarge { bytes: bytes.len() as u64, limit: limits.max_bytes });
    }
    if matches!(image::guess_format(bytes), Ok(ImageFormat::Jpeg)) && ends_early(bytes) {
        return Err(ImageError::Broken("the JPEG data ends too early".into()));
    }
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(ImageError::DecoderPanicked))
}

/// Whether no end marker follows the last scan. JPEG decoders fill what is missing with grey and
/// say nothing. Markers of an embedded thumbnail come before the scan; inside it 0xFF is escaped.
fn ends_early(jpeg: &[u8]) -> bool {
    let last = |marker: [u8; 2]| jpeg.windows(2).rposition(|pair| pair == marker);
    last([0xff, 0xd9]) <= last([0xff, 0xda])
}

fn check_size(width: u32, height: u32, limits: &Limits) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Broken("a side of zero pixels".into()));
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels { width, height, limit: limits.max_pixels });
    }
    Ok(())
}

fn decode_full(bytes: &[u8], limits: &Limits) -> Result<Pixels, ImageError> {
    let format = image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(from_image)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)?;
    let mut bounds = image::Limits::no_limits();
    bounds.max_alloc = Some(limits.max_alloc);
    if decoder.total_bytes() > limits.max_alloc {
        return Err(ImageError::TooMuchMemory);
    }
    decoder.set_limits(bounds).map_err(from_image)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(from_image)?;
    Ok(finish(picture, orientation))
}

fn finish(mut picture: DynamicImage, orientation: Orientation) -> Pixels {
    picture.apply_orientation(orientation);
    let rgb = if picture.color().has_alpha() {
        over_white(&picture.into_rgba8())
    } else {
        picture.into_rgb8()
    };
    Pixels { width: rgb.width(), height: rgb.height(), data: rgb.into_raw() }
}

fn over_white(rgba: &image::RgbaImage) -> image::RgbImage {
    let blend = |colour: u8, alpha: u32| {
        ((u32::from(colour) * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    image::RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        let alpha = u32::from(a);
        image::Rgb([blend(r, alpha), blend(g, alpha), blend(b, alpha)])
    })
}

/// `None` when the bytes are no JPEG that is worth (or safe) decoding at a reduced scale.
fn decode_scaled_jpeg(
    bytes: &[u8],
    limits: &Limits,
    side: u32,
) -> Result<Option<Measured>, ImageError> {
    if !matches!(image::guess_format(bytes), Ok(ImageFormat::Jpeg)) {
        return Ok(None);
    }
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(limits.max_alloc as usize);
    if decoder.read_info().is_err() {
        return Ok(None);
    }
    let Some(info) = decoder.info() else { return Ok(None) };
    check_size(info.width.into(), info.height.into(), limits)?;
    let enough = side.saturating_mul(2);
    let shorter = u32::from(info.width.min(info.height));
    let Some(factor) = [8, 4].into_iter().find(|factor| shorter / factor >= enough) else {
        return Ok(None);
    };
    let reduced = |side: u16| (u32::from(side) / factor) as u16;
    let Ok((width, height)) = decoder.scale(reduced(info.width), reduced(info.height)) else {
        return Ok(None);
    };
    let orientation = decoder.exif_data().and_then(Orientation::from_exif_chunk);
    let orientation = orientation.unwrap_or(Orientation::NoTransforms);
    let Ok(data) = decoder.decode() else { return Ok(None) };
    let (width, height) = (width.into(), height.into());
    let picture = match info.pixel_format {
        jpeg_decoder::PixelFormat::RGB24 => {
            image::RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8)
        }
        jpeg_decoder::PixelFormat::L8 => {
            image::GrayImage::from_raw(width, height, data).map(DynamicImage::ImageLuma8)
        }
        _ => None,
    };
    let own = match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (info.height.into(), info.width.into()),
        _ => (info.width.into(), info.height.into()),
    };
    Ok(picture.map(|picture| (finish(picture, orientation), own)))
}

fn from_image(error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Limits(_) => ImageError::TooMuchMemory,
        image::ImageError::Unsupported(e) => ImageError::Unsupported(e.to_string()),
        other => ImageError::Broken(other.to_string()),
    }
}
