//! Sources of images: a folder, or a zip or tar archive that is read without unpacking it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use walkdir::WalkDir;
use zip::ZipArchive;

use super::names::{part_left_out, path_left_out};
use super::{LeftOut, LeftOutCounts, entry_path};
use crate::error::{Error, ImageError, Result};

type Zip = ZipArchive<BufReader<File>>;

/// The file by which a prepared folder is recognised.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Reads files by their paths of [`ImageFiles::list`], from any number of threads.
#[derive(Debug)]
pub(crate) enum ImageFiles {
    Folder(PathBuf),
    /// A zip archive, opened once per reading thread, as a reader has a position.
    Zip {
        path: PathBuf,
        entries: HashMap<PathBuf, usize>,
        idle: Mutex<Vec<Zip>>,
    },
    /// A tar archive, with offset and length of each file.
    Tar {
        path: PathBuf,
        entries: HashMap<PathBuf, (u64, u64)>,
    },
}

/// All files and folders, by paths relative to the source, in order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) files: Vec<PathBuf>,
    /// All folders, those without files too.
    pub(crate) folders: BTreeSet<PathBuf>,
    pub(crate) left_out: LeftOutCounts,
}

impl ImageFiles {
    /// Opens a folder, or an archive recognised by its first bytes.
    /// Errors: [`Error::Io`] when it cannot be read, [`Error::Dataset`] for any other file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if fs::metadata(path).map_err(Error::io(path))?.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        let mut head = Vec::new();
        let file = File::open(path).map_err(Error::io(path))?;
        file.take(512).read_to_end(&mut head).map_err(Error::io(path))?;
        let path: PathBuf = path.into();
        if head.starts_with(b"PK") {
            return Ok(Self::Zip { path, entries: HashMap::new(), idle: Mutex::default() });
        }
        if head.get(257..262) == Some(b"ustar") {
            return Ok(Self::Tar { path, entries: HashMap::new() });
        }
        let why = match head[..] {
            [0x1f, 0x8b, ..] => "gzip: decompress it first",
            _ => "neither a folder nor a zip or tar archive",
        };
        Err(Error::dataset(&path, why))
    }

    /// Lists all files, and counts those that are left out by name or kind.
    /// Errors: [`Error::Io`] or [`Error::Dataset`] when the folder or archive cannot be read.
    pub(crate) fn list(&mut self) -> Result<Listing> {
        let mut listing = match self {
            Self::Folder(root) => list_folder(root)?,
            Self::Zip { path, entries, idle } => {
                let zip = open_zip(path)?;
                let listing = list_zip(&zip, entries);
                idle.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).push(zip);
                listing
            }
            Self::Tar { path, entries } => list_tar(path, entries)?,
        };
        listing.files.sort();
        listing.leave_out_earlier_outputs();
        Ok(listing)
    }

    /// Time of the last change; for a prepared folder, that of its manifest.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        let path = match self {
            Self::Folder(root) => {
                let manifest = root.join(MANIFEST);
                if manifest.is_file() { manifest } else { root.clone() }
            }
            Self::Zip { path, .. } | Self::Tar { path, .. } => path.clone(),
        };
        fs::metadata(path).ok()?.modified().ok()
    }

    /// A file's first bytes, at most `count`.
    pub(crate) fn head(&self, name: &Path, count: u64) -> Result<Vec<u8>, ImageError> {
        self.with(name, |reader, _| {
            let mut bytes = Vec::new();
            reader.take(count).read_to_end(&mut bytes).map_err(broken)?;
            Ok(bytes)
        })
    }

    /// A file's bytes, at most `limit` of them.
    pub(crate) fn read(&self, name: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
        self.with(name, |reader, size| read_limited(reader, size, limit))
    }

    /// Calls `read` with a file's reader and its claimed size.
    fn with<T>(
        &self,
        name: &Path,
        read: impl FnOnce(&mut dyn Read, u64) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let gone = || ImageError::Broken("it is no longer in the archive".into());
        match self {
            Self::Folder(root) => {
                let mut file = File::open(root.join(name)).map_err(broken)?;
                let size = file.metadata().map_err(broken)?.len();
                read(&mut file, size)
            }
            Self::Zip { path, entries, idle } => {
                let index = *entries.get(name).ok_or_else(gone)?;
                let taken = idle.lock().map_err(broken)?.pop();
                let mut archive = match taken {
                    Some(archive) => archive,
                    None => open_zip(path).map_err(broken)?,
                };
                let outcome = archive.by_index(index).map_err(broken).and_then(|mut entry| {
                    let size = entry.size();
                    read(&mut entry, size)
                });
                idle.lock().map_err(broken)?.push(archive);
                outcome
            }
            Self::Tar { path, entries } => {
                let (offset, size) = *entries.get(name).ok_or_else(gone)?;
                let mut file = File::open(path).map_err(broken)?;
                file.seek(SeekFrom::Start(offset)).map_err(broken)?;
                read(&mut file.take(size), size)
            }
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ImageError {
    ImageError::Broken(error.to_string())
}

/// Reads a file of a claimed `size`, but never more than `limit` bytes.
fn read_limited(reader: impl Read, size: u64, limit: u64) -> Result<Vec<u8>, ImageError> {
    if size > limit {
        return Err(ImageError::TooLarge { bytes: size, limit });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    reader.take(limit + 1).read_to_end(&mut bytes).map_err(broken)?;
    let read = bytes.len() as u64;
    if read > limit { Err(ImageError::TooLarge { bytes: read, limit }) } else { Ok(bytes) }
}

fn open_zip(path: &Path) -> Result<Zip> {
    let file = File::open(path).map_err(Error::io(path))?;
    ZipArchive::new(BufReader::new(file))
        .map_err(|e| Error::dataset(path, format!("no readable zip archive ({e})")))
}

/// An entry below a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkEntry<'a> {
    /// A folder, whose entries follow.
    Folder(&'a Path),
    /// A file whose name does not leave it out.
    File(&'a Path),
    /// A file or folder that is left out.
    LeftOut(LeftOut),
}

/// Calls `each` with all entries below a folder, in the order of their names. Symbolic links are followed, those to a
/// folder above are left out.
///
/// # Errors
/// [`Error::Io`] when a folder cannot be read, and the errors of `each`.
pub fn walk<E: From<Error>>(
    root: &Path,
    each: &mut dyn FnMut(WalkEntry) -> Result<(), E>,
) -> Result<(), E> {
    let walk = WalkDir::new(root).follow_links(true).min_depth(1).sort_by_file_name();
    let mut entries = walk.into_iter();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.loop_ancestor().is_some() => {
                each(WalkEntry::LeftOut(LeftOut::SymlinkLoop))?;
                continue;
            }
            Err(error) if error.path().is_some_and(Path::is_symlink) => {
                each(WalkEntry::LeftOut(LeftOut::BrokenLink))?;
                continue;
            }
            Err(error) => {
                let path = error.path().unwrap_or(root).to_path_buf();
                let source = error.into_io_error();
                let source = source.unwrap_or_else(|| std::io::Error::other("not listed"));
                return Err(Error::Io { path, source }.into());
            }
        };
        let is_folder = entry.file_type().is_dir();
        if let Some(reason) = part_left_out(&entry.file_name().to_string_lossy()) {
            if is_folder {
                entries.skip_current_dir();
            }
            each(WalkEntry::LeftOut(reason))?;
        } else if is_folder {
            each(WalkEntry::Folder(entry.path()))?;
        } else if entry.file_type().is_file() {
            each(WalkEntry::File(entry.path()))?;
        } else {
            each(WalkEntry::LeftOut(LeftOut::Special))?;
        }
    }
    Ok(())
}

fn list_folder(root: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    let inside = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_path_buf();
    walk::<Error>(root, &mut |entry| {
        match entry {
            WalkEntry::Folder(path) => drop(listing.folders.insert(inside(path))),
            WalkEntry::File(path) => listing.files.push(inside(path)),
            WalkEntry::LeftOut(reason) => listing.left_out.add(reason),
        }
        Ok(())
    })?;
    Ok(listing)
}

fn list_zip(zip: &Zip, places: &mut HashMap<PathBuf, usize>) -> Listing {
    let mut listing = Listing::default();
    for index in 0..zip.len() {
        let Some(Ok(name)) = zip.name_for_index(index) else {
            listing.left_out.add(LeftOut::OutsidePath);
            continue;
        };
        let is_folder = name.ends_with(['/', '\\']);
        if let Some(path) = listing.add_entry(entry_path(&name), is_folder)
            && places.insert(path, index).is_some()
        {
            listing.remove_repeated();
        }
    }
    listing
}

fn list_tar(path: &Path, places: &mut HashMap<PathBuf, (u64, u64)>) -> Result<Listing> {
    let damaged =
        |e: std::io::Error| Error::dataset(path, format!("no readable tar archive ({e})"));
    let mut listing = Listing::default();
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut tar = tar::Archive::new(BufReader::new(file));
    for entry in tar.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_contiguous() || kind.is_dir()) {
            listing.left_out.add(LeftOut::Special);
            continue;
        }
        let (offset, size) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(damaged(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let name = entry_path(&String::from_utf8_lossy(&entry.path_bytes()));
        if let Some(path) = listing.add_entry(name, kind.is_dir())
            && places.insert(path, (offset, size)).is_some()
        {
            // The later one counts, as in unpacking.
            listing.remove_repeated();
        }
    }
    Ok(listing)
}

impl Listing {
    /// Adds an archive's entry; returns the path of a file that is not left out.
    fn add_entry(&mut self, path: Option<PathBuf>, is_folder: bool) -> Option<PathBuf> {
        let Some(path) = path else {
            self.left_out.add(LeftOut::OutsidePath);
            return None;
        };
        if let Some(reason) = path_left_out(&path) {
            self.left_out.add(reason);
            return None;
        }
        let folder = if is_folder { Some(path.as_path()) } else { path.parent() };
        let above = folder.into_iter().flat_map(Path::ancestors);
        self.folders.extend(above.filter(|path| *path != Path::new("")).map(Path::to_path_buf));
        if is_folder {
            return None;
        }
        self.files.push(path.clone());
        Some(path)
    }

    /// Removes the file that was added last, as an earlier one has its name.
    fn remove_repeated(&mut self) {
        self.files.pop();
        self.left_out.add(LeftOut::SameName);
    }

    /// Leaves out prepared folders below the raw images, which would be read as classes `train`, `val` and `test`.
    fn leave_out_earlier_outputs(&mut self) {
        let manifests = self.files.iter().filter(|file| file.ends_with(MANIFEST));
        let outputs: HashSet<PathBuf> = manifests
            .filter_map(|file| file.parent())
            .filter(|folder| self.folders.contains(&folder.join("train")))
            // Not where all files are in the prepared folder: it is then the folder to read.
            .filter(|folder| !self.files.iter().all(|file| file.starts_with(folder)))
            .map(Path::to_path_buf)
            .collect();
        if outputs.is_empty() {
            return;
        }
        let inside = |path: &Path| path.ancestors().any(|above| outputs.contains(above));
        let before = self.files.len();
        self.files.retain(|file| !inside(file));
        self.folders.retain(|folder| !inside(folder));
        for _ in self.files.len()..before {
            self.left_out.add(LeftOut::EarlierOutput);
        }
    }
}
