//! Recognition of a file's format by its first bytes, as its name and its declared type may be wrong.

use image::ImageFormat;

use crate::error::{ImageError, UnsupportedFormat};

/// Number of first bytes by which a file's format is recognised.
pub const SNIFFED_BYTES: u64 = 32;

/// Kind of a file by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// An image in a supported format: JPEG, PNG, WebP, GIF or BMP.
    Image,
    /// An image in a format that is not supported.
    Unsupported(UnsupportedFormat),
    /// Anything else.
    NoImage,
}

/// Kind of a file by its first [`SNIFFED_BYTES`] bytes; with fewer bytes fewer formats are recognised.
///
/// ```
/// use petnet::preprocess::{FileKind, UnsupportedFormat, recognise};
///
/// assert_eq!(recognise(b"\xff\xd8\xff\xe0\0\x10JFIF"), FileKind::Image);
/// assert_eq!(recognise(b"\0\0\0\x18ftypheic\0\0\0\0"), FileKind::Unsupported(UnsupportedFormat::Heic));
/// assert_eq!(recognise(b"path,label\n"), FileKind::NoImage);
/// ```
pub fn recognise(head: &[u8]) -> FileKind {
    match read_format(head) {
        Some(_) => FileKind::Image,
        None => unsupported(head).map_or(FileKind::NoImage, FileKind::Unsupported),
    }
}

/// The format of an image, or the reason why there is no decoder for it.
pub(super) fn format(bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    let refused = || match unsupported(bytes) {
        Some(format) => ImageError::UnsupportedFormat(format),
        None if bytes.starts_with(&[0x1f, 0x8b]) => ImageError::Compressed,
        None => ImageError::UnknownFormat,
    };
    read_format(bytes).ok_or_else(refused)
}

fn read_format(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageFormat::Png),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        // A text may also begin with these two letters, but not have one of the known lengths of the header.
        [b'B', b'M', rest @ ..] if matches!(rest.get(12..16), Some([12..=124, 0, 0, 0])) => {
            Some(ImageFormat::Bmp)
        }
        _ => None,
    }
}

fn unsupported(bytes: &[u8]) -> Option<UnsupportedFormat> {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', rest @ ..] => match rest.get(..4)? {
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                Some(UnsupportedFormat::Heic)
            }
            b"avif" | b"avis" => Some(UnsupportedFormat::Avif),
            b"crx " => Some(UnsupportedFormat::Cr3),
            _ => None,
        },
        [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => {
            Some(UnsupportedFormat::Tiff)
        }
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => {
            Some(UnsupportedFormat::JpegXl)
        }
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => {
            Some(UnsupportedFormat::Jpeg2000)
        }
        [b'8', b'B', b'P', b'S', ..] => Some(UnsupportedFormat::Photoshop),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_bytes_alone() {
        let bmp = [b"BM".as_slice(), &[0; 12], &[40, 0, 0, 0], &[0; 20]].concat();
        assert_eq!(recognise(&bmp), FileKind::Image);
        for text in [
            &b"BMW 320i is a car, and this is a text"[..],
            b"",
            b"{\"a\":1}",
            b"\0\0\0\x18ftypmp42",
        ] {
            assert_eq!(recognise(text), FileKind::NoImage, "{text:?}");
        }
        for (head, format) in [
            (&b"\0\0\0\x1cftypavif"[..], UnsupportedFormat::Avif),
            (b"II*\0\x08\0\0\0", UnsupportedFormat::Tiff),
            (b"MM\0*\0\0\0\x08", UnsupportedFormat::Tiff),
            (b"\xff\x0a\xfa\x1f", UnsupportedFormat::JpegXl),
        ] {
            assert_eq!(recognise(head), FileKind::Unsupported(format));
            assert_eq!(super::format(head), Err(ImageError::UnsupportedFormat(format)));
        }
        assert_eq!(super::format(b"\x1f\x8b\x08\0"), Err(ImageError::Compressed));
    }
}
