//! Which files are images, and what is left out for which reason: one answer for folders, archives and buckets.

#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "data sets take the rest"))]
mod names;
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "data sets read them"))]
mod source;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use names::{Name, entry_path, judge};
#[cfg(feature = "train")]
pub(crate) use names::{contained, key};
pub use source::{Entry, walk};
#[cfg(feature = "train")]
pub(crate) use source::{Listing, Source};

/// A door for fuzzing: lists an archive and reads its first files.
#[cfg(fuzzing)]
pub fn read_archive(path: &std::path::Path) {
    let Ok(mut source) = source::Source::open(path) else { return };
    let Ok(listing) = source.list() else { return };
    for file in listing.files.iter().take(100) {
        let _ = source.head(file, 32);
        let _ = source.read(file, 1 << 20);
    }
}

/// Why a file is not among the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// Its bytes are no image, and its name says nothing else.
    NoImage,
    /// Its name, or that of a folder above it, begins with a dot.
    Hidden,
    /// It is of an operating system or a storage device: `@eaDir`, `#recycle`, `lost+found`, `Thumbs.db` and their like.
    System,
    /// It was written by an earlier `prepare`.
    EarlierOutput,
    /// A link that leads to a folder above it.
    Ring,
    /// A link that leads nowhere.
    BrokenLink,
    /// A name in an archive that leads out of it.
    OutsidePath,
    /// A second entry of the same name in an archive.
    SameName,
    /// An entry of an archive that is neither a file nor a folder.
    Special,
    /// An image outside of the folders that are classes.
    NoClass,
    /// An image that has no label.
    NoLabel,
    /// A correction says that it is not to be used.
    Dropped,
    /// An image in a format that is not read, such as HEIC.
    ForeignFormat,
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
            Self::Ring => "a link to a folder above",
            Self::BrokenLink => "a link to nothing",
            Self::OutsidePath => "a name that leads out",
            Self::SameName => "a name twice",
            Self::Special => "neither file nor folder",
            Self::NoClass => "outside of the classes",
            Self::NoLabel => "without a label",
            Self::Dropped => "dropped by a correction",
            Self::ForeignFormat => "a format that is not read",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too large",
        })
    }
}

/// Number of files that were left out, by reason. A hidden folder counts as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<LeftOut, u64>);

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, reason: LeftOut) {
        *self.0.entry(reason).or_default() += 1;
    }

    /// All of them.
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

/// Such as `3 hidden, 1 no image`; nothing for none.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (reason, count)) in self.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {reason}")?;
        }
        Ok(())
    }
}
