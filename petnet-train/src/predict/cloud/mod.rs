//! The feature `cloud`: images in buckets, rows and embeddings as Parquet.

mod bucket;
mod parquet_embeddings;
mod parquet_rows;

use std::fs::File;

use anyhow::Result;

pub(super) use self::bucket::{copy, walk};
use super::embeddings::EmbeddingWriter;
use super::rows::{RowHeader, RowWriter};

pub(super) fn parquet(file: File, header: &RowHeader) -> Result<Box<dyn RowWriter>> {
    Ok(Box::new(parquet_rows::ParquetWriter::new(file, header)?))
}

pub(super) fn embeddings(file: File) -> Result<Box<dyn EmbeddingWriter>> {
    Ok(Box::new(parquet_embeddings::ParquetEmbeddings::new(file)?))
}

/// Fails without the feature.
#[expect(clippy::unnecessary_wraps, reason = "as in no_cloud.rs")]
pub(super) fn require(_: &str) -> Result<()> {
    Ok(())
}
