//! Class and split of an image by its path.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Split;
use super::labels::Labels;
use crate::error::{Error, Result};

/// Layout of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Detected from folders and tables; an error where it is ambiguous.
    #[default]
    Auto,
    /// One folder per class.
    Folders,
    /// Folders `train`, `val` and `test` (or `training`, `valid`, `validation`, `dev`, `testing`) above or below those of
    /// the classes.
    Splits,
    /// A table `labels.csv`, `labels.jsonl`, `metadata.csv` or `metadata.jsonl` next to the images.
    Table,
}

/// The layout that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DetectedLayout {
    /// One folder per class.
    Folders,
    /// Folders of splits with folders of classes inside.
    SplitsAbove,
    /// Folders of classes with folders of splits inside.
    SplitsBelow,
    /// Tables next to the images.
    Tables(Vec<PathBuf>),
    /// A separate table of labels, without folders of classes.
    Labels,
    /// File names from which a pattern extracts the class.
    Pattern,
}

impl fmt::Display for DetectedLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folders => f.write_str("a folder a class"),
            Self::SplitsAbove => f.write_str("a folder a split, with a folder a class inside"),
            Self::SplitsBelow => f.write_str("a folder a class, with a folder a split inside"),
            Self::Tables(tables) => {
                let names: Vec<_> =
                    tables.iter().map(|table| table.display().to_string()).collect();
                write!(f, "labels in {}", names.join(", "))
            }
            Self::Labels => f.write_str("labels by path"),
            Self::Pattern => f.write_str("labels in the files' names"),
        }
    }
}

/// Classes and split of an image by its path; `None` for an image without a class.
pub(super) type PathLabel = Option<(Vec<String>, Option<Split>)>;

impl Split {
    /// The split that a folder's name stands for.
    pub(super) fn of_folder(name: &str) -> Option<Self> {
        match name.trim().to_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "val" | "valid" | "validation" | "dev" => Some(Self::Val),
            "test" | "testing" => Some(Self::Test),
            _ => None,
        }
    }
}

/// Folder of images that get their class from a table of labels.
pub(super) const UNLABELLED_FOLDER: &str = "unlabelled";
/// File names of tables of labels.
const TABLE_FILES: [&str; 4] = ["labels.csv", "labels.jsonl", "metadata.csv", "metadata.jsonl"];

/// Tables among the files: at the root of the images, or in folders of splits.
pub(super) fn tables(files: &[PathBuf], images: &[PathBuf]) -> Vec<PathBuf> {
    let parts = ImageFolders::of(images);
    let is_table = |file: &&PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let folder: Vec<String> = components(file.parent().unwrap_or(Path::new("")));
        let below = folder.get(parts.root..).unwrap_or_default();
        let at_root = folder.len() <= parts.root;
        let in_split = matches!(below, [name] if Split::of_folder(name).is_some());
        TABLE_FILES.contains(&name.as_str()) && (at_root || in_split)
    };
    files.iter().filter(is_table).cloned().collect()
}

/// The folders above each image, without the common ones.
pub(super) struct ImageFolders {
    folders: Vec<Vec<String>>,
    /// Number of folders that are common to all images.
    pub(super) root: usize,
}

fn components(path: &Path) -> Vec<String> {
    path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
}

impl ImageFolders {
    pub(super) fn of(images: &[PathBuf]) -> Self {
        let mut folders: Vec<Vec<String>> =
            images.iter().map(|path| components(path.parent().unwrap_or(Path::new("")))).collect();
        let mut root = 0;
        while let Some(first) = folders.first().and_then(|folders| folders.get(root)).cloned() {
            let shared = folders.iter().all(|f| f.get(root) == Some(&first) && f.len() > root + 1);
            if !shared {
                break;
            }
            root += 1;
        }
        folders.iter_mut().for_each(|folders| drop(folders.drain(..root.min(folders.len()))));
        Self { folders, root }
    }

    fn level(&self, level: usize) -> BTreeSet<&str> {
        self.folders.iter().filter_map(|f| f.get(level)).map(String::as_str).collect()
    }

    fn all_splits(&self, level: usize) -> bool {
        let names = self.level(level);
        !names.is_empty() && names.iter().all(|name| Split::of_folder(name).is_some())
    }

    /// The layout of the folders, if there are any.
    /// Errors: [`Error::Dataset`] for folders of splits without folders of classes.
    fn found(&self, path: &Path) -> Result<Option<DetectedLayout>> {
        let (first, second) = (self.level(0), self.level(1));
        if first.is_empty() {
            return Ok(None);
        }
        if self.all_splits(0) && first.len() > 1 {
            if second.is_empty() {
                let names = first.into_iter().collect::<Vec<_>>().join(", ");
                return Err(Error::dataset(
                    path,
                    format!(
                        "{names} are splits, and there are no folders of classes in them: name the classes in a \
                     table of labels, or give a label pattern for the file names"
                    ),
                ));
            }
            return Ok(Some(DetectedLayout::SplitsAbove));
        }
        let below = self.all_splits(1) && first.len() > 1 && second.len() > 1;
        Ok(Some(if below { DetectedLayout::SplitsBelow } else { DetectedLayout::Folders }))
    }

