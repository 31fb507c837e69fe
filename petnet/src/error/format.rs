//! Image formats that are recognised but not supported.

use std::fmt;

/// Image formats that are recognised but not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnsupportedFormat {
    /// High Efficiency Image File, the default of iPhones.
    Heic,
    /// AV1 Image File.
    Avif,
    /// Tagged Image File, the container of most cameras' raw formats too.
    Tiff,
    /// JPEG XL.
    JpegXl,
    /// JPEG 2000.
    Jpeg2000,
    /// Canon's raw format CR3.
    Cr3,
    /// Adobe Photoshop.
    Photoshop,
}

impl fmt::Display for UnsupportedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heic => "HEIC",
            Self::Avif => "AVIF",
            Self::Tiff => "TIFF",
            Self::JpegXl => "JPEG XL",
            Self::Jpeg2000 => "JPEG 2000",
            Self::Cr3 => "Canon CR3",
            Self::Photoshop => "Photoshop",
        })
    }
}

impl UnsupportedFormat {
    /// Advice on converting such a file, as a sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Heic => {
                "convert it to JPEG, as with `heif-convert photo.heic photo.jpg`; iPhones write JPEG with \
                 Settings, Camera, Formats, Most Compatible"
            }
            Self::Avif => "convert it to JPEG, as with `avifdec photo.avif photo.jpg`",
            Self::JpegXl => "convert it to JPEG, as with `djxl photo.jxl photo.jpg`",
            Self::Tiff | Self::Jpeg2000 | Self::Cr3 | Self::Photoshop => {
                "convert it to JPEG or PNG, as with `magick photo.tif photo.jpg`"
            }
        }
    }
}
