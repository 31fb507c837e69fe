//! Embeddings in files: Parquet, or NumPy's format with the paths in a text file beside it. Each file is there whole or
//! not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use petnet::similar::NpyWriter;

use super::parts::beside;
use super::pipeline::Row;
use super::{cloud, rows::one_line};
use crate::error::UsageError;

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `[images, values]` of 32-bit floats, without those that could not be read.
    Npy,
    /// A row an image: path, list of floats, error.
    Parquet,
}

impl Form {
    const ALL: [Self; 2] = [Self::Npy, Self::Parquet];

    /// Of file names.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Parquet => "parquet",
        }
    }

    /// By a file's ending.
    ///
    /// # Errors
    /// For another ending, and for a form that was not compiled in.
    pub(super) fn of_file(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        Self::named(ending)?.ok_or_else(|| {
            let text = format!("--embeddings {}: must end in .npy or .parquet", path.display());
            UsageError(text).into()
        })
    }

    /// By its name alone.
    ///
    /// # Errors
    /// As [`Form::of_file`].
    pub(super) fn of_parts(name: &Path) -> Result<Self> {
        Self::named(name.to_str().unwrap_or_default())?.ok_or_else(|| {
            let text =
                "with --out, --embeddings is `npy` or `parquet`: each part has a file of its own";
            UsageError(text.into()).into()
        })
    }

    fn named(name: &str) -> Result<Option<Self>> {
        let form = Self::ALL.into_iter().find(|form| form.ending().eq_ignore_ascii_case(name));
        if form == Some(Self::Parquet) {
            cloud::require("--embeddings in Parquet")?;
        }
        Ok(form)
    }
}

/// A file that embeddings are written to, row by row.
pub(super) trait Table {
    fn add(&mut self, row: &Row) -> Result<()>;
    /// Writes what is left; the files, complete.
    fn finish(self: Box<Self>) -> Result<Vec<File>>;
}

/// Files that are not in their places yet.
pub(super) struct EmbeddingFile {
    table: Option<Box<dyn Table>>,
    /// Path of each temporary file, and the path it is renamed to; the embeddings' come last.
    files: Vec<(PathBuf, PathBuf)>,
}

impl EmbeddingFile {
    /// Begins a file for embeddings of `len` values.
    pub(super) fn create(path: &Path, form: Form, len: usize) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let mut begun = Self { table: None, files: Vec::new() };
        begun.table = Some(match form {
            Form::Parquet => cloud::embeddings(begun.open(path)?)?,
            Form::Npy => {
                let paths = BufWriter::new(begun.open(&path.with_extension("paths.txt"))?);
                let rows = NpyWriter::new(BufWriter::new(begun.open(path)?), len)?;
                Box::new(Matrix { paths, rows })
            }
        });
        Ok(begun)
    }

    fn open(&mut self, path: &Path) -> Result<File> {
        let partial = beside(path);
        let file = File::create(&partial).with_context(|| partial.display().to_string())?;
        self.files.push((partial, path.into()));
        Ok(file)
    }

    pub(super) fn add(&mut self, row: &Row) -> Result<()> {
        let added = self.table.as_mut().map_or(Ok(()), |table| table.add(row));
        added.with_context(|| match self.files.last() {
            Some((_, path)) => path.display().to_string(),
            None => String::new(),
        })
    }

    /// Puts the files in their places.
    pub(super) fn finish(mut self) -> Result<()> {
        let table = self.table.take().ok_or_else(|| anyhow!("the file was not begun"))?;
        for file in table.finish()? {
            file.sync_all()?;
        }
        for (partial, path) in &self.files {
            fs::rename(partial, path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

impl Drop for EmbeddingFile {
    /// Removes what did not come into its place.
    fn drop(&mut self) {
        for (partial, _) in &self.files {
            let _ = fs::remove_file(partial);
        }
    }
}

/// A `.npy` file, and a line a row in the file of paths.
struct Matrix {
    paths: BufWriter<File>,
    rows: NpyWriter<BufWriter<File>>,
}

impl Table for Matrix {
    fn add(&mut self, row: &Row) -> Result<()> {
        if row.outcome.is_ok() {
            self.rows.write_row(&row.embedding)?;
            writeln!(self.paths, "{}", one_line(&row.path))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<File>> {
        let inner = |file: BufWriter<File>| file.into_inner().map_err(|e| anyhow!(e.into_error()));
        Ok(vec![inner(self.paths)?, inner(self.rows.finish()?)?])
    }
}
