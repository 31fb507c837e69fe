//! Inputs on disk: files, folders, globs and archives, listed with a function that reads each image. Buckets are in `cloud`.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use petnet::ImageError;
use petnet::files::{LeftOut, LeftOutCounts, WalkEntry, left_out, walk as walk_folder};
use petnet::preprocess::{Limits, SNIFFED_BYTES};

use super::listing::{ImageBytes, ImageSelector, Load};
use super::{archive, cloud};
use crate::error::UsageError;

/// Schemes of the addresses of buckets.
const SCHEMES: [&str; 3] = ["s3://", "gs://", "az://"];

/// Lists the images of one input of the command line, always in the same order.
pub(super) fn walk(input: &Path, selector: &mut ImageSelector) -> Result<()> {
    match address(input) {
        Some(address) => cloud::walk(address, selector),
        None if input.is_dir() => folder(input, &mut |found| match found {
            Ok(path) => image(path, selector),
            Err(reason) => {
                selector.leave_out(reason);
                Ok(())
            }
        }),
        None if is_pattern(input) => glob(input, selector),
        None => file(input, selector),
    }
}

/// All image files below a folder, and the number of files left out.
pub(crate) fn images_below(path: &Path) -> Result<(Vec<PathBuf>, LeftOutCounts)> {
    let (mut images, mut left_out) = (Vec::new(), LeftOutCounts::default());
    folder(path, &mut |found| {
        match found {
            Ok(path) => images.push(path.into()),
            Err(reason) => left_out.add(reason),
        }
        Ok(())
    })?;
    Ok((images, left_out))
}

/// True for the address of a bucket, such as `s3://photos`.
pub(crate) fn is_bucket(input: &Path) -> bool {
    address(input).is_some()
}

/// Copies the objects below a bucket's address, or one archive, into an empty folder; `each` is called for each object.
/// Returns the folder, or the archive in it.
pub(crate) fn copy_bucket(input: &Path, to: &Path, each: &dyn Fn()) -> Result<PathBuf> {
    let address = address(input).unwrap_or_default();
    cloud::copy(address, to, each)
}

/// Refuses a path that does not exist, before the model is loaded.
pub(super) fn require(input: &Path) -> Result<()> {
    if address(input).is_none() && !is_pattern(input) && !input.exists() {
        return Err(UsageError(format!("{}: no such file or folder", input.display())).into());
    }
    Ok(())
}

/// True for a name with wildcards.
pub(super) fn has_wildcard(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// As in a shell, `*` does not match `/`.
pub(super) const MATCH_OPTIONS: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Refuses a file that is larger than the limit.
pub(super) fn refuse_large(bytes: u64) -> Result<(), String> {
    let limit = Limits::default().max_bytes;
    if bytes > limit {
        return Err(ImageError::TooLarge { bytes, limit }.to_string());
    }
    Ok(())
}

fn address(input: &Path) -> Option<&str> {
    input.to_str().filter(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme)))
}

fn is_pattern(input: &Path) -> bool {
    // An existing file may be called `holiday[1].jpg`.
    input.to_str().is_some_and(has_wildcard) && !input.exists()
}

/// Calls `each` with every image below a folder, and with the reason for every file that is left out.
fn folder(root: &Path, each: &mut dyn FnMut(Result<&Path, LeftOut>) -> Result<()>) -> Result<()> {
    walk_folder(root, &mut |entry| match entry {
        WalkEntry::Folder(_) => Ok(()),
        WalkEntry::LeftOut(reason) => each(Err(reason)),
        WalkEntry::File(path) => {
            let name = Path::new(path.file_name().unwrap_or_default());
            each(left_out(name, || head(path)).map_or(Ok(path), Err))
        }
    })
}

/// The first bytes of a file; empty where it cannot be read.
fn head(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SNIFFED_BYTES).read_to_end(&mut bytes));
    read.map_or(Vec::new(), |_| bytes)
}

fn glob(pattern: &Path, selector: &mut ImageSelector) -> Result<()> {
    let text = pattern.to_string_lossy();
    let matches =
        glob::glob_with(&text, MATCH_OPTIONS).map_err(|e| UsageError(format!("{text}: {e}")))?;
    let mut found = false;
    for path in matches {
        let path = path.with_context(|| text.to_string())?;
        if path.is_dir() {
            continue;
        }
        found = true;
        let name = Path::new(path.file_name().unwrap_or_default());
        let is_archive = archive::ArchiveKind::of(&path.to_string_lossy()).is_some();
        match left_out(name, || head(&path)).filter(|_| !is_archive) {
            Some(reason) => selector.leave_out(reason),
            None => file(&path, selector)?,
        }
    }
    if !found {
        bail!("{text}: no file matches");
    }
    Ok(())
}

fn file(path: &Path, selector: &mut ImageSelector) -> Result<()> {
    let name = path.display().to_string();
    match archive::ArchiveKind::of(&name) {
        Some(kind) => {
            let file = File::open(path).with_context(|| name.clone())?;
            archive::walk(kind, BufReader::new(file), &name, selector)
        }
        None => image(path, selector),
    }
}

fn image(path: &Path, selector: &mut ImageSelector) -> Result<()> {
    selector.add(&path.display().to_string(), || Ok(load(path.into())))
}

fn load(path: PathBuf) -> Load {
    Box::new(move || Ok(read(&path)))
}

fn read(path: &Path) -> ImageBytes {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    refuse_large(size)?;
    fs::read(path).map_err(|e| e.to_string())
}
