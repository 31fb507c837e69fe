//! Files of embeddings: Parquet, or NumPy's `.npy` with the paths in a text file next to it. Each file is complete or
//! absent.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use petnet::disk::temporary_file;
use petnet::similar::NpyWriter;
use tempfile::TempPath;

use super::pipeline::Row;
use super::{cloud, rows::escape_line_breaks};
use crate::error::UsageError;

/// Format of a file of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbeddingFormat {
    /// `[images, values]` of 32-bit floats, without unreadable images.
    Npy,
    /// One row per image: path, list of floats, error.
    Parquet,
}

impl EmbeddingFormat {
    /// Extension of the file's name.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Parquet => "parquet",
        }
    }

    /// The format by the extension of a file.
    /// Errors: for another extension, and for a format that was not compiled in.
    pub(super) fn of_file(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        Self::named(extension)?.ok_or_else(|| {
            let text = format!("--embeddings {}: must end in .npy or .parquet", path.display());
            UsageError(text).into()
        })
    }

    /// The format by its name alone, for runs that write parts.
    pub(super) fn of_parts(name: &Path) -> Result<Self> {
        Self::named(name.to_str().unwrap_or_default())?.ok_or_else(|| {
            let text =
                "with --out, --embeddings is `npy` or `parquet`: each part has a file of its own";
            UsageError(text.into()).into()
        })
    }

    fn named(name: &str) -> Result<Option<Self>> {
        match name.to_ascii_lowercase().as_str() {
            "npy" => Ok(Some(Self::Npy)),
            "parquet" => cloud::require("--embeddings in Parquet").map(|()| Some(Self::Parquet)),
            _ => Ok(None),
        }
    }
}

/// Writer of one file of embeddings.
pub(super) trait EmbeddingWriter {
    fn add(&mut self, row: &Row) -> Result<()>;
    /// Writes buffered rows and returns the complete files.
    fn finish(self: Box<Self>) -> Result<Vec<File>>;
}

/// A file of embeddings under a temporary name until it is complete; removed if it is dropped before.
pub(super) struct EmbeddingFile {
    writer: Box<dyn EmbeddingWriter>,
    /// Each temporary file, and the path that it is renamed to; the file of embeddings comes last.
    files: Vec<(TempPath, PathBuf)>,
}

impl EmbeddingFile {
    /// Begins a file for embeddings of `len` values.
    pub(super) fn create(path: &Path, format: EmbeddingFormat, len: usize) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let mut files = Vec::new();
        let mut open = |path: PathBuf| -> Result<File> {
            let file = temporary_file(&path).with_context(|| path.display().to_string())?;
            let (file, partial) = file.into_parts();
            files.push((partial, path));
            Ok(file)
        };
        let writer = match format {
            EmbeddingFormat::Parquet => cloud::embeddings(open(path.into())?)?,
            EmbeddingFormat::Npy => {
                let paths = BufWriter::new(open(path.with_extension("paths.txt"))?);
                let rows = NpyWriter::new(BufWriter::new(open(path.into())?), len)?;
                Box::new(NpyFile { paths, rows })
            }
        };
        Ok(Self { writer, files })
    }

    pub(super) fn add(&mut self, row: &Row) -> Result<()> {
        self.writer.add(row).with_context(|| match self.files.last() {
            Some((_, path)) => path.display().to_string(),
            None => String::new(),
        })
    }

    /// Completes the files and renames them to their final names.
    pub(super) fn finish(self) -> Result<()> {
        for file in self.writer.finish()? {
            file.sync_all()?;
        }
        for (partial, path) in self.files {
            let renamed = partial.persist(&path).map_err(|failed| failed.error);
            renamed.with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// A `.npy` file, and a text file with the path of each row on a line.
struct NpyFile {
    paths: BufWriter<File>,
    rows: NpyWriter<BufWriter<File>>,
}

impl EmbeddingWriter for NpyFile {
    fn add(&mut self, row: &Row) -> Result<()> {
        if row.outcome.is_ok() {
            self.rows.write_row(&row.embedding)?;
            writeln!(self.paths, "{}", escape_line_breaks(&row.path))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<File>> {
        let inner = |file: BufWriter<File>| file.into_inner().map_err(|e| anyhow!(e.into_error()));
        Ok(vec![inner(self.paths)?, inner(self.rows.finish()?)?])
    }
}
