//! Data sets of labelled images from folders and archives of common layouts: images are decoded once to validate them,
//! duplicates are grouped, and splits keep each group together.

mod duplicates;
mod labels;
mod layout;
mod notes;
mod prepare;
mod read;
mod target;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use labels::{Label, LabelOptions, Labels};
pub use layout::Layout;
pub use prepare::{Duplicates, Manifest, Prepare, PreparedImage};
pub use read::{Pattern, Reading};
pub use target::Target;

use crate::disk::sha256;
use crate::error::{Error, Result};
use crate::files::{ImageFiles, LeftOutCounts, class_key};
use crate::preprocess::{Limits, Pixels, Preprocess};

const DEFAULT_SEED: u64 = 42;
/// Largest number of a model's classes that an error message lists.
const MAX_NAMED_CLASSES: usize = 20;

fn wrong_shares(shares: [f64; 3]) -> Error {
    Error::Config(format!("split {shares:?} must be three shares that sum to 1"))
}

/// One of the three parts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Images to train on.
    Train,
    /// Images to choose models and settings by.
    Val,
    /// Images for the final evaluation.
    Test,
}

impl Split {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// `train`, `val` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// One readable image.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path relative to the data set's root.
    pub path: PathBuf,
    /// Its classes.
    pub target: Target,
    /// SHA-256 of the original file, in hexadecimal.
    pub sha256: String,
    /// Images with the same number are duplicates of each other.
    pub group: usize,
    /// Width and height of the original in pixels, where they are known.
    pub size: Option<(u32, u32)>,
    /// The split that `prepare` assigned, or that the raw data has.
    pub split: Option<Split>,
}

/// A file that was left out, and the reason.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Name relative to the data set's root.
    pub path: String,
    /// The reason.
    pub reason: String,
}

/// Labelled images that can be decoded. A clone copies the list of samples and shares everything else.
///
/// ```
#[doc = include_str!("../doc_images.txt")]
/// let dataset = petnet::Dataset::open(images)?; // photos/cat/0.png, photos/dog/0.png, ...
/// assert_eq!(dataset.classes(), ["cat", "dog"]);
/// assert_eq!(dataset.counts(), [4, 4]);
/// assert!(dataset.rejects().is_empty(), "all were readable");
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dataset {
    classes: Arc<[String]>,
    samples: Vec<Sample>,
    rejects: Arc<[Reject]>,
    left_out: Arc<LeftOutCounts>,
    notes: Arc<[String]>,
    multi_label: bool,
    files: Arc<ImageFiles>,
}

