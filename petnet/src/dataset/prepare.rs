//! A prepared data set on disk: small images in `train/`, `val/` and `test/`, and a manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use serde::{Deserialize, Serialize};

use super::labels::validate_class;
use super::layout::slashed;
use super::{Dataset, Reading, Reject, Sample, Split, Target, wrong_shares};
use crate::disk::{sha256, temporary_folder, write_atomically};
use crate::error::{Error, ImageError, Result};
use crate::files::{ImageFiles, LeftOutCounts, MANIFEST, contained};
use crate::preprocess::{Pixels, resize_with};

/// Version of the layout of manifests.
const MANIFEST_VERSION: u32 = 3;
const JPEG_QUALITY: u8 = 95;

/// Settings for preparing a data set.
///
/// ```
#[doc = include_str!("../doc_images.txt")]
/// use petnet::dataset::{Dataset, Prepare, Split};
///
/// let out = images.join("prepared");
/// let prepare = Prepare { size: 64, shares: [0.5, 0.25, 0.25], ..Prepare::default() };
/// let manifest = prepare.run(images, &out, || ())?;
/// assert_eq!(manifest.images.len(), 8);
/// assert!(Dataset::open(&out)?.part(Split::Test)?.len() < 8);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Prepare {
    /// Short side of the stored images in pixels; smaller images keep their size.
    pub size: u32,
    /// Seed of the split.
    pub seed: u64,
    /// Shares of training, validation and test, which sum to 1.
    pub shares: [f64; 3],
    /// Settings for reading the raw images; those in a folder `unlabelled` need a label in [`Reading::labels`].
    pub reading: Reading,
}

impl Default for Prepare {
    fn default() -> Self {
        Self { size: 160, seed: 42, shares: [0.8, 0.1, 0.1], reading: Reading::default() }
    }
}

/// The description of a prepared folder (`manifest.json`).
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format: u32,
    /// Seed of the split.
    pub seed: u64,
    /// Shares of training, validation and test.
    pub shares: [f64; 3],
    /// Short side of the stored images in pixels.
    pub size: u32,
    /// Class names in the order of their numbers.
    pub classes: Vec<String>,
    /// True where an image may have any number of classes.
    #[serde(default)]
    pub multi_label: bool,
    /// Images by split and class.
    pub counts: BTreeMap<String, BTreeMap<String, usize>>,
    /// [`Dataset::digest`] by split.
    pub digests: BTreeMap<String, String>,
    /// Number of files that were left out, by reason.
    pub left_out: LeftOutCounts,
    /// [`Dataset::notes`], and notes on the splits of the raw data.
    pub notes: Vec<String>,
    /// Images that were left out, and the reasons.
    pub rejects: Vec<Reject>,
    /// Groups of duplicates; each is in one split, unless the raw data has splits.
    pub duplicates: Vec<Duplicates>,
    /// The images, sorted by original name.
    #[serde(rename = "photos")]
    pub images: Vec<PreparedImage>,
}

/// A group of duplicates.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicates {
    /// True where all files are identical.
    pub exact: bool,
    /// True where the labels differ: at least one is wrong.
    pub conflict: bool,
    /// True where the members are in several splits of the raw data, so that training images are evaluated on.
    pub across_splits: bool,
    /// Names in the raw data.
    pub members: Vec<String>,
}

/// One image of a prepared data set.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedImage {
    /// Path of the small image, relative to the manifest.
    pub path: String,
    /// Its name in the raw data.
    pub original: String,
    /// Class names: one, unless the data set is a multi-label one.
    pub classes: Vec<String>,
    /// Split of the image.
    pub split: Split,
    /// Number of its group of duplicates.
    pub group: usize,
    /// SHA-256 of the original file.
    pub sha256: String,
    /// Width and height of the original in pixels.
    #[serde(default)]
    pub size: Option<(u32, u32)>,
}

impl Manifest {
    /// Name of the file in a prepared folder.
    pub const FILE: &str = MANIFEST;
}

