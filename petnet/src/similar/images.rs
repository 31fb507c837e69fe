//! An index with the files that its rows came from, in a folder:
//!
//! ```text
//! images.jsonl                     layout, model and checksum; then one line per image, in the order of the rows
//! embeddings-0123456789abcdef.npy  the rows, named by their checksum
//! lock                             held while the index is written
//! ```
//!
//! The rows are written under a new name before the list that refers to them is renamed over the old one, so that a crash
//! leaves the old index or the new one.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Index, IndexError};
use crate::classifier::Classifier;
use crate::disk::{sha256, write_atomically};
use crate::error::{Error, Result};
use crate::preprocess::Pixels;

const LIST_FILE: &str = "images.jsonl";
const FORMAT_VERSION: u32 = 1;
/// Images per pass through the network.
const BATCH_SIZE: usize = 64;

/// The first line of the list.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    model_sha256: String,
    embedding_len: usize,
    embeddings_sha256: String,
}

/// A file whose embedding is in an index. It counts as changed when its size or modification time differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedImage {
    /// Path as passed to [`ImageIndex::add`].
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last modification, in nanoseconds since 1970.
    pub modified: u64,
}

/// A file that could not be embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Path of the file.
    pub path: PathBuf,
    /// The reason.
    pub reason: String,
}

/// Result of [`ImageIndex::add`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Added {
    /// Number of images that were already in the index, with the same size and time.
    pub unchanged: usize,
    /// Number of images that were new or had changed.
    pub embedded: usize,
    /// Files that could not be read, and are not in the index.
    pub unreadable: Vec<Unreadable>,
}

/// Embeddings of images by one model, and the images' paths.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// # let folder = tempfile::tempdir().unwrap();
/// # let image = folder.path().join("rex.png");
/// # image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 60])).save(&image).unwrap();
/// # let dir = folder.path().join("index");
/// use petnet::similar::ImageIndex;
/// use petnet::Classifier;
///
/// let classifier = Classifier::pretrained()?;
/// let model = "e4fd3a88a517"; // a digest of the model's file
/// let mut images = ImageIndex::new(model, &classifier);
/// images.add(&classifier, &[&image])?;
/// images.save(&dir)?;
///
/// let images = ImageIndex::open(&dir, model)?;
/// let query = classifier.embed_bytes(&std::fs::read(&image).unwrap())?;
/// let nearest = images.index().nearest(&query, 1)?[0];
/// println!("{} {:.3}", images.images()[nearest.row].path, nearest.cosine);
/// # assert!(nearest.cosine > 0.999);
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ImageIndex {
    model_sha256: String,
    index: Index,
    images: Vec<IndexedImage>,
    rows: HashMap<String, usize>,
    /// SHA-256 of the list that was read or written last; `None` for a new index.
    list_sha256: Option<String>,
}

impl ImageIndex {
    /// An empty index. `model_sha256` is the digest of the classifier's file, and is required to open the index again.
    pub fn new(model_sha256: &str, classifier: &Classifier) -> Self {
        let index = Index::new(classifier.embedding_len());
        let (images, rows) = (Vec::new(), HashMap::new());
        Self { model_sha256: model_sha256.into(), index, images, rows, list_sha256: None }
    }

    /// True where a folder holds an index.
    pub fn is_at(dir: impl AsRef<Path>) -> bool {
        dir.as_ref().join(LIST_FILE).is_file()
    }

    /// Reads an index that [`ImageIndex::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::IndexFile`] when one is cut short or was changed, or the index
    /// was made by another model.
    pub fn open(dir: impl AsRef<Path>, model_sha256: &str) -> Result<Self> {
        let path = dir.as_ref().join(LIST_FILE);
        let mut failed = None;
        loop {
            let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
            match Self::read(dir.as_ref(), &path, &text, model_sha256) {
                // A process that saves the index removes the earlier embeddings: the list is then a new one.
                Err(Error::Io { .. }) if failed.as_ref() != Some(&text) => failed = Some(text),
                result => return result,
            }
        }
    }

