//! Preprocessing of untrusted bytes to pixels: decode within limits, apply the EXIF orientation, resize. Training,
//! evaluation and serving share this path.

mod decode;
mod exif;
mod format;
mod jpeg;
mod webp;

use fast_image_resize as fir;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use serde::{Deserialize, Serialize};

pub use crate::error::UnsupportedFormat;
use decode::{DecodePlan, SizedPixels, catch_panics};
pub use format::{FileKind, SNIFFED_BYTES, recognise};

use crate::error::ImageError;

/// Largest side of a network's input, in pixels.
pub(crate) const MAX_SIZE: u32 = 1024;

/// Limits that are checked before any pixel is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest file in bytes (32 MiB).
    pub max_bytes: u64,
    /// Largest width and largest height in pixels (65,535).
    pub max_side: u32,
    /// Largest width x height in pixels (50 million). A JPEG that is decoded at a quarter or an eighth of its size may have
    /// [`REDUCED_JPEG_PIXEL_FACTOR`] times as many, for phones with 108 and 200 million pixels.
    pub max_pixels: u64,
    /// Largest number of scans of a JPEG (100); for one of more than a sixth of [`Limits::max_pixels`] it is lower, down
    /// to 16.
    pub max_scans: u64,
    /// Largest memory that decoding may take, in bytes (1 GiB).
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

/// Factor on [`Limits::max_pixels`] for a JPEG that is decoded at a quarter or an eighth of its size: its entropy decoder
/// takes time for all pixels, but not memory.
pub const REDUCED_JPEG_PIXEL_FACTOR: u64 = 4;

/// Ratio of width to height above which images are resized along the width first.
const MAX_ASPECT_RATIO: u32 = 8;

/// An RGB image, eight bits a channel, rows from the top, no padding.
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

    /// The bytes, `[height, width, 3]`, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}

/// Method of resizing an image of any shape to a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resize {
    /// Resizes both sides to the target; the aspect ratio is lost. The Python reference implementation does this.
    #[default]
    Squeeze,
    /// Resizes the short side to the target and takes the middle square.
    CenterCrop,
}

/// Preprocessing from an image's bytes to the square that a network takes; stored with every model.
///
/// ```
#[doc = include_str!("../doc_image.txt")]
/// use petnet::ImageError;
/// use petnet::preprocess::{Limits, Preprocess, Resize};
///
/// let preprocess = Preprocess { size: 4, resize: Resize::CenterCrop };
/// let pixels = preprocess.run(&image, &Limits::default())?;
/// assert_eq!((pixels.width(), pixels.height()), (4, 4));
/// let limits = Limits { max_pixels: 10, ..Limits::default() };
/// assert!(preprocess.run(&image, &limits).is_err(), "48 pixels are more than 10");
/// # Ok::<(), ImageError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Side of the square in pixels.
    pub size: u32,
    /// Method of resizing.
    pub resize: Resize,
}

impl Preprocess {
    /// Decodes and resizes; the result is `size` x `size`.
    ///
    /// # Errors
    /// Any [`ImageError`].
    pub fn run(&self, bytes: &[u8], limits: &Limits) -> Result<Pixels, ImageError> {
        self.run_measured(bytes, limits).map(|(pixels, _)| pixels)
    }

    /// Like [`Preprocess::run`], and returns the image's own width and height in pixels, upright.
    ///
    /// # Errors
    /// As [`Preprocess::run`].
    pub fn run_measured(
        &self,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<(Pixels, (u32, u32)), ImageError> {
        let (pixels, original_size) = decode_measured(bytes, limits, self.size)?;
        Ok((resize(&pixels, self.size, self.resize)?, original_size))
    }

    /// Upper bound of the memory in bytes that [`Preprocess::run`] takes for this image, from its header alone. Servers
    /// use it to admit images within a budget of memory.
    ///
    /// # Errors
    /// Those of [`Preprocess::run`] that the header shows.
    pub fn memory(&self, bytes: &[u8], limits: &Limits) -> Result<u64, ImageError> {
        let plan = catch_panics(|| DecodePlan::new(bytes, limits, Some(self.size)))?;
        let size = u64::from(self.size);
        // The image between the two passes of a resize has one side of the new length and one of the old.
        let (width, height) = plan.decoded;
        let kept = width.max(height).min(width.min(height).saturating_mul(MAX_ASPECT_RATIO));
        // The filter's weights are six times the longer side, as numbers of 8 and of 2 bytes.
        let between = u64::from(kept) * size * 3 + u64::from(width.max(height)) * 64;
        Ok(plan.memory + between + size * size * 3)
    }
}

/// Decodes a whole image, with its EXIF orientation applied, and blends transparent pixels over white.
///
/// Supported are JPEG (grey, YCbCr, CMYK, YCCK), PNG, WebP, GIF (first frame) and BMP, of any bit depth.
///
/// # Errors
/// Any [`ImageError`]. Limits are checked before pixels are decoded, and a decoder's panic becomes an error.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Pixels, ImageError> {
    catch_panics(|| DecodePlan::new(bytes, limits, None)?.run(limits)).map(|(pixels, _)| pixels)
}

/// Like [`decode`], but decodes a large JPEG at 1/4 or 1/8 of its size, as long as both sides keep at least twice `side`
/// pixels: the inverse DCT is then much cheaper. A scale of 1/2 is not used, as the decoder that supports scaling is then
/// slower than the other one at full size (`benches/preprocess.rs`).
///
/// # Errors
/// As [`decode`].
pub fn decode_at_least(bytes: &[u8], limits: &Limits, side: u32) -> Result<Pixels, ImageError> {
    decode_measured(bytes, limits, side).map(|(pixels, _)| pixels)
}

/// Like [`decode_at_least`], and returns the image's own width and height in pixels, upright.
pub(crate) fn decode_measured(
    bytes: &[u8],
    limits: &Limits,
    side: u32,
) -> Result<SizedPixels, ImageError> {
    catch_panics(|| DecodePlan::new(bytes, limits, Some(side))?.run(limits))
}

/// Resizes to a square of `size` with an antialiased Lanczos filter of three lobes, as Pillow does.
///
/// # Errors
/// [`ImageError::Unsupported`] when `size` is zero.
pub fn resize(pixels: &Pixels, size: u32, how: Resize) -> Result<Pixels, ImageError> {
    let options = match how {
        Resize::Squeeze => lanczos(),
        Resize::CenterCrop => lanczos().fit_into_destination(Some((0.5, 0.5))),
    };
    // The resizer reduces the height first and keeps the full width. For a very wide and low image, whose height may even
    // grow, the result between the passes could be larger than the image itself.
    let elongated = pixels.width / MAX_ASPECT_RATIO > pixels.height && how == Resize::Squeeze;
    if elongated {
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
    // Typed images keep the code for other pixel types, megabytes of it, out of the program.
    let from = TypedImageRef::<U8x3>::from_buffer(pixels.width, pixels.height, &pixels.data)
        .map_err(|e| unsupported(&e))?;
    let mut to =
        TypedImage::<U8x3>::from_buffer(width, height, &mut data).map_err(|e| unsupported(&e))?;
    fir::Resizer::new().resize_typed(&from, &mut to, options).map_err(|e| unsupported(&e))?;
    Pixels::new(width, height, data)
        .ok_or_else(|| ImageError::Unsupported("resize to an empty image".into()))
}
