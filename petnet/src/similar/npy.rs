//! NumPy's file format for matrices of 32-bit floats (`.npy`, version 1.0), read and written row by row.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Index, IndexError, is_unit};
use crate::disk::{NPY_MAGIC as MAGIC, npy_header};
use crate::error::{Error, Result};

fn header(rows: usize, columns: usize) -> Vec<u8> {
    npy_header("<f4", rows, columns)
}

/// Writes a matrix row by row to a file that NumPy reads; the number of rows need not be known in advance.
///
/// ```
/// use petnet::similar::NpyWriter;
///
/// let mut npy = NpyWriter::new(std::io::Cursor::new(Vec::new()), 2)?;
/// npy.write_row(&[1.0, 2.0])?;
/// let bytes = npy.finish()?.into_inner();
/// assert_eq!((&bytes[1..6], bytes.len()), (&b"NUMPY"[..], 128 + 2 * 4));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct NpyWriter<W> {
    to: W,
    columns: usize,
    rows: usize,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// Starts a matrix with a number of columns, at the beginning of `to`.
    ///
    /// # Errors
    /// Errors of writing to `to`.
    pub fn new(mut to: W, columns: usize) -> io::Result<Self> {
        to.write_all(&header(0, columns))?;
        Ok(Self { to, columns, rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// Errors of writing to `to`; [`io::ErrorKind::InvalidInput`] for a row of another length.
    pub fn write_row(&mut self, row: &[f32]) -> io::Result<()> {
        if row.len() != self.columns {
            let text = format!("a row has {} values, the matrix {}", row.len(), self.columns);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.rows += 1;
        self.to.write_all(&bytes(row))
    }

    /// Writes the number of rows, flushes, and returns the writer.
    ///
    /// # Errors
    /// Errors of writing and seeking.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.seek(SeekFrom::Start(0))?;
        self.to.write_all(&header(self.rows, self.columns))?;
        self.to.seek(SeekFrom::End(0))?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn bytes(row: &[f32]) -> Vec<u8> {
    row.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl Index {
    /// Writes all rows, `[rows, embedding_len]`; returns the SHA-256 of the written bytes, in hex.
    pub(super) fn write_npy(&self, to: &mut impl Write) -> io::Result<String> {
        let mut hash = Sha256::new();
        let mut write = |bytes: &[u8]| {
            hash.update(bytes);
            to.write_all(bytes)
        };
        write(&header(self.len(), self.embedding_len))?;
        let chunks = self.values.chunks(1 << 18);
        chunks.map(bytes).try_for_each(|values| write(&values))?;
        Ok(hex::encode(hash.finalize()))
    }

    /// Reads a matrix as NumPy writes it: one embedding a row, each of norm 1 or all zeros, little-endian 32-bit floats.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::IndexFile`] when it is cut short, has another layout, or a row
    /// that is not an embedding.
    pub fn load_npy(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::read_npy(path)?.0)
    }

    /// The rows of a file, and its SHA-256 in hex.
    pub(super) fn read_npy(path: &Path) -> Result<(Self, String)> {
        let file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let read = parse(&mut BufReader::with_capacity(1 << 20, file), size);
        read.map_err(|problem| match problem {
            Problem::Io(source) => Error::Io { path: path.into(), source },
            Problem::Content(reason) => Error::IndexFile { path: path.into(), reason },
        })
    }
}

enum Problem {
    Io(io::Error),
    Content(IndexError),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends early"),
            _ => Self::Io(error),
        }
    }
}

fn damaged(reason: impl Into<String>) -> Problem {
    Problem::Content(IndexError::Npy(reason.into()))
}

/// Reads a whole file of `size` bytes.
fn parse(from: &mut impl Read, size: u64) -> Result<(Index, String), Problem> {
    let mut hash = Sha256::new();
    let mut start = [0; 10];
    from.read_exact(&mut start)?;
    let [magic @ .., low, high] = start;
    if magic != *MAGIC {
        return Err(damaged("it does not begin like a file of version 1.0"));
    }
    let mut text = vec![0; usize::from(u16::from_le_bytes([low, high]))];
    from.read_exact(&mut text)?;
    hash.update(start);
    hash.update(&text);
    let [rows, embedding_len] = shape(&String::from_utf8_lossy(&text))?;
    let held = size.saturating_sub((start.len() + text.len()) as u64);
    let values = rows.checked_mul(embedding_len).filter(|values| *values as u64 == held / 4);
    // The header's shape is checked against the file's size before memory is allocated for it.
    let Some(values) = values.filter(|_| held.is_multiple_of(4)) else {
        return Err(damaged(format!("{rows} x {embedding_len} values are not {held} bytes")));
    };
    let mut index = Index { embedding_len, values: Vec::with_capacity(values) };
    let mut row = vec![0; embedding_len * 4];
    for number in 0..rows {
        from.read_exact(&mut row)?;
        hash.update(&row);
        let (numbers, _) = row.as_chunks::<4>();
        index.values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        if !is_unit(&index.values[number * embedding_len..]) {
            return Err(Problem::Content(IndexError::Norm(number)));
        }
    }
    Ok((index, hex::encode(hash.finalize())))
}

/// Rows and columns in a description.
fn shape(text: &str) -> Result<[usize; 2], Problem> {
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest.trim_start());
    if !after("'descr':").is_some_and(|rest| rest.starts_with("'<f4'")) {
        return Err(damaged("its values are not '<f4'"));
    }
    if !after("'fortran_order':").is_some_and(|rest| rest.starts_with("False")) {
        return Err(damaged("it is stored column by column"));
    }
    let inside = after("'shape':")
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split_once(')'))
        .ok_or_else(|| damaged("it has no shape"))?
        .0;
    let sides: Vec<_> = inside.split(',').map(|side| side.trim().parse()).collect();
    match sides.as_slice() {
        [Ok(rows), Ok(columns)] if *columns > 0 || *rows == 0 => Ok([*rows, *columns]),
        _ => Err(damaged(format!("its shape is ({inside})"))),
    }
}