    /// Reads the index of a list with this path and text.
    fn read(dir: &Path, path: &Path, text: &str, model_sha256: &str) -> Result<Self> {
        let (header, images) = read_list(text).map_err(|reason| refuse(path, reason))?;
        if header.model_sha256 != model_sha256 {
            let (found, expected) = (header.model_sha256, model_sha256.into());
            return Err(refuse(path, IndexError::OtherModel { found, expected }));
        }
        let embeddings = dir.join(name(&header.embeddings_sha256));
        let (index, embeddings_sha256) = Index::read_npy(&embeddings)?;
        if embeddings_sha256 != header.embeddings_sha256 {
            return Err(refuse(&embeddings, IndexError::Checksum));
        }
        if index.len() != images.len() {
            let reason = IndexError::Rows { images: images.len(), embeddings: index.len() };
            return Err(refuse(path, reason));
        }
        if index.embedding_len() != header.embedding_len {
            let (found, expected) = (index.embedding_len(), header.embedding_len);
            return Err(refuse(&embeddings, IndexError::Length { found, expected }));
        }
        let (rows, list_sha256) = (rows(&images), Some(sha256(text.as_bytes())));
        Ok(Self { model_sha256: header.model_sha256, index, images, rows, list_sha256 })
    }

    /// Writes the index to a folder and replaces the earlier state of this index there.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::IndexFile`] with [`IndexError::Changed`] where the folder holds another index than the one
    /// that was opened or saved last, as after an update by another process.
    pub fn save(&mut self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let lock = dir.join("lock");
        let held = File::create(&lock).map_err(Error::io(&lock))?;
        // Released when the file is dropped.
        held.lock().map_err(Error::io(&lock))?;
        let list = dir.join(LIST_FILE);
        if list.is_file() {
            let found = sha256(&fs::read(&list).map_err(Error::io(&list))?);
            if self.list_sha256.as_ref() != Some(&found) {
                return Err(refuse(&list, IndexError::Changed));
            }
        }
        let partial = dir.join(".embeddings.partial");
        let embeddings_sha256 = self.write(&partial).map_err(Error::io(&partial))?;
        let embeddings = name(&embeddings_sha256);
        let path = dir.join(&embeddings);
        fs::rename(&partial, &path).map_err(Error::io(&path))?;
        let header = Header {
            format: FORMAT_VERSION,
            model_sha256: self.model_sha256.clone(),
            embedding_len: self.index.embedding_len(),
            embeddings_sha256,
        };
        let text = write_list(&header, &self.images).map_err(|e| Error::io(&list)(e.into()))?;
        write_atomically(&list, text.as_bytes())?;
        self.list_sha256 = Some(sha256(text.as_bytes()));
        remove_others(dir, &embeddings).map_err(Error::io(dir))
    }

    /// The embeddings.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The images, in the order of the rows.
    pub fn images(&self) -> &[IndexedImage] {
        &self.images
    }

    /// Adds images, and embeds them again where their size or time has changed. A file that cannot be read is listed in the
    /// result and removed from the index.
    ///
    /// # Errors
    /// [`Error::Device`] when the device fails, [`Error::Index`] where the classifier's embeddings have another length.
    pub fn add<P: AsRef<Path> + Sync>(
        &mut self,
        classifier: &Classifier,
        paths: &[P],
    ) -> Result<Added> {
        let mut added = Added::default();
        for batch in paths.chunks(BATCH_SIZE) {
            let found = batch.par_iter().map(|path| self.read_changed(classifier, path.as_ref()));
            let (mut inputs, mut images) = (Vec::new(), Vec::new());
            for (path, found) in batch.iter().zip(found.collect::<Vec<_>>()) {
                match found {
                    Ok(Some((image, pixels))) => {
                        images.push(image);
                        inputs.push(pixels);
                    }
                    Ok(None) => added.unchanged += 1,
                    Err(reason) => {
                        added.unreadable.push(Unreadable { path: path.as_ref().into(), reason });
                    }
                }
            }
            let embeddings = classifier.embed(&inputs)?;
            added.embedded += images.len();
            let mut pairs = images.into_iter().zip(embeddings);
            pairs.try_for_each(|(image, embedding)| self.put(image, &embedding))?;
        }
        let gone = added.unreadable.iter().filter_map(|file| file.path.to_str());
        let gone: HashSet<&str> = gone.filter(|path| self.rows.contains_key(*path)).collect();
        if !gone.is_empty() {
            self.retain(|image| !gone.contains(image.path.as_str()));
        }
        Ok(added)
    }

