//! Where a data set's files lie: a folder, or a zip read in place.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use zip::ZipArchive;

use crate::error::{Error, ImageError, Result};

type Archive = ZipArchive<BufReader<File>>;

/// Reads files by the names that [`Source::list`] gave; many threads may.
#[derive(Debug)]
pub(crate) enum Source {
    Folder(PathBuf),
    // One open archive a reading thread: a zip reader has a position.
    Zip { path: PathBuf, idle: Mutex<Vec<Archive>> },
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(Error::io(path))?;
        if kind.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        let archive = open_archive(path)?;
        Ok(Self::Zip { path: path.into(), idle: Mutex::new(vec![archive]) })
    }

    /// Every file's name relative to the root, `/` between parts, sorted.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Self::Folder(root) => {
                let mut names = Vec::new();
                walk(root, "", &mut names)?;
                names
            }
            Self::Zip { path, .. } => {
                let archive = open_archive(path)?;
                let names = archive.file_names().flatten().map(|name| name.into_owned());
                names.filter(|name| !name.ends_with('/')).collect()
            }
        };
        names.sort();
        Ok(names)
    }

    /// Time of the last change: of a prepared folder, its manifest's.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        let path = match self {
            Self::Folder(root) => {
                let manifest = root.join(super::Manifest::FILE);
                if manifest.is_file() { manifest } else { root.clone() }
            }
            Self::Zip { path, .. } => path.clone(),
        };
        fs::metadata(path).ok()?.modified().ok()
    }

    /// A file's bytes, at most `limit` of them.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let broken = |e: &dyn std::fmt::Display| ImageError::Broken(e.to_string());
        match self {
            Self::Folder(root) => {
                let file = File::open(root.join(name)).map_err(|e| broken(&e))?;
                let size = file.metadata().map_err(|e| broken(&e))?.len();
                read_limited(file, size, limit)
            }
            Self::Zip { path, idle } => {
                let taken = idle.lock().map_err(|e| broken(&e))?.pop();
                let mut archive = match taken {
                    Some(archive) => archive,
                    None => open_archive(path).map_err(|e| broken(&e))?,
                };
                let bytes = archive.by_name(name).map_err(|e| broken(&e)).and_then(|entry| {
                    let size = entry.size();
                    read_limited(entry, size, limit)
                });
                idle.lock().map_err(|e| broken(&e))?.push(archive);
                bytes
            }
        }
    }
}

/// `size` is what the file claims; the reader is trusted no further than `limit`.
fn read_limited(reader: impl Read, size: u64, limit: u64) -> Result<Vec<u8>, ImageError> {
    if size > limit {
        return Err(ImageError::TooLarge { bytes: size, limit });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    reader
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| ImageError::Broken(e.to_string()))?;
    let read = bytes.len() as u64;
    if read > limit { Err(ImageError::TooLarge { bytes: read, limit }) } else { Ok(bytes) }
}

fn open_archive(path: &Path) -> Result<Archive> {
    let file = File::open(path).map_err(Error::io(path))?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| {
        Error::Dataset(format!("{}: neither a folder nor a readable zip ({e})", path.display()))
    })
}

fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // `metadata` follows links to files; links to folders could make a ring and are skipped.
        let kind = entry.file_type().map_err(Error::io(entry.path()))?;
        if kind.is_dir() {
            walk(&entry.path(), &format!("{name}/"), names)?;
        } else if kind.is_file() || entry.path().is_file() {
            names.push(name);
        }
    }
    Ok(())
}
