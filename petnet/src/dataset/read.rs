//! Reading of raw images to a data set: finds the images, their classes and their splits, and counts the files that are
//! left out.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;
use regex::Regex;

use super::duplicates::{self, Fingerprint};
use super::labels::{LabelOptions, Labels, validate_class};
use super::layout::{
    DetectedLayout, ImageFolders, Layout, PathLabel, UNLABELLED_FOLDER, slashed, table_label,
    tables,
};
use super::notes::Notes;
use super::{Dataset, Reject, Sample, Split, Target};
use crate::disk::sha256;
use crate::error::{Error, ImageError, Result};
use crate::files::{ImageFiles, LeftOut, LeftOutCounts, Listing, class_key, left_out};
use crate::preprocess::{Limits, Pixels, SNIFFED_BYTES, decode_measured};

/// Side in pixels for which images are decoded: at a reduced size where both sides keep at least twice as many.
const TARGET_SIDE: u32 = 160;

/// A regular expression whose first group is the class in a file name.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

/// Patterns are equal where their texts are.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl FromStr for Pattern {
    type Err = String;

    /// Parses a regular expression with a group.
    fn from_str(text: &str) -> Result<Self, String> {
        let pattern = Regex::new(text).map_err(|error| error.to_string())?;
        if pattern.captures_len() < 2 {
            return Err(r"the class must be in a group, as in `(cat|dog)\.\d+`".into());
        }
        Ok(Self(pattern))
    }
}

impl Pattern {
    fn class(&self, path: &Path) -> Option<String> {
        let name = path.file_name()?.to_string_lossy();
        self.0.captures(&name)?.get(1).map(|class| class.as_str().to_string())
    }
}

/// Settings for reading raw images from a folder, or a zip or tar archive.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # for class in ["cat", "dog"] {
/// #     for number in 0..2_u8 {
/// #         let colour = image::Rgb([number * 60, 90, class.as_bytes()[0]]);
/// #         let image = image::RgbImage::from_pixel(16, 16, colour);
/// #         image.save(folder.path().join(format!("{class}.{number}.jpg"))).unwrap();
/// #     }
/// # }
/// # let images = folder.path();
/// use petnet::dataset::Reading;
///
/// // cat.0.jpg, cat.1.jpg, dog.0.jpg, ... in one folder, as Kaggle's archive has them
/// let reading = Reading { pattern: Some(r"(cat|dog)\.\d+".parse()?), ..Reading::default() };
/// assert_eq!(reading.open(images)?.classes(), ["cat", "dog"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Layout of the data.
    pub layout: Layout,
    /// Labels from a separate table; they override folders, see [`Label::overrides_folder`](super::Label::overrides_folder).
    pub labels: Labels,
    /// Pattern that finds the class in a file name; folders are then used for splits alone.
    pub pattern: Option<Pattern>,
    /// True where an image may have any number of classes, which tables of labels name.
    pub multi_label: bool,
    /// Limits of decoding.
    pub limits: Limits,
}

/// A decoded image.
struct Inspected {
    path: PathBuf,
    sha256: String,
    classes: Vec<String>,
    split: Option<Split>,
    fingerprint: Fingerprint,
    size: (u32, u32),
}

/// The images that were decoded, and those that were refused.
fn decoded(
    images: &[PathBuf],
    inspected: Vec<Result<Result<Inspected, LeftOut>, ImageError>>,
    left_out: &mut LeftOutCounts,
) -> (Vec<Inspected>, Vec<Reject>) {
    let (mut decoded, mut rejects) = (Vec::new(), Vec::new());
    for (path, outcome) in images.iter().zip(inspected) {
        match outcome {
            Ok(Ok(image)) => decoded.push(image),
            Ok(Err(reason)) => left_out.add(reason),
            Err(error) => {
                left_out.add(reason(&error));
                rejects.push(Reject { path: slashed(path), reason: error.to_string() });
            }
        }
    }
    (decoded, rejects)
}

