//! Files that are complete or absent, and the digest by which files are known.

use std::io::Write as _;
use std::path::Path;

use anyhow::Result;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes a temporary file in the folder of `path` and renames it to `path`, so that a crash leaves the old content or the new one.
/// Only the service itself may read it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
