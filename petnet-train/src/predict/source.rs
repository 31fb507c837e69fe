//! Where photos lie on disk: files, folders, globs, archives. It lists and says how to read; buckets are next door.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use petnet::ImageError;
use petnet::preprocess::{Limits, PICTURE_ENDINGS};

use super::listing::{Listing, Load, Photo};
use super::{archive, cloud};
use crate::config::ConfigError;

/// Schemes of the addresses of buckets.
const SCHEMES: [&str; 3] = ["s3://", "gs://", "az://"];

/// Lists the photos behind one argument of the command line, always in the same order.
pub(super) fn walk(input: &Path, listing: &mut Listing) -> Result<()> {
    match address(input) {
        Some(address) => cloud::walk(address, listing),
        None if input.is_dir() => folder(input, &mut |path| photo(path, listing)),
        None if is_pattern(input) => glob(input, listing),
        None => file(input, listing),
    }
}

/// All image files below a folder.
pub(crate) fn images_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    folder(path, &mut |path| {
        found.push(path.into());
        Ok(())
    })?;
    Ok(found)
}

/// Refuses what is certainly not there, before the work begins.
pub(super) fn require(input: &Path) -> Result<()> {
    if address(input).is_none() && !is_pattern(input) && !input.exists() {
        return Err(ConfigError(format!("{}: no such file or folder", input.display())).into());
    }
    Ok(())
}

pub(super) fn is_picture(name: &str) -> bool {
    let ending = name.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    ending.is_some_and(|(_, ending)| PICTURE_ENDINGS.iter().any(|e| e.eq_ignore_ascii_case(ending)))
}

/// Whether the name has signs that stand for others.
pub(super) fn has_wildcard(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// `*` stops at a `/`, as in a shell.
pub(super) const MATCH: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// Why a file of this size is not read, if it is too large.
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
    // A photo may be called `holiday[1].jpg`.
    input.to_str().is_some_and(has_wildcard) && !input.exists()
}

/// Folder by folder, so that no list of all photos is ever held.
fn folder(path: &Path, each: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let name = || path.display().to_string();
    let mut inside = Vec::new();
    for entry in fs::read_dir(path).with_context(name)? {
        let entry = entry.with_context(name)?;
        // Links to folders could make a ring and are skipped.
        let is_folder = entry.file_type().with_context(name)?.is_dir();
        if is_folder || (is_picture(&entry.file_name().to_string_lossy()) && !entry.path().is_dir())
        {
            inside.push((entry.path(), is_folder));
        }
    }
    inside.sort();
    for (path, is_folder) in inside {
        if is_folder {
            folder(&path, each)?;
        } else {
            each(&path)?;
        }
    }
    Ok(())
}

fn glob(pattern: &Path, listing: &mut Listing) -> Result<()> {
    let text = pattern.to_string_lossy();
    let matches = glob::glob_with(&text, MATCH).map_err(|e| ConfigError(format!("{text}: {e}")))?;
    let mut found = false;
    for path in matches {
        let path = path.with_context(|| text.to_string())?;
        let name = path.to_string_lossy();
        let wanted = is_picture(&name) || archive::Kind::of(&name).is_some();
        if wanted && !path.is_dir() {
            found = true;
            file(&path, listing)?;
        }
    }
    if !found {
        bail!("{text}: no photo or archive matches");
    }
    Ok(())
}

fn file(path: &Path, listing: &mut Listing) -> Result<()> {
    let name = path.display().to_string();
    match archive::Kind::of(&name) {
        Some(kind) => {
            let file = File::open(path).with_context(|| name.clone())?;
            archive::walk(kind, BufReader::new(file), &name, listing)
        }
        None => photo(path, listing),
    }
}

fn photo(path: &Path, listing: &mut Listing) -> Result<()> {
    listing.offer(&path.display().to_string(), || Ok(load(path.into())))
}

fn load(path: PathBuf) -> Load {
    Box::new(move || Ok(read(&path)))
}

fn read(path: &Path) -> Photo {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    refuse_large(size)?;
    fs::read(path).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_known_by_their_ending() {
        for name in ["a.jpg", "b/c.JPEG", "x.y.webp", "s3://b/k.png"] {
            assert!(is_picture(name), "{name}");
        }
        for name in ["jpg", "a.txt", "folder.jpg/readme", "Thumbs.db", ""] {
            assert!(!is_picture(name), "{name}");
        }
    }
}