impl Reading {
    /// Reads the data set and decodes every image once. `Cat`, `cat` and `cats` are one class. Files are images by their
    /// bytes, not by their names. [`Dataset::left_out`] and [`Dataset::rejects`] have the files that were left out,
    /// [`Dataset::notes`] remarks on the data.
    ///
    /// # Errors
    /// [`Error::Io`] when the path cannot be read; [`Error::Dataset`] when it has fewer than two classes (fewer than one
    /// for multi-label data), a class without a readable image, or an ambiguous layout.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Dataset> {
        self.scan(path.as_ref(), TARGET_SIDE, |_, _| Ok(()))
    }

    /// [`Reading::open`] with a function that is called with every image's path and pixels and may refuse it. The pixels
    /// may be at a reduced size of at least twice `side`. It is called from many threads, in any order.
    pub(crate) fn scan(
        &self,
        path: &Path,
        side: u32,
        each: impl Fn(&Path, &Pixels) -> Result<(), ImageError> + Sync,
    ) -> Result<Dataset> {
        if !self.multi_label && self.labels.has_several() {
            return Err(Error::Config(
                "labels name several classes: multi_label must be true".into(),
            ));
        }
        let mut files = ImageFiles::open(path)?;
        let (images, listing) = candidates(&mut files)?;
        let (found, path_labels) = self.path_labels(path, &files, &listing, &images)?;
        if self.labels.is_empty() {
            // Before all images are decoded, which may take hours.
            self.refuse_few_classes(path, &path_labels, &listing.left_out)?;
        }
        let mut notes = Notes::default();
        notes.folders_without_images(&found, &images, &listing);
        let inspect = |(name, path_label): (&PathBuf, PathLabel)| {
            let bytes = files.read(name, self.limits.max_bytes)?;
            let sha256 = sha256(&bytes);
            if self.labels.drops(&sha256) {
                return Ok(Err(LeftOut::Dropped));
            }
            let Some((classes, split)) = self.classes(name, &sha256, path_label) else {
                return Ok(Err(self.unclassed(&found)));
            };
            let (pixels, size) = decode_measured(&bytes, &self.limits, side)?;
            each(name, &pixels)?;
            let fingerprint = Fingerprint::of(&pixels)?;
            Ok(Ok(Inspected { path: name.clone(), sha256, classes, split, fingerprint, size }))
        };
        let inspected = images.par_iter().zip(path_labels.clone()).map(inspect).collect();
        let mut left_out = listing.left_out;
        let (decoded, rejects) = decoded(&images, inspected, &mut left_out);
        let of_folders = path_labels.iter().flatten().flat_map(|(classes, _)| classes);
        let of_folders =
            of_folders.filter(|class| self.labels.is_empty() && *class != UNLABELLED_FOLDER);
        let found_classes = decoded.iter().flat_map(|image| &image.classes).chain(of_folders);
        let (classes, index) = notes.classes(found_classes.map(String::as_str));
        let groups = duplicates::group(decoded.iter().map(|one| (&*one.sha256, &one.fingerprint)));
        let samples = decoded.into_iter().zip(groups).map(|(image, group)| {
            let Inspected { path, sha256, classes, split, size, .. } = image;
            let target = self.target(&classes, &index);
            Sample { path, target, sha256, group, size: Some(size), split }
        });
        let samples: Vec<Sample> = samples.collect();
        notes.0.insert(0, format!("layout: {found}"));
        if self.multi_label {
            let is_none = |sample: &&Sample| sample.target.classes().is_empty();
            let none = samples.iter().filter(is_none).count();
            notes.0.push(format!("any number of classes per image: {none} images have none"));
        }
        let dataset = Dataset {
            classes: classes.into(),
            samples,
            rejects: rejects.into(),
            left_out: Arc::new(left_out),
            notes: notes.0.into(),
            multi_label: self.multi_label,
            files: Arc::new(files),
        };
        dataset.refuse_missing_classes(path)?;
        Ok(dataset)
    }

    /// The layout, and each image's class and split by it.
    fn path_labels(
        &self,
        path: &Path,
        files: &ImageFiles,
        listing: &Listing,
        images: &[PathBuf],
    ) -> Result<(DetectedLayout, Vec<PathLabel>)> {
        let parts = ImageFolders::of(images);
        if let Some(pattern) = &self.pattern {
            let path_label = |(image, path): (usize, &PathBuf)| {
                Some((vec![pattern.class(path)?], parts.split(image)))
            };
            return Ok((
                DetectedLayout::Pattern,
                images.iter().enumerate().map(path_label).collect(),
            ));
        }
        let tables = match self.layout {
            Layout::Auto if self.labels.has_paths() => Vec::new(),
            Layout::Auto | Layout::Table => tables(&listing.files, images),
            Layout::Folders | Layout::Splits => Vec::new(),
        };
        if tables.is_empty() {
            if self.layout == Layout::Table {
                return Err(Error::dataset(path, "found no labels.csv or metadata.csv"));
            }
            // Splits without classes, and one folder of images, are valid where a table has labels by path.
            let found = match parts.layout(self.layout, path) {
                Err(_) if self.labels.has_paths() => None,
                found => found?,
            };
            let found = found.unwrap_or(DetectedLayout::Labels);
            let path_labels = parts.path_labels(&found);
            if self.labels.has_paths() && number_of_classes(&path_labels) < 2 {
                return Ok((DetectedLayout::Labels, parts.path_labels(&DetectedLayout::Labels)));
            }
            return Ok((found, path_labels));
        }
        let folders = parts.layout(self.layout, path).ok().flatten();
        let classes = folders.map_or(0, |found| number_of_classes(&parts.path_labels(&found)));
        if self.layout == Layout::Auto && classes > 1 {
            let table = tables[0].display();
            return Err(Error::dataset(
                path,
                format!(
                    "both folders and {table} may name the classes: set the layout to `folders` or `table`"
                ),
            ));
        }
        let read: Vec<(PathBuf, Labels)> = tables
            .iter()
            .map(|table| {
                let bytes = files.read(table, self.limits.max_bytes);
                let bytes =
                    bytes.map_err(|source| Error::ImageFile { path: table.clone(), source })?;
                let folder = table.parent().unwrap_or(Path::new("")).to_path_buf();
                let options =
                    LabelOptions { trust_unauthenticated: true, multi_label: self.multi_label };
                Ok((folder, Labels::parse(table, &bytes, options)?))
            })
            .collect::<Result<_>>()?;
        let path_label = |(image, path): (usize, &PathBuf)| {
            let label = read.iter().find_map(|(folder, labels)| table_label(labels, folder, path));
            label.map(|(classes, split)| (classes, split.or_else(|| parts.split(image))))
        };
        let path_labels = images.iter().enumerate().map(path_label).collect();
        Ok((DetectedLayout::Tables(tables), path_labels))
    }

    fn refuse_few_classes(
        &self,
        path: &Path,
        path_labels: &[PathLabel],
        left_out: &LeftOutCounts,
    ) -> Result<()> {
        let (classes, least) = (number_of_classes(path_labels), least_classes(self.multi_label));
        if classes >= least {
            return Ok(());
        }
        let left_out = match left_out.total() {
            0 => String::new(),
            _ => format!(" (left out: {left_out})"),
        };
        Err(few_classes(path, classes, least, &left_out))
    }

    /// The reason for which an image without a class is left out.
    fn unclassed(&self, found: &DetectedLayout) -> LeftOut {
        match found {
            DetectedLayout::Folders | DetectedLayout::SplitsAbove | DetectedLayout::SplitsBelow
                if self.labels.is_empty() =>
            {
                LeftOut::NoClass
            }
            _ => LeftOut::NoLabel,
        }
    }

    /// The classes of an image by their names.
    fn target(&self, names: &[String], index: &HashMap<String, usize>) -> Target {
        let mut classes: Vec<usize> = names.iter().map(|name| index[&class_key(name)]).collect();
        classes.sort_unstable();
        classes.dedup();
        match classes.as_slice() {
            [class] if !self.multi_label => Target::Class(*class),
            _ => Target::Classes(classes),
        }
    }

    /// Classes and split of an image, from its label or its path.
    fn classes(&self, path: &Path, sha256: &str, path_label: PathLabel) -> PathLabel {
        let folder_split = path_label.as_ref().and_then(|(_, split)| *split);
        let path_label = path_label.filter(|(classes, _)| *classes != [UNLABELLED_FOLDER]);
        let label = self.labels.of_digest(sha256).or_else(|| self.labels.of_path(&slashed(path)));
        match (label, path_label) {
            (Some(label), path_label) if label.overrides_folder || path_label.is_none() => {
                Some((label.classes.clone(), label.split.or(folder_split)))
            }
            (_, path_label) => path_label,
        }
    }
}

