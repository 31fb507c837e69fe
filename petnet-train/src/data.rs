//! The data set behind `--data`: a prepared folder, or labelled images that are read in place.

use std::path::Path;

use anyhow::Result;
use petnet::Dataset;
use petnet::dataset::{Manifest, Reading};

use crate::error::UsageError;

/// Seed of the split of images that were not prepared.
const SPLIT_SEED: u64 = 42;

/// Opens a prepared data set, or labelled images in a folder or archive. `multi_label`, where given, is the kind that a
/// prepared data set must have; images are read as single-label by default.
pub(crate) fn read(path: &Path, multi_label: Option<bool>) -> Result<Dataset> {
    if !path.join(Manifest::FILE).is_file() {
        let reading = Reading { multi_label: multi_label.unwrap_or(false), ..Reading::default() };
        return Ok(reading.open(path)?);
    }
    let dataset = Dataset::open(path)?;
    let reason = match (multi_label, dataset.is_multi_label()) {
        (Some(true), false) => "has one label an image: prepare it with --multi-label",
        (Some(false), true) => "is a multi-label data set, but a single-label one is needed",
        (None, _) | (Some(true), true) | (Some(false), false) => return Ok(dataset),
    };
    Err(UsageError(format!("{} {reason}", path.display())).into())
}

/// Training and validation images, see [`read`].
pub(crate) fn open(path: &Path, multi_label: Option<bool>) -> Result<(Dataset, Dataset)> {
    let dataset = read(path, multi_label)?;
    for note in dataset.notes() {
        tracing::info!("{}: {note}", path.display());
    }
    if dataset.left_out().total() > 0 {
        tracing::warn!("{} files left out: {}", dataset.left_out().total(), dataset.left_out());
    }
    let [train, valid, _] = dataset.parts([0.9, 0.1, 0.0], SPLIT_SEED)?;
    Ok((train, valid))
}
