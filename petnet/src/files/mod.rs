//! Selection of image files in folders, archives and buckets, and the reasons for which other files are left out.

#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "data sets take the rest"))]
mod names;
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "data sets read them"))]
mod source;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

#[cfg(feature = "train")]
pub(crate) use names::{class_key, contained};
pub use names::{entry_path, left_out};
#[cfg(feature = "train")]
pub(crate) use source::{ImageFiles, Listing, MANIFEST};
pub use source::{WalkEntry, walk};

/// Entry point for fuzzing: lists an archive and reads its first files.
#[cfg(fuzzing)]
pub fn read_archive(path: &std::path::Path) {
    let Ok(mut files) = ImageFiles::open(path) else { return };
    let Ok(listing) = files.list() else { return };
    for file in listing.files.iter().take(100) {
        let _ = files.head(file, 32);
        let _ = files.read(file, 1 << 20);
    }
}

/// The reason why a file is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// Neither its name nor its bytes are those of an image.
    NoImage,
    /// Its name, or that of a folder above it, begins with a dot.
    Hidden,
    /// It belongs to an operating system or a storage device, such as `@eaDir`, `#recycle`, `lost+found` and `Thumbs.db`.
    System,
    /// It was written by an earlier `prepare`.
    EarlierOutput,
    /// A symbolic link to a folder above it, which would be a loop.
    #[serde(rename = "ring")]
    SymlinkLoop,
    /// A symbolic link to a path that does not exist.
    BrokenLink,
    /// An entry of an archive with a path outside of the archive.
    OutsidePath,
    /// A second entry of the same name in an archive.
    SameName,
    /// An entry of an archive that is neither a file nor a folder.
    Special,
    /// An image outside of the folders that are classes.
    NoClass,
    /// An image that has no label.
    NoLabel,
    /// A correction of labels drops it.
    Dropped,
    /// An image in a format that is not supported, such as HEIC.
    #[serde(rename = "foreign_format")]
    UnsupportedFormat,
    /// A file that cannot be read or decoded.
    Unreadable,
    /// A file of too many bytes, pixels or scans.
    TooLarge,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoImage => "no image",
            Self::Hidden => "hidden",
            Self::System => "of the system",
            Self::EarlierOutput => "an earlier output",
            Self::SymlinkLoop => "a link to a folder above",
            Self::BrokenLink => "a link to nothing",
            Self::OutsidePath => "a name that leads out",
            Self::SameName => "a name twice",
            Self::Special => "neither file nor folder",
            Self::NoClass => "outside of the classes",
            Self::NoLabel => "without a label",
            Self::Dropped => "dropped by a correction",
            Self::UnsupportedFormat => "a format that is not read",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too large",
        })
    }
}

/// Number of files that were left out, by reason. A hidden folder counts as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftOutCounts(BTreeMap<LeftOut, u64>);

impl LeftOutCounts {
    /// Counts one more file.
    pub fn add(&mut self, reason: LeftOut) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// Number of files for all reasons.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Number of files that were left out for a reason.
    pub fn get(&self, reason: LeftOut) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }

    /// Reasons and numbers, in the order of [`LeftOut`].
    pub fn iter(&self) -> impl Iterator<Item = (LeftOut, u64)> {
        self.0.iter().map(|(reason, count)| (*reason, *count))
    }
}

/// Counts and reasons, such as `3 hidden, 1 no image`; empty where there are none.
impl fmt::Display for LeftOutCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, count)) in self.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {reason}")?;
        }
        Ok(())
    }
}
