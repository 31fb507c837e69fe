//! File access of the store: paths, times, YAML files, folders, in MLflow's file layout.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files;

/// Name of the file that describes a folder.
pub(super) const META_FILE: &str = "meta.yaml";

/// The current time in milliseconds since 1970, MLflow's unit.
pub(super) fn now() -> i64 {
    millis(SystemTime::now())
}

pub(super) fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub(super) fn short_hash(text: &str) -> String {
    petnet::disk::sha256(text.as_bytes()).chars().take(32).collect()
}

pub(super) fn address(path: &Path) -> String {
    format!("file://{}", path.display())
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn write_yaml(folder: &Path, value: &impl Serialize) -> Result<()> {
    files::write(&folder.join(META_FILE), serde_yaml::to_string(value)?.as_bytes())
}

pub(super) fn read_yaml<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let file = folder.join(META_FILE);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_yaml::from_str(&text).with_context(|| file.display().to_string())
}

/// Sub-folders, sorted; empty where the folder does not exist.
pub(super) fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(path)?;
    found.retain(|entry| entry.is_dir());
    found.sort();
    Ok(found)
}

fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// All files below a folder with their relative paths, separated by slashes, sorted. Temporary files are left out.
pub(super) fn tree(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = pending.pop() {
        for entry in entries(&folder)? {
            if entry.is_dir() {
                pending.push(entry);
            } else if !file_name(&entry).starts_with('.') {
                let key = entry.strip_prefix(root).unwrap_or(&entry);
                let parts: Vec<_> = key.iter().map(|part| part.to_string_lossy()).collect();
                found.push((parts.join("/"), entry));
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn texts(root: &Path) -> Result<Vec<(String, String)>> {
    tree(root)?.into_iter().map(|(key, file)| Ok((key, fs::read_to_string(&file)?))).collect()
}