impl Prepare {
    /// Reads a folder or archive once, decodes every image, and writes the prepared folder `out`. `progress` is called for
    /// every image, from many threads. The files are written to a temporary folder next to `out`, which is renamed at the
    /// end; it replaces an `out` of an earlier run.
    ///
    /// # Errors
    /// [`Error::Dataset`] when `raw` is no data set or `out` has other files; [`Error::Io`] when `out` cannot be written;
    /// [`Error::Config`] for an invalid `size` or split.
    pub fn run(&self, raw: &Path, out: &Path, progress: impl Fn() + Sync) -> Result<Manifest> {
        if !(16..=4096).contains(&self.size) {
            return Err(Error::Config(format!("size {} must lie between 16 and 4096", self.size)));
        }
        let foreign = out.is_dir()
            && !out.join(Manifest::FILE).is_file()
            && fs::read_dir(out).map_err(Error::io(out))?.next().is_some();
        if foreign {
            let out = out.display();
            return Err(Error::Dataset(format!("{out} has other files: choose an empty folder")));
        }
        let [train, val, test] = self.shares;
        let sensible = train > 0.0 && val >= 0.0 && test >= 0.0;
        if !sensible || (train + val + test - 1.0).abs() > 1e-6 {
            return Err(wrong_shares(self.shares));
        }
        let above = out.parent().unwrap_or(out);
        fs::create_dir_all(above).map_err(Error::io(above))?;
        let folder = temporary_folder(out).map_err(Error::io(out))?;
        let staging = folder.path();
        let failed = std::sync::Mutex::new(None);
        let dataset = self.reading.scan(raw, self.size, |name, pixels| {
            progress();
            let jpeg = self.shrink(pixels)?;
            let path = staging.join(staged_name(name));
            fs::write(&path, jpeg).map_err(|e| {
                let reason = ImageError::Broken(e.to_string());
                // An error of the disk must fail the run instead of rejecting the image.
                if let Ok(mut failed) = failed.lock() {
                    failed.get_or_insert(Error::Io { path, source: e });
                }
                reason
            })
        });
        // This error comes first, as it may cause others.
        if let Some(error) = failed.into_inner().unwrap_or(None) {
            return Err(error);
        }
        let dataset = dataset?;
        let parts = dataset.parts(self.shares, self.seed)?;
        if parts[0].is_empty() {
            return Err(Error::dataset(raw, "no image is left for training"));
        }
        let manifest = self.manifest(&dataset, &parts);
        for image in &manifest.images {
            let (from, to) = (
                staging.join(image.path.rsplit('/').next().unwrap_or_default()),
                staging.join(&image.path),
            );
            let folder = to.parent().unwrap_or(staging);
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
            fs::rename(&from, &to).map_err(Error::io(&from))?;
        }
        let text =
            serde_json::to_string_pretty(&manifest).map_err(|e| Error::Dataset(e.to_string()))?;
        write_atomically(&staging.join(Manifest::FILE), text.as_bytes())?;
        publish(staging, out)?;
        Ok(manifest)
    }

    /// Short side to `size`, aspect kept, as JPEG.
    fn shrink(&self, pixels: &Pixels) -> Result<Vec<u8>, ImageError> {
        let short = pixels.width().min(pixels.height());
        let scaled = |side: u32| {
            let scaled = f64::from(side) * f64::from(self.size) / f64::from(short);
            (scaled.round() as u32).max(1)
        };
        let options = fast_image_resize::ResizeOptions::new();
        let smaller = (short > self.size)
            .then(|| resize_with(pixels, scaled(pixels.width()), scaled(pixels.height()), &options))
            .transpose()?;
        let pixels = smaller.as_ref().unwrap_or(pixels);
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
            .encode(pixels.data(), pixels.width(), pixels.height(), image::ExtendedColorType::Rgb8)
            .map_err(|e| ImageError::Unsupported(e.to_string()))?;
        Ok(jpeg)
    }

    fn manifest(&self, dataset: &Dataset, parts: &[Dataset; 3]) -> Manifest {
        let names = |sample: &Sample| dataset.class_names(sample).into_iter().map(String::from);
        // One folder per class, for single-label data.
        let folder = |sample: &Sample, split: Split| match sample.target.class() {
            Some(class) => format!("{}/{}", split.name(), dataset.classes[class]),
            None => split.name().to_string(),
        };
        let mut images: Vec<PreparedImage> = parts
            .iter()
            .zip(Split::ALL)
            .flat_map(|(part, split)| part.samples.iter().map(move |sample| (sample, split)))
            .map(|(sample, split)| PreparedImage {
                path: format!("{}/{}", folder(sample, split), staged_name(&sample.path)),
                original: slashed(&sample.path),
                classes: names(sample).collect(),
                split,
                group: sample.group,
                sha256: sample.sha256.clone(),
                size: sample.size,
            })
            .collect();
        images.sort_by(|a, b| a.original.cmp(&b.original));
        let conflicts = dataset.conflicts();
        let splits = |members: &[usize]| {
            let splits = members.iter().filter_map(|member| dataset.samples[*member].split);
            splits.collect::<BTreeSet<_>>()
        };
        let duplicates = dataset.duplicate_groups().into_iter().map(|members| Duplicates {
            exact: members
                .iter()
                .all(|m| dataset.samples[*m].sha256 == dataset.samples[members[0]].sha256),
            conflict: conflicts.contains(&members),
            across_splits: splits(&members).len() > 1,
            members: members.iter().map(|m| slashed(&dataset.samples[*m].path)).collect(),
        });
        let by_split = |part: &Dataset| {
            part.classes.iter().cloned().zip(part.counts()).collect::<BTreeMap<_, _>>()
        };
        let name = |split: Split| split.name().to_string();
        Manifest {
            format: MANIFEST_VERSION,
            seed: self.seed,
            shares: self.shares,
            size: self.size,
            classes: dataset.classes.to_vec(),
            multi_label: dataset.multi_label,
            counts: Split::ALL.iter().zip(parts).map(|(s, p)| (name(*s), by_split(p))).collect(),
            digests: Split::ALL.iter().zip(parts).map(|(s, p)| (name(*s), p.digest())).collect(),
            left_out: (*dataset.left_out).clone(),
            notes: dataset.notes.iter().cloned().chain(notes_of_splits(dataset, parts)).collect(),
            rejects: dataset.rejects.to_vec(),
            duplicates: duplicates.collect(),
            images,
        }
    }
}

