//! The output folder of a long run: finished parts, and the state from which a killed run continues.
//!
//! ```text
//! _petnet.json               settings of the run; a run with other settings is refused
//! _progress-00000.json       progress of shard 0, with the digest of the paths of its images
//! part-00000-00000.parquet   shard, part; complete as soon as it exists
//! embeddings-00000-00000.npy its embeddings, with --embeddings; exists before the part does
//! _SUCCESS-00000             shard 0 is complete
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use petnet::disk::{temporary_file, write_atomically};
use serde::{Deserialize, Serialize};
use tempfile::TempPath;

use super::embeddings::{EmbeddingFile, EmbeddingFormat};
use super::listing::{Finished, PathDigest, Shard};
use super::pipeline::Row;
use super::rows::{RowHeader, RowWriter, TextWriter};
use super::{Format, cloud};
use crate::error::UsageError;

/// Settings that must be the same in all runs and shards of a folder; the content of `_petnet.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RunSettings {
    pub(super) inputs: Vec<String>,
    pub(super) model_sha256: String,
    pub(super) format: String,
    pub(super) shards: u64,
    pub(super) part_size: u64,
    /// Format of the files of embeddings.
    pub(super) embeddings: Option<String>,
}

/// Progress of a shard after its last finished part; the content of `_progress-SHARD.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ShardProgress {
    pub(super) parts: u64,
    #[serde(rename = "photos")]
    pub(super) images: u64,
    pub(super) failed: u64,
    paths: PathDigest,
}

impl ShardProgress {
    pub(super) fn finished(&self) -> Finished {
        Finished { images: self.images, paths: self.paths.clone() }
    }
}

/// The part that is being written.
struct OpenPart {
    rows: Box<dyn RowWriter>,
    embeddings: Option<EmbeddingFile>,
    partial: TempPath,
    progress: ShardProgress,
}

/// Writer of the parts of one shard.
pub(super) struct Parts {
    folder: PathBuf,
    format: Format,
    shard: Shard,
    part_size: u64,
    header: RowHeader,
    /// Format of the files of embeddings, and the length of an embedding.
    embeddings: Option<(EmbeddingFormat, usize)>,
    finished: ShardProgress,
    open: Option<OpenPart>,
}