impl Dataset {
    /// Opens a prepared folder (it has a `manifest.json`). Any other folder, and a zip or tar archive, is opened as by
    /// [`Reading`], which decodes every image once.
    ///
    /// # Errors
    /// As [`Reading::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.join(Manifest::FILE).is_file() {
            return prepare::open(path);
        }
        Reading::default().open(path)
    }

    /// Class names, sorted; a sample's target counts from 0 in this order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The images, sorted by path unless a split shuffled them.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// True where there are no images.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Images that were left out.
    pub fn rejects(&self) -> &[Reject] {
        &self.rejects
    }

    /// Number of files that were left out, by reason; those of [`Dataset::rejects`] among them.
    pub fn left_out(&self) -> &LeftOutCounts {
        &self.left_out
    }

    /// Notes for users on how the data was read: its layout, classes that were merged, folders without images.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// True where an image may have any number of classes, see [`Reading::multi_label`].
    pub fn is_multi_label(&self) -> bool {
        self.multi_label
    }

    /// Names of a sample's classes.
    pub fn class_names(&self, sample: &Sample) -> Vec<&str> {
        sample.target.classes().iter().map(|class| self.classes[*class].as_str()).collect()
    }

    /// Images per class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for class in self.samples.iter().flat_map(|sample| sample.target.classes()) {
            counts[*class] += 1;
        }
        counts
    }

    /// Indices of duplicates, one list a group of two or more.
    pub fn duplicate_groups(&self) -> Vec<Vec<usize>> {
        self.groups().into_values().filter(|members| members.len() > 1).collect()
    }

    /// Indices of the images of each group.
    fn groups(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, sample) in self.samples.iter().enumerate() {
            groups.entry(sample.group).or_default().push(index);
        }
        groups
    }

    /// Groups of duplicates with different labels: at least one label of each group is wrong.
    pub fn conflicts(&self) -> Vec<Vec<usize>> {
        let target = |index: &usize| &self.samples[*index].target;
        let mut groups = self.duplicate_groups();
        groups.retain(|members| members.iter().any(|m| target(m) != target(&members[0])));
        groups
    }

    /// Two parts, the first with `share` of each class (0 to 1). Duplicates are in the same part.
    ///
    /// # Errors
    /// [`Error::Config`] when `share` is not between 0 and 1.
    pub fn split(&self, share: f64) -> Result<(Self, Self)> {
        let [train, val, _] = self.split_three([share, 1.0 - share, 0.0], DEFAULT_SEED)?;
        Ok((train, val))
    }

    /// Training, validation and test parts with these shares of each class; for multi-label data, with about these shares
    /// of the images and of each class that is not too rare. The result depends on the files' contents and the seed, not
    /// on their order, their names or the machine.
    ///
    /// # Errors
    /// [`Error::Config`] when the shares are negative or do not sum to 1.
    pub fn split_three(&self, shares: [f64; 3], seed: u64) -> Result<[Self; 3]> {
        if shares.iter().any(|s| s.is_nan() || *s < 0.0)
            || (shares.iter().sum::<f64>() - 1.0).abs() > 1e-6
        {
            return Err(wrong_shares(shares));
        }
        let assigned = self.split_assignment(shares, seed);
        Ok(Split::ALL.map(|split| {
            let samples = self.samples.iter().zip(&assigned).filter(|(_, s)| **s == split);
            self.with_samples(split, samples.map(|(sample, _)| sample))
        }))
    }

    /// Training, validation and test parts: the splits of the raw data, or those of [`Dataset::split_three`] where it has
    /// none. Raw data with splits but without validation images gets these from its training images; without test images
    /// the test part is empty.
    ///
    /// # Errors
    /// As [`Dataset::split_three`].
    pub fn parts(&self, shares: [f64; 3], seed: u64) -> Result<[Self; 3]> {
        if self.samples.iter().all(|sample| sample.split.is_none()) {
            return self.split_three(shares, seed);
        }
        let of = |split: Split| {
            let belongs = |sample: &&Sample| sample.split.unwrap_or(Split::Train) == split;
            self.with_samples(split, self.samples.iter().filter(belongs))
        };
        let [train, val, test] = Split::ALL.map(of);
        if !val.is_empty() {
            return Ok([train, val, test]);
        }
        let [kept, taken, _] = shares;
        let share = taken / (kept + taken).max(f64::MIN_POSITIVE);
        let [train, val, _] = train.split_three([1.0 - share, share, 0.0], seed)?;
        Ok([train, val, test])
    }

    /// A part with some of the samples.
    fn with_samples<'a>(&self, split: Split, samples: impl Iterator<Item = &'a Sample>) -> Self {
        let samples = samples.map(|sample| Sample { split: Some(split), ..sample.clone() });
        Self { samples: samples.collect(), ..self.clone() }
    }

    /// The part of a prepared data set.
    ///
    /// # Errors
    /// [`Error::Dataset`] when the data set was never split, or that part is empty.
    pub fn part(&self, split: Split) -> Result<Self> {
        let part = self.with_samples(split, self.samples.iter().filter(|s| s.split == Some(split)));
        if part.is_empty() {
            return Err(Error::Dataset(format!("there is no `{}` part", split.name())));
        }
        Ok(part)
    }

    /// At most `count` images, evenly spaced.
    pub(crate) fn at_most(&self, count: usize) -> Self {
        let step = self.samples.len().div_ceil(count.max(1)).max(1);
        let samples = self.samples.iter().step_by(step).cloned();
        Self { samples: samples.collect(), ..self.clone() }
    }

    /// At most `count` images, evenly spaced, preprocessed to a network's input.
    pub(crate) fn preprocessed(&self, preprocess: Preprocess, count: usize) -> Result<Vec<Pixels>> {
        let images = self.at_most(count);
        let pixels = (0..images.len()).into_par_iter().map(|index| {
            let pixels = preprocess.run(&images.read(index)?, &Limits::default());
            let path = || images.samples[index].path.clone();
            pixels.map_err(|source| Error::ImageFile { path: path(), source })
        });
        pixels.collect()
    }

    /// The split of each image, for shares of each class; groups of duplicates stay together.
    fn split_assignment(&self, shares: [f64; 3], seed: u64) -> Vec<Split> {
        let mut shuffled: Vec<(Vec<u8>, Vec<usize>)> = self
            .groups()
            .into_values()
            .map(|members| {
                let smallest_digest = members.iter().map(|m| &self.samples[*m].sha256).min();
                let mut hash = Sha256::new();
                hash.update(seed.to_le_bytes());
                hash.update(smallest_digest.map_or("", String::as_str));
                (hash.finalize().to_vec(), members)
            })
            .collect();
        shuffled.sort();
        // Images that validation and test can still take, by class, those without a class last. A group that does not fit
        // goes to training.
        let mut counts = self.counts();
        let no_class_index = counts.len();
        let has_no_class = |sample: &&Sample| sample.target.classes().is_empty();
        counts.push(self.samples.iter().filter(has_no_class).count());
        let rounded_share = |count: usize, share: f64| (count as f64 * share).round() as usize;
        let mut remaining = [Split::Test, Split::Val].map(|split| {
            let share = shares[split as usize];
            // A class too rare to be divided must not keep its images out. The number of images is limited instead.
            let limit =
                |count: usize| if self.multi_label && count == 0 { usize::MAX } else { count };
            let classes = counts.iter().map(|count| limit(rounded_share(*count, share)));
            let images = if self.multi_label {
                rounded_share(self.samples.len(), share)
            } else {
                usize::MAX
            };
            (split, classes.chain([images]).collect::<Vec<_>>())
        });
        let mut assigned = vec![Split::Train; self.samples.len()];
        for (_, members) in shuffled {
            let mut needed = vec![0; counts.len() + 1];
            needed[counts.len()] = members.len();
            for member in &members {
                match self.samples[*member].target.classes() {
                    [] => needed[no_class_index] += 1,
                    classes => classes.iter().for_each(|class| needed[*class] += 1),
                }
            }
            let fits =
                |left: &[usize]| left.iter().zip(&needed).all(|(left, needed)| left >= needed);
            if let Some((split, left)) = remaining.iter_mut().find(|(_, left)| fits(left)) {
                left.iter_mut().zip(&needed).for_each(|(left, needed)| *left -= needed);
                members.iter().for_each(|member| assigned[*member] = *split);
            }
        }
        assigned
    }

    /// SHA-256 over the content and class of all images: equal digests mean equal data.
    pub fn digest(&self) -> String {
        let mut lines: Vec<String> = self
            .samples
            .iter()
            .map(|s| format!("{} {}\n", s.sha256, self.class_names(s).join("|")))
            .collect();
        lines.sort();
        sha256(lines.concat().as_bytes())
    }

    /// Time of the last change of the manifest, archive or folder, in seconds since 1970.
    pub(crate) fn modified(&self) -> Option<u64> {
        let since = self.files.modified()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(since.as_secs())
    }

    /// An image's encoded bytes.
    ///
    /// # Errors
    /// [`Error::ImageFile`] when the file was removed or has grown beyond the limit.
    pub fn read(&self, index: usize) -> Result<Vec<u8>> {
        let path = &self.samples[index].path;
        self.files
            .read(path, Limits::default().max_bytes)
            .map_err(|source| Error::ImageFile { path: path.clone(), source })
    }

    /// Renumbers the classes to a model's labels.
    ///
    /// # Errors
    /// [`Error::Dataset`] when a class is unknown to the model.
    pub fn with_labels(mut self, labels: &[String]) -> Result<Self> {
        let index: HashMap<String, usize> =
            labels.iter().enumerate().map(|(i, label)| (class_key(label), i)).collect();
        let renumbered = self
            .classes
            .iter()
            .map(|class| {
                index.get(&class_key(class)).copied().ok_or_else(|| {
                    let known = notes::first_names(labels, MAX_NAMED_CLASSES);
                    Error::Dataset(format!(
                        "class `{class}` is unknown to the model, which knows: {known}"
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        for sample in &mut self.samples {
            sample.target = sample.target.renumbered(&renumbered);
        }
        self.classes = labels.into();
        Ok(self)
    }
}