/// Notes on the splits of the raw data.
fn notes_of_splits(dataset: &Dataset, parts: &[Dataset; 3]) -> Vec<String> {
    let count = |split| dataset.samples.iter().filter(|s| s.split == split).count();
    let [none, val] = [None, Some(Split::Val)].map(count);
    let mut notes = Vec::new();
    if none == dataset.samples.len() {
        return notes;
    }
    notes.push("the splits are those that the data came with".into());
    if none > 0 {
        notes.push(format!("{none} images came without a split and are for training"));
    }
    if val == 0 {
        let made = parts[1].len();
        notes.push(format!("it came without validation images: {made} are taken from training"));
    }
    if parts[2].is_empty() {
        notes.push("it came without test images, and none are made".into());
    }
    notes
}

/// Opens a prepared folder without decoding anything.
pub(super) fn open(folder: &Path) -> Result<Dataset> {
    let path = folder.join(Manifest::FILE);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    /// Read first, as another version may have other fields.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let unreadable = |e: serde_json::Error| Error::dataset(&path, e);
    let Version { format } = serde_json::from_str(&text).map_err(unreadable)?;
    if format != MANIFEST_VERSION {
        let reason =
            format!("layout {format}, this petnet reads {MANIFEST_VERSION}: prepare it again");
        return Err(Error::dataset(&path, reason));
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(unreadable)?;
    let number = |class: &str| manifest.classes.iter().position(|known| known == class);
    let samples = manifest.images.iter().map(|image| {
        let names = image.classes.iter();
        let classes: Option<Vec<usize>> = names.clone().map(|class| number(class)).collect();
        let target = match (classes, manifest.multi_label) {
            (Some(classes), true) => {
                let distinct: BTreeSet<usize> = classes.into_iter().collect();
                Some(Target::Classes(distinct.into_iter().collect()))
            }
            (Some(classes), false) if classes.len() == 1 => Some(Target::Class(classes[0])),
            (Some(_), false) | (None, _) => None,
        };
        let target = target.ok_or_else(|| {
            let reason = format!("the classes of `{}` are not those of the data set", image.path);
            Error::dataset(&path, reason)
        })?;
        // Manifests are untrusted: a path outside of the folder is refused.
        let inside = contained(&image.path)
            .filter(|_| names.clone().all(|class| validate_class(class).is_ok()));
        let inside = inside.ok_or_else(|| {
            Error::dataset(&path, format!("`{}` leads out of the folder", image.path))
        })?;
        let (sha256, split) = (image.sha256.clone(), Some(image.split));
        let PreparedImage { group, size, .. } = *image;
        Ok(Sample { path: inside.into(), target, sha256, group, size, split })
    });
    Ok(Dataset {
        samples: samples.collect::<Result<_>>()?,
        classes: manifest.classes.into(),
        rejects: manifest.rejects.into(),
        left_out: Arc::new(manifest.left_out),
        notes: manifest.notes.into(),
        multi_label: manifest.multi_label,
        files: Arc::new(ImageFiles::open(folder)?),
    })
}

/// A unique file name of safe characters, without folders, for an image of any path.
fn staged_name(path: &Path) -> String {
    let original = slashed(path);
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
    let stem = original.rsplit_once('.').map_or(original.as_str(), |(stem, _)| stem);
    let start = stem.char_indices().nth_back(59).map_or(0, |(at, _)| at);
    let name: String = stem[start..].chars().map(safe).collect();
    // Of the raw bytes of the path: different paths that are not UTF-8 may have the same text.
    let digest = sha256(path.as_os_str().as_encoded_bytes());
    format!("{name}-{}.jpg", &digest[..8])
}

/// Renames a temporary folder to `out` and removes the earlier `out`.
fn publish(staging: &Path, out: &Path) -> Result<()> {
    let old = staging.with_extension("old");
    if out.exists() {
        fs::rename(out, &old).map_err(Error::io(out))?;
    }
    fs::rename(staging, out).map_err(|error| {
        // The old data set returns to its place; the error that is reported is the first one.
        let _ = fs::rename(&old, out);
        Error::io(out)(error)
    })?;
    // The new data set is in place; remains of the old one only take space.
    let _ = fs::remove_dir_all(&old);
    Ok(())
}
