//! Feature `cloud`: photos in buckets, rows as Parquet.

mod bucket;
mod columns;

use std::fs::File;

use anyhow::Result;

pub(super) use self::bucket::walk;
use super::rows::{Model, Sheet};

pub(super) fn parquet(file: File, model: &Model) -> Result<Box<dyn Sheet>> {
    Ok(Box::new(columns::ParquetSheet::new(file, model)?))
}

/// Without the feature, this fails.
#[expect(clippy::unnecessary_wraps, reason = "as in no_cloud.rs")]
pub(super) fn require(_: &str) -> Result<()> {
    Ok(())
}