fn few_classes(path: &Path, classes: usize, least: usize, left_out: &str) -> Error {
    let found = format!("found {classes} class(es) with images");
    Error::dataset(path, format!("{found}, at least {least} are needed{left_out}"))
}

/// Smallest number of classes to train on.
fn least_classes(multi_label: bool) -> usize {
    if multi_label { 1 } else { 2 }
}

fn number_of_classes(path_labels: &[PathLabel]) -> usize {
    let names = path_labels.iter().flatten().flat_map(|(classes, _)| classes);
    names
        .filter(|name| *name != UNLABELLED_FOLDER)
        .map(|name| class_key(name))
        .collect::<BTreeSet<_>>()
        .len()
}

/// Files whose names have an image's extension, and others whose first bytes are an image's; and the listing of all files.
fn candidates(files: &mut ImageFiles) -> Result<(Vec<PathBuf>, Listing)> {
    let mut listing = files.list()?;
    let files = &*files;
    // A file that cannot be read counts as no image.
    let head = |file: &PathBuf| files.head(file, SNIFFED_BYTES).unwrap_or_default();
    let is_image = |file: &PathBuf| left_out(file, || head(file)).is_none();
    let is_image: Vec<bool> = listing.files.par_iter().map(is_image).collect();
    let mut images = Vec::new();
    for (file, is_image) in listing.files.iter().zip(is_image) {
        if is_image {
            images.push(file.clone());
        } else {
            listing.left_out.add(LeftOut::NoImage);
        }
    }
    Ok((images, listing))
}

