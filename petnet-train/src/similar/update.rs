//! Synchronisation of the index with folders of images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use petnet::Classifier;
use petnet::similar::{ImageIndex, Unreadable};
use serde_json::{Value, json};

use super::display_path;
use crate::error::UsageError;
use crate::predict::images_below;
use crate::terminal::{self, Output};

/// Images that are embedded between two updates of the progress bar.
const CHUNK_IMAGES: usize = 256;
/// Fewest new images after which the index is saved before the end.
const MIN_IMAGES_BEFORE_SAVE: usize = 10_000;

/// Numbers of changes to the index.
#[derive(Default)]
pub(super) struct Updated {
    embedded: usize,
    unchanged: usize,
    removed: usize,
    unreadable: Vec<Unreadable>,
}

impl Updated {
    pub(super) fn json(&self) -> Value {
        let unreadable = self
            .unreadable
            .iter()
            .map(|file| json!({ "path": file.path.to_string_lossy(), "error": file.reason }));
        json!({
            "embedded": self.embedded,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "unreadable": unreadable.collect::<Vec<_>>(),
        })
    }

    /// The numbers as a line of text; unreadable files are named on standard error.
    pub(super) fn summary(&self, images: usize) -> String {
        for Unreadable { path, reason } in &self.unreadable {
            say_error!("{}: {reason}", display_path(&path.to_string_lossy()));
        }
        let Self { embedded, unchanged, removed, unreadable } = self;
        let unreadable = unreadable.len();
        format!(
            "{images} images in the index: {embedded} embedded, {unchanged} unchanged, {removed} removed; {unreadable} \
             unreadable"
        )
    }
}

/// Synchronises the index with the images below `folders` and saves it in `dir`.
pub(super) fn run(
    images: &mut ImageIndex,
    classifier: &Classifier,
    folders: &[PathBuf],
    dir: &Path,
    output: Output,
) -> Result<Updated> {
    let (mut updated, before) = (Updated::default(), images.images().len());
    let mut paths = Vec::new();
    for folder in folders {
        let refuse = |e| UsageError(format!("{}: {e}", folder.display()));
        let root = folder.canonicalize().map_err(refuse)?;
        let (below, left_out) = images_below(&root)?;
        if left_out.total() > 0 {
            tracing::info!("{}: {} files left out: {left_out}", folder.display(), left_out.total());
        }
        let there: HashSet<&Path> = below.iter().map(PathBuf::as_path).collect();
        updated.removed += images.retain(|image| {
            let path = Path::new(&image.path);
            !path.starts_with(&root) || there.contains(path)
        });
        paths.extend(below);
    }
    // A folder may lie below another one.
    paths.sort_unstable();
    paths.dedup();
    let bar = terminal::bar(paths.len() as u64, "embedding", output);
    let mut unsaved = 0;
    for step in paths.chunks(CHUNK_IMAGES) {
        let added = images.add(classifier, step)?;
        updated.embedded += added.embedded;
        updated.unchanged += added.unchanged;
        updated.unreadable.extend(added.unreadable);
        unsaved += added.embedded;
        // Saving writes all rows. Saving each time that they have grown by half keeps the cost of saving, and the work that
        // a kill loses, in proportion to the work done.
        if unsaved >= MIN_IMAGES_BEFORE_SAVE.max(images.images().len() / 3) {
            images.save(dir)?;
            unsaved = 0;
        }
        bar.inc(step.len() as u64);
    }
    bar.finish_and_clear();
    // A file that has become unreadable changes only the number of images.
    let changed = updated.removed > 0 || images.images().len() != before;
    if unsaved > 0 || changed || !ImageIndex::is_at(dir) {
        images.save(dir)?;
    }
    Ok(updated)
}