    /// Removes the images for which `keep` is false; returns their number.
    pub fn retain(&mut self, keep: impl FnMut(&IndexedImage) -> bool) -> usize {
        let before = self.images.len();
        let kept: Vec<bool> = self.images.iter().map(keep).collect();
        let mut each = kept.iter();
        self.images.retain(|_| each.next().is_some_and(|keep| *keep));
        if self.images.len() < before {
            self.index.retain(&kept);
            self.rows = rows(&self.images);
        }
        before - self.images.len()
    }

    /// Reads a file to the network's input; `None` where the index has its embedding and it has not changed.
    fn read_changed(
        &self,
        classifier: &Classifier,
        path: &Path,
    ) -> Result<Option<(IndexedImage, Pixels)>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let name = path.to_str().ok_or("its path is not UTF-8")?;
        let metadata = fs::metadata(path).map_err(|e| text(&e))?;
        let modified =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |time| time.as_nanos() as u64);
        let image = IndexedImage { path: name.into(), bytes: metadata.len(), modified };
        if self.rows.get(name).is_some_and(|row| self.images[*row] == image) {
            return Ok(None);
        }
        let bytes = fs::read(path).map_err(|e| text(&e))?;
        let pixels = classifier.preprocess(&bytes).map_err(|e| text(&e))?;
        Ok(Some((image, pixels)))
    }

    fn put(&mut self, image: IndexedImage, embedding: &[f32]) -> Result<()> {
        match self.rows.get(&image.path) {
            Some(&row) => {
                self.index.set(row, embedding)?;
                self.images[row] = image;
            }
            None => {
                self.index.push(embedding)?;
                self.rows.insert(image.path.clone(), self.images.len());
                self.images.push(image);
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> std::io::Result<String> {
        let mut to = BufWriter::new(File::create(path)?);
        let sha256 = self.index.write_npy(&mut to)?;
        to.flush()?;
        to.get_ref().sync_all()?;
        Ok(sha256)
    }
}

fn refuse(path: &Path, reason: IndexError) -> Error {
    Error::IndexFile { path: path.into(), reason }
}

/// Name of the file of the embeddings with this checksum.
fn name(sha256: &str) -> String {
    // The checksum may come from an untrusted list: it must not contain a path.
    let digits = sha256.chars().filter(char::is_ascii_hexdigit).take(16);
    format!("embeddings-{}.npy", digits.collect::<String>())
}

fn rows(images: &[IndexedImage]) -> HashMap<String, usize> {
    images.iter().enumerate().map(|(row, image)| (image.path.clone(), row)).collect()
}

fn write_list(header: &Header, images: &[IndexedImage]) -> serde_json::Result<String> {
    let mut lines = vec![serde_json::to_string(header)?];
    for image in images {
        lines.push(serde_json::to_string(image)?);
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

fn read_list(text: &str) -> Result<(Header, Vec<IndexedImage>), IndexError> {
    #[derive(Deserialize)]
    struct Layout {
        format: u32,
    }
    let wrong = |line: usize, e: serde_json::Error| {
        let reason = e.to_string();
        IndexError::Line { line: line + 1, reason }
    };
    let mut lines = text.lines().enumerate();
    let first = lines.next().unwrap_or_default().1;
    // Another layout may have other fields.
    let Layout { format } = serde_json::from_str(first).map_err(|e| wrong(0, e))?;
    if format != FORMAT_VERSION {
        return Err(IndexError::Format { found: format, expected: FORMAT_VERSION });
    }
    let header = serde_json::from_str(first).map_err(|e| wrong(0, e))?;
    let images = lines.map(|(at, line)| serde_json::from_str(line).map_err(|e| wrong(at, e)));
    Ok((header, images.collect::<Result<_, _>>()?))
}

/// Removes earlier embeddings.
fn remove_others(dir: &Path, kept: &str) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("embeddings-") && name.ends_with(".npy") && name != kept {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
