//! Result files, written atomically: each is complete or absent.

use std::path::Path;

use anyhow::Result;
use petnet::disk::{npy_header, write_atomically};
use serde::Serialize;

/// Writes a temporary file next to `path` and renames it; creates the folder.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(write_atomically(path, bytes)?)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, &json(value)?)
}

/// Indented JSON with a line feed at the end.
pub(crate) fn json(value: &(impl Serialize + ?Sized)) -> Result<Vec<u8>> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(text.into_bytes())
}

/// A matrix of counts as a file of NumPy's, `int64`, row by row.
pub(crate) fn npy(matrix: &[Vec<usize>]) -> Vec<u8> {
    let columns = matrix.first().map_or(0, Vec::len);
    let mut bytes = npy_header("<i8", matrix.len(), columns);
    bytes.extend(matrix.iter().flatten().flat_map(|count| (*count as i64).to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn numpy_can_read_the_matrix() {
        let bytes = super::npy(&[vec![1, 2], vec![3, 4]]);
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((10 + header) % 64, 0);
        assert_eq!(bytes.len(), 10 + header + 4 * 8);
        assert_eq!(bytes[10 + header + 8], 2, "row by row");
    }
}