fn reason(error: &ImageError) -> LeftOut {
    match error {
        ImageError::UnsupportedFormat(_) => LeftOut::UnsupportedFormat,
        ImageError::TooLarge { .. }
        | ImageError::TooLong { .. }
        | ImageError::TooManyPixels { .. }
        | ImageError::TooManyScans { .. }
        | ImageError::TooMuchMemory => LeftOut::TooLarge,
        ImageError::Empty
        | ImageError::UnknownFormat
        | ImageError::Compressed
        | ImageError::Unsupported(_)
        | ImageError::Broken(_)
        | ImageError::DecoderPanicked => LeftOut::Unreadable,
    }
}

impl Dataset {
    /// Requires enough classes, and an image of each.
    fn refuse_missing_classes(&self, path: &Path) -> Result<()> {
        let because = || {
            let first = self.rejects.first();
            let first =
                first.map(|reject| format!("; the first is {}: {}", reject.path, reject.reason));
            match self.left_out.total() {
                0 => String::new(),
                _ => format!(" (left out: {}{})", self.left_out, first.unwrap_or_default()),
            }
        };
        let (counts, classes) = (self.counts(), &self.classes);
        if let Some(class) = classes.iter().find(|class| validate_class(class).is_err()) {
            return Err(Error::dataset(path, format!("`{class}` cannot be a class's name")));
        }
        if let Some(empty) = counts.iter().position(|count| *count == 0) {
            let class = &classes[empty];
            let inside = |reject: &&Reject| {
                reject.path.split('/').any(|part| class_key(part) == class_key(class))
            };
            let first = self.rejects.iter().find(inside);
            let first = first.map(|reject| format!("; {}: {}", reject.path, reject.reason));
            let first = first.unwrap_or_else(because);
            return Err(Error::Dataset(format!("class `{class}` has no readable image{first}")));
        }
        let (number, least) = (classes.len(), least_classes(self.multi_label));
        if number < least {
            return Err(few_classes(path, number, least, &because()));
        }
        Ok(())
    }
}