impl Parts {
    /// Creates the folder, or continues in it.
    pub(super) fn open(
        folder: PathBuf,
        settings: &RunSettings,
        (format, shard): (Format, Shard),
        header: RowHeader,
        embeddings: Option<(EmbeddingFormat, usize)>,
    ) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let RunSettings { part_size, .. } = *settings;
        require_same_settings(&folder, settings)?;
        let progress = folder.join(format!("_progress-{:05}.json", shard.index));
        let finished = match fs::read(&progress) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| progress.display().to_string())?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => ShardProgress::default(),
            Err(e) => return Err(e).with_context(|| progress.display().to_string()),
        };
        let parts =
            Self { folder, format, shard, part_size, header, embeddings, finished, open: None };
        for number in 0..parts.finished.parts {
            let embeddings = embeddings.map(|(format, _)| parts.embeddings(number, format));
            for file in [Some(parts.part(number)), embeddings].into_iter().flatten() {
                if !file.is_file() {
                    bail!(
                        "{}: this finished part is missing: restore it or use another --out",
                        file.display()
                    );
                }
            }
        }
        parts.remove_partials()?;
        Ok(parts)
    }

    pub(super) fn progress(&self) -> &ShardProgress {
        &self.finished
    }

    pub(super) fn is_complete(&self) -> bool {
        self.success().is_file()
    }

    pub(super) fn add(&mut self, mut row: Row) -> Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        open.progress.images += 1;
        open.progress.failed += u64::from(row.outcome.is_err());
        open.progress.paths.add(&row.path);
        if let Some(embeddings) = &mut open.embeddings {
            embeddings.add(&row)?;
        }
        // A row writer may buffer thousands of rows and does not write embeddings.
        row.embedding = Vec::new();
        open.rows.add(row).with_context(|| open.partial.display().to_string())?;
        if open.progress.images - self.finished.images == self.part_size {
            return self.close(open);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Closes the last part and marks the shard as complete.
    pub(super) fn finish(mut self) -> Result<ShardProgress> {
        if let Some(open) = self.open.take() {
            self.close(open)?;
        }
        let summary = serde_json::to_vec(&self.finished)?;
        write_atomically(&self.success(), &summary)?;
        Ok(self.finished)
    }

    fn begin(&self) -> Result<OpenPart> {
        let part = self.part(self.finished.parts);
        let file = temporary_file(&part).with_context(|| part.display().to_string())?;
        let (file, partial) = file.into_parts();
        let rows: Box<dyn RowWriter> = match self.format {
            Format::Parquet => cloud::parquet(file, &self.header)?,
            format => Box::new(TextWriter::new(file, format, &self.header)?),
        };
        let embeddings = self.embeddings.map(|(format, len)| {
            EmbeddingFile::create(&self.embeddings(self.finished.parts, format), format, len)
        });
        let embeddings = embeddings.transpose()?;
        Ok(OpenPart { rows, embeddings, partial, progress: self.finished.clone() })
    }

    /// Renames the part first and records the progress after that: a kill in between makes the next run write the part again.
    fn close(&mut self, open: OpenPart) -> Result<()> {
        let part = self.part(self.finished.parts);
        let OpenPart { rows, embeddings, partial, mut progress } = open;
        if let Some(embeddings) = embeddings {
            embeddings.finish()?;
        }
        let renamed = rows
            .finish()
            .and_then(|file| Ok(file.sync_all()?))
            .and_then(|()| Ok(partial.persist(&part).map_err(|failed| failed.error)?));
        renamed.with_context(|| part.display().to_string())?;
        progress.parts += 1;
        let file = self.folder.join(format!("_progress-{:05}.json", self.shard.index));
        write_atomically(&file, &serde_json::to_vec(&progress)?)?;
        self.finished = progress;
        Ok(())
    }

    fn part(&self, number: u64) -> PathBuf {
        let (shard, extension) = (self.shard.index, self.format.extension());
        self.folder.join(format!("part-{shard:05}-{number:05}.{extension}"))
    }

    fn embeddings(&self, number: u64, format: EmbeddingFormat) -> PathBuf {
        let (shard, extension) = (self.shard.index, format.extension());
        self.folder.join(format!("embeddings-{shard:05}-{number:05}.{extension}"))
    }

    fn success(&self) -> PathBuf {
        self.folder.join(format!("_SUCCESS-{:05}", self.shard.index))
    }

    /// Removes temporary files of a killed run of this shard.
    fn remove_partials(&self) -> Result<()> {
        let prefixes = [".part-", ".embeddings-", "._progress-", "._SUCCESS-"]
            .map(|prefix| format!("{prefix}{:05}", self.shard.index));
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = prefixes.iter().any(|prefix| name.starts_with(prefix));
            if own && name.ends_with(".partial") {
                fs::remove_file(entry.path()).with_context(|| name)?;
            }
        }
        Ok(())
    }
}

/// Compares the settings with those that the folder was started with; a new folder records them.
fn require_same_settings(folder: &Path, own: &RunSettings) -> Result<()> {
    let path = folder.join("_petnet.json");
    if !path.is_file() {
        write_atomically(&path, &serde_json::to_vec_pretty(own)?)?;
    }
    // Read back even after writing: another shard may have written the file first.
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let recorded: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    let own = serde_json::to_value(own)?;
    for (key, own) in own.as_object().into_iter().flatten() {
        let recorded = recorded.get(key).unwrap_or(&serde_json::Value::Null);
        if recorded != own {
            return Err(UsageError(format!(
                "{} was started with other settings: {key} is {recorded} there, {own} here; use \
                 another --out",
                folder.display()
            ))
            .into());
        }
    }
    Ok(())
}
