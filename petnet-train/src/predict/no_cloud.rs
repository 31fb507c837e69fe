//! What stands in for `cloud` where it was not compiled in: the same doors, closed.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::embeddings::Table;
use super::listing::Listing;
use super::rows::{Model, Sheet};
use crate::error::UsageError;

pub(super) fn walk(address: &str, _: &mut Listing) -> Result<()> {
    require(address)
}

pub(super) fn copy(address: &str, _: &Path, _: &dyn Fn()) -> Result<PathBuf> {
    Err(missing(address))
}

pub(super) fn parquet(_: File, _: &Model) -> Result<Box<dyn Sheet>> {
    Err(missing("--format parquet"))
}

pub(super) fn embeddings(_: File) -> Result<Box<dyn Table>> {
    Err(missing("--embeddings in Parquet"))
}

/// Fails: `what` needs the feature.
pub(super) fn require(what: &str) -> Result<()> {
    Err(missing(what))
}

fn missing(what: &str) -> anyhow::Error {
    UsageError(format!("{what} was not compiled in: build with `--features cloud`")).into()
}