    /// The requested or detected layout; `None` for images without folders.
    /// Errors: [`Error::Dataset`] where the folders do not show the classes, or not in the requested layout.
    pub(super) fn layout(&self, requested: Layout, path: &Path) -> Result<Option<DetectedLayout>> {
        match requested {
            Layout::Auto => self.found(path),
            Layout::Table => Ok(None),
            Layout::Folders if self.level(0).is_empty() => {
                Err(Error::dataset(path, "no folder has images"))
            }
            Layout::Folders => Ok(Some(DetectedLayout::Folders)),
            Layout::Splits if self.all_splits(0) => Ok(Some(DetectedLayout::SplitsAbove)),
            Layout::Splits if self.all_splits(1) => Ok(Some(DetectedLayout::SplitsBelow)),
            Layout::Splits => {
                Err(Error::dataset(path, "found no folders `train`, `val` and `test`"))
            }
        }
    }

    /// Class and split of each image by its folders.
    pub(super) fn path_labels(&self, found: &DetectedLayout) -> Vec<PathLabel> {
        let class = |name: Option<&String>| name.map(|name| vec![name.clone()]);
        let split = |name: Option<&String>| name.and_then(|name| Split::of_folder(name));
        let splits: BTreeSet<Split> = self.folders.iter().filter_map(|f| split_of(f)).collect();
        let several = splits.len() > 1;
        let path_label = |folders: &Vec<String>| match found {
            DetectedLayout::SplitsAbove => Some((class(folders.get(1))?, split(folders.first()))),
            DetectedLayout::SplitsBelow => Some((class(folders.first())?, split(folders.get(1)))),
            DetectedLayout::Folders => Some((class(folders.first())?, None)),
            // Folders may still be splits, if there are several.
            DetectedLayout::Labels => {
                let split = split_of(folders).filter(|_| several);
                Some((vec![UNLABELLED_FOLDER.into()], split))
            }
            DetectedLayout::Tables(_) | DetectedLayout::Pattern => None,
        };
        self.folders.iter().map(path_label).collect()
    }

    /// The split by an image's folders, at any level.
    pub(super) fn split(&self, image: usize) -> Option<Split> {
        split_of(&self.folders[image])
    }
}

fn split_of(folders: &[String]) -> Option<Split> {
    folders.iter().find_map(|name| Split::of_folder(name))
}

/// A path with `/` between its parts, as in tables.
pub(super) fn slashed(path: &Path) -> String {
    components(path).join("/")
}

/// An image's label in a table in `folder`.
pub(super) fn table_label(labels: &Labels, folder: &Path, image: &Path) -> PathLabel {
    let path = image.strip_prefix(folder).ok()?;
    let label = labels.of_path(&slashed(path))?;
    Some((label.classes.clone(), label.split))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(names: &[&str]) -> ImageFolders {
        ImageFolders::of(&names.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    fn found(names: &[&str]) -> Option<DetectedLayout> {
        parts(names).found(Path::new("data")).unwrap()
    }

    #[test]
    fn splits_are_distinguished_from_classes() {
        assert_eq!(found(&["cat/1.jpg", "dog/1.jpg"]), Some(DetectedLayout::Folders));
        assert_eq!(found(&["x/cat/1.jpg", "x/dog/a/1.jpg"]), Some(DetectedLayout::Folders));
        let above = ["x/Train/cat/1.jpg", "x/validation/cat/1.jpg", "x/test/dog/1.jpg"];
        assert_eq!(found(&above), Some(DetectedLayout::SplitsAbove));
        let labels = parts(&above).path_labels(&DetectedLayout::SplitsAbove);
        assert_eq!(labels[1], Some((vec!["cat".into()], Some(Split::Val))));
        let below = ["cat/training/1.jpg", "cat/dev/1.jpg", "dog/testing/1.jpg"];
        assert_eq!(found(&below), Some(DetectedLayout::SplitsBelow));
        // One split alone is a folder like any other above the classes.
        assert_eq!(found(&["train/cat/1.jpg", "train/dog/1.jpg"]), Some(DetectedLayout::Folders));
        // A class may have the name of a split.
        assert_eq!(found(&["train/1.jpg", "bus/1.jpg"]), Some(DetectedLayout::Folders));
        assert_eq!(found(&["1.jpg", "2.jpg"]), None);
        let error = parts(&["train/1.jpg", "test/1.jpg"]).found(Path::new("d")).unwrap_err();
        assert!(error.to_string().contains("label pattern"), "{error}");
    }

    #[test]
    fn tables_are_found_at_the_root_and_in_splits() {
        let images = ["d/train/1.jpg", "d/test/2.jpg"].map(PathBuf::from);
        let files = ["d/labels.csv", "d/train/metadata.csv", "d/other/labels.csv", "d/x.csv"];
        let found = tables(&files.map(PathBuf::from), &images);
        assert_eq!(found, ["d/labels.csv", "d/train/metadata.csv"].map(PathBuf::from));
    }
}
