//! Files that are complete or absent, the digest by which files are known, and the header of NumPy's files. For petnet's own
//! programs as well; not part of the public interface.

use std::io::{self, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// The first bytes of NumPy's files, with the version of the format.
pub(crate) const NPY_MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00";
/// Bytes before the values of a NumPy file: magic, length, and a description that is padded to fill them.
const NPY_HEADER: usize = 128;

/// The bytes before the values of a matrix in NumPy's `.npy` format, version 1.0; its values follow row by row. `dtype` is such
/// as `<f4`.
pub fn npy_header(dtype: &str, rows: usize, columns: usize) -> Vec<u8> {
    let text =
        format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let length = NPY_HEADER - NPY_MAGIC.len() - 2;
    let padded = format!("{text:<width$}\n", width = length - 1);
    [&NPY_MAGIC[..], &(length as u16).to_le_bytes(), padded.as_bytes()].concat()
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes a temporary file in the folder of `path`, flushes it to the disk and renames it to `path`, so that a crash leaves
/// the old content or the new one.
///
/// # Errors
/// [`Error::Io`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = temporary_file(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|failed| failed.error)
    };
    write().map(drop).map_err(Error::io(path))
}

/// Creates a temporary file `.NAME.*.partial` in the folder of `path`; dropping it removes it.
///
/// # Errors
/// When it cannot be created.
pub fn temporary_file(path: &Path) -> io::Result<NamedTempFile> {
    temporary(path, 0o666, |builder, folder| builder.tempfile_in(folder))
}

/// Creates a temporary folder `.NAME.*.partial` next to `path`; dropping it removes it with its files.
///
/// # Errors
/// When it cannot be created.
pub fn temporary_folder(path: &Path) -> io::Result<TempDir> {
    temporary(path, 0o777, |builder, folder| builder.tempdir_in(folder))
}

/// Permissions are those of any new file or folder on Unix: `mode` without the bits of the process's umask.
fn temporary<T>(
    path: &Path,
    mode: u32,
    create: impl FnOnce(&Builder, &Path) -> io::Result<T>,
) -> io::Result<T> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    create(&builder, folder.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_readable_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let plain = std::fs::metadata(&path).unwrap().permissions();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions(), plain);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
        assert!(write_atomically(&folder.path().join("absent/file"), b"").is_err());
    }

    #[test]
    fn a_digest_is_in_hexadecimal_digits() {
        assert!(sha256(b"").starts_with("e3b0c44298fc1c14"));
    }
}
