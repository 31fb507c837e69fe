//! Untrusted bytes to pixels: decode within limits, turn upright, resize.
//!
//! The one path that training, evaluation and serving share. It knows no tensors and no labels.

mod decode;
mod exif;
mod format;
mod jpeg;
mod webp;

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use serde::{Deserialize, Serialize};

pub use crate::error::ForeignFormat;
use decode::{Measured, Plan, contain};
pub use format::{FileKind, HEAD, recognise};

use crate::error::ImageError;

/// Largest side of a network's input, in pixels.
pub(crate) const MAX_SIZE: u32 = 1024;

/// Bounds that are checked before any pixel is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file in bytes (32 MiB).
    pub max_bytes: u64,
    /// Largest width and largest height in pixels (65,535).
    pub max_side: u32,
    /// Largest width x height in pixels that are decoded (50 million). A JPEG that is decoded at a quarter or an eighth of
    /// its size for a smaller network may have [`REDUCED`] times as many: photos of phones with 108 and 200 million.
    pub max_pixels: u64,
    /// Most scans of a JPEG (100); of one with more than a sixth of [`Limits::max_pixels`] fewer, down to 16.
    pub max_scans: u64,
    /// Most memory that decoding may take, in bytes (1 GiB).
    pub max_alloc: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_side: 65_535,
            max_pixels: 50_000_000,
            max_scans: 100,
            max_alloc: 1 << 30,
        }
    }
}

/// Pixels of a JPEG that is decoded at a quarter or an eighth of its size, relative to [`Limits::max_pixels`]: the time of
/// its entropy decoder grows with them, its memory does not.
pub const REDUCED: u64 = 4;

/// Ratio of width to height from which on the rows are resized before the columns.
const RIBBON: u32 = 8;

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
        let (pixels, own) = contain(|| decode_reduced(bytes, limits, self.size))?;
        Ok((resize(&pixels, self.size, self.resize)?, own))
    }

    /// Most bytes of memory that [`Preprocess::run`] takes at a time for this image, by its header: nothing is decoded
    /// yet. For servers, which share their memory out before they work.
    ///
    /// # Errors
    /// Those of [`Preprocess::run`] that the header tells.
    pub fn memory(&self, bytes: &[u8], limits: &Limits) -> Result<u64, ImageError> {
        let plan = contain(|| Plan::new(bytes, limits, Some(self.size)))?;
        let size = u64::from(self.size);
        // Between the two passes of a resize, one side has its new length.
        let (width, height) = plan.decoded;
        let kept = width.max(height).min(width.min(height).saturating_mul(RIBBON));
        // The filters' weights: six times the longer side of them, as numbers of 8 and of 2 bytes.
        let between = u64::from(kept) * size * 3 + u64::from(width.max(height)) * 64;
        Ok(plan.memory + between + size * size * 3)
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
    contain(|| Plan::new(bytes, limits, None)?.run(limits)).map(|(pixels, _)| pixels)
}

/// Like [`decode`], but a large JPEG may come back at 1/4 or 1/8 of its size, as long as both
/// sides keep at least twice `side` pixels: the inverse DCT is then much cheaper. (At 1/2 the
/// decoder that can scale is slower than the one that cannot: `benches/preprocess.rs`.)
///
/// # Errors
/// As [`decode`].
pub fn decode_at_least(bytes: &[u8], limits: &Limits, side: u32) -> Result<Pixels, ImageError> {
    decode_measured(bytes, limits, side).map(|(pixels, _)| pixels)
}

/// Like [`decode_at_least`], with the image's own width and height in pixels, upright.
pub(crate) fn decode_measured(
    bytes: &[u8],
    limits: &Limits,
    side: u32,
) -> Result<Measured, ImageError> {
    contain(|| decode_reduced(bytes, limits, side))
}

fn decode_reduced(bytes: &[u8], limits: &Limits, side: u32) -> Result<Measured, ImageError> {
    Plan::new(bytes, limits, Some(side))?.run(limits)
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
    // Columns go first, and leave rows of the full width: of a ribbon they would be larger than the image.
    let ribbon = pixels.width / RIBBON > pixels.height && how == Resize::Squeeze;
    if ribbon {
        let narrow = resize_with(pixels, size, pixels.height, &options)?;
        return resize_with(&narrow, size, size, &options);
    }
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
