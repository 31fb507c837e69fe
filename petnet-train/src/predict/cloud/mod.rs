//! Feature `cloud`: photos in buckets, rows as Parquet.

mod bucket;
mod columns;
mod lists;

use std::fs::File;

use anyhow::Result;

pub(super) use self::bucket::{copy, walk};
use super::embeddings::Table;
use super::rows::{Model, Sheet};

pub(super) fn parquet(file: File, model: &Model) -> Result<Box<dyn Sheet>> {
    Ok(Box::new(columns::ParquetSheet::new(file, model)?))
}

pub(super) fn embeddings(file: File) -> Result<Box<dyn Table>> {
    Ok(Box::new(lists::ListTable::new(file)?))
}

/// Without the feature, this fails.
#[expect(clippy::unnecessary_wraps, reason = "as in no_cloud.rs")]
pub(super) fn require(_: &str) -> Result<()> {
    Ok(())
}
