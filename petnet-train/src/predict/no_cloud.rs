//! Stand-in for `cloud` without the feature: the same functions, which return an error.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::embeddings::EmbeddingWriter;
use super::listing::ImageSelector;
use super::rows::{RowHeader, RowWriter};
use crate::error::UsageError;

pub(super) fn walk(address: &str, _: &mut ImageSelector) -> Result<()> {
    require(address)
}

pub(super) fn copy(address: &str, _: &Path, _: &dyn Fn()) -> Result<PathBuf> {
    Err(missing(address))
}

pub(super) fn parquet(_: File, _: &RowHeader) -> Result<Box<dyn RowWriter>> {
    Err(missing("--format parquet"))
}

pub(super) fn embeddings(_: File) -> Result<Box<dyn EmbeddingWriter>> {
    Err(missing("--embeddings in Parquet"))
}

/// Returns the error that `what` needs the feature.
pub(super) fn require(what: &str) -> Result<()> {
    Err(missing(what))
}

fn missing(what: &str) -> anyhow::Error {
    UsageError(format!("{what} was not compiled in: build with `--features cloud`")).into()
}
