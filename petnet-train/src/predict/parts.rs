//! The folder of a long run: finished parts, and what a run that was killed needs to go on.
//!
//! ```text
//! _petnet.json               what was asked for; a run with other settings is refused
//! _progress-00000.json       what shard 0 finished, the digest of its photos' paths included
//! part-00000-00000.parquet   shard, part; complete as soon as it is there
//! embeddings-00000-00000.npy its embeddings, where they are asked for; there before the part is
//! _SUCCESS-00000             shard 0 is complete
//! ```

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::embeddings::{EmbeddingFile, Form};
use super::listing::{Done, Shard, Trail};
use super::pipeline::Row;
use super::rows::{Model, Sheet, TextSheet};
use super::{Format, cloud};
use crate::error::UsageError;

/// What must stay the same from run to run, and from shard to shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) inputs: Vec<String>,
    pub(super) model_sha256: String,
    pub(super) format: String,
    pub(super) shards: u64,
    pub(super) part_size: u64,
    /// The form of the files of embeddings.
    pub(super) embeddings: Option<String>,
}

/// What a shard finished.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) parts: u64,
    pub(super) photos: u64,
    pub(super) failed: u64,
    trail: Trail,
}

impl Progress {
    pub(super) fn done(&self) -> Done {
        Done { photos: self.photos, trail: self.trail.clone() }
    }
}

/// The part that is being written.
struct Open {
    sheet: Box<dyn Sheet>,
    embeddings: Option<EmbeddingFile>,
    partial: PathBuf,
    progress: Progress,
}

pub(super) struct Parts {
    folder: PathBuf,
    format: Format,
    shard: Shard,
    part_size: u64,
    model: Model,
    /// The form of files of embeddings, and the values of each.
    embeddings: Option<(Form, usize)>,
    finished: Progress,
    open: Option<Open>,
}

impl Parts {
    /// Makes the folder or goes on in it.
    pub(super) fn open(
        folder: PathBuf,
        record: &Record,
        (format, shard): (Format, Shard),
        model: Model,
        embeddings: Option<(Form, usize)>,
    ) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let Record { part_size, .. } = *record;
        agree(&folder, record)?;
        let progress = folder.join(format!("_progress-{:05}.json", shard.index));
        let finished = match fs::read(&progress) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| progress.display().to_string())?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Progress::default(),
            Err(e) => return Err(e).with_context(|| progress.display().to_string()),
        };
        let parts =
            Self { folder, format, shard, part_size, model, embeddings, finished, open: None };
        for number in 0..parts.finished.parts {
            let embeddings = embeddings.map(|(form, _)| parts.embeddings(number, form));
            for file in [Some(parts.part(number)), embeddings].into_iter().flatten() {
                if !file.is_file() {
                    bail!(
                        "{}: this finished part is gone: put it back or take another --out",
                        file.display()
                    );
                }
            }
        }
        parts.remove_partials()?;
        Ok(parts)
    }

    pub(super) fn progress(&self) -> &Progress {
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
        open.progress.photos += 1;
        open.progress.failed += u64::from(row.outcome.is_err());
        open.progress.trail.step(&row.path);
        if let Some(embeddings) = &mut open.embeddings {
            embeddings.add(&row)?;
        }
        // A sheet may hold thousands of rows, and has no place for this.
        row.embedding = Vec::new();
        open.sheet.add(row).with_context(|| open.partial.display().to_string())?;
        if open.progress.photos - self.finished.photos == self.part_size {
            return self.close(open);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Closes the last part and marks the shard as complete.
    pub(super) fn finish(mut self) -> Result<Progress> {
        if let Some(open) = self.open.take() {
            self.close(open)?;
        }
        let summary = serde_json::to_vec(&self.finished)?;
        replace(&self.success(), &summary)?;
        Ok(self.finished)
    }

    fn begin(&self) -> Result<Open> {
        let partial = beside(&self.part(self.finished.parts));
        let file = File::create(&partial).with_context(|| partial.display().to_string())?;
        let sheet: Box<dyn Sheet> = match self.format {
            Format::Parquet => cloud::parquet(file, &self.model)?,
            format => Box::new(TextSheet::new(file, format, &self.model)?),
        };
        let embeddings = self.embeddings.map(|(form, len)| {
            EmbeddingFile::create(&self.embeddings(self.finished.parts, form), form, len)
        });
        let embeddings = embeddings.transpose()?;
        Ok(Open { sheet, embeddings, partial, progress: self.finished.clone() })
    }

    /// The part first, then the word that it is finished: between them, a kill has it written again.
    fn close(&mut self, open: Open) -> Result<()> {
        let part = self.part(self.finished.parts);
        let Open { sheet, embeddings, partial, mut progress } = open;
        if let Some(embeddings) = embeddings {
            embeddings.finish()?;
        }
        let renamed = sheet
            .finish()
            .and_then(|file| Ok(file.sync_all()?))
            .and_then(|()| Ok(fs::rename(&partial, &part)?));
        renamed.with_context(|| part.display().to_string())?;
        progress.parts += 1;
        let file = self.folder.join(format!("_progress-{:05}.json", self.shard.index));
        replace(&file, &serde_json::to_vec(&progress)?)?;
        self.finished = progress;
        Ok(())
    }

    fn part(&self, number: u64) -> PathBuf {
        let (shard, ending) = (self.shard.index, self.format.ending());
        self.folder.join(format!("part-{shard:05}-{number:05}.{ending}"))
    }

    fn embeddings(&self, number: u64, form: Form) -> PathBuf {
        let (shard, ending) = (self.shard.index, form.ending());
        self.folder.join(format!("embeddings-{shard:05}-{number:05}.{ending}"))
    }

    fn success(&self) -> PathBuf {
        self.folder.join(format!("_SUCCESS-{:05}", self.shard.index))
    }

    /// What a killed run of this shard left.
    fn remove_partials(&self) -> Result<()> {
        let starts = [".part-", ".embeddings-", "._progress-", "._SUCCESS-"]
            .map(|start| format!("{start}{:05}", self.shard.index));
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = starts.iter().any(|start| name.starts_with(start));
            if own && name.ends_with(".partial") {
                fs::remove_file(entry.path()).with_context(|| name)?;
            }
        }
        Ok(())
    }
}

/// Compares with what the folder was begun with, or writes it down.
fn agree(folder: &Path, asked: &Record) -> Result<()> {
    let path = folder.join("_petnet.json");
    if !path.is_file() {
        replace(&path, &serde_json::to_vec_pretty(asked)?)?;
    }
    // Read back in any case: another shard may have been first.
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let begun: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    let asked = serde_json::to_value(asked)?;
    for (key, asked) in asked.as_object().into_iter().flatten() {
        let begun = begun.get(key).unwrap_or(&serde_json::Value::Null);
        if begun != asked {
            return Err(UsageError(format!(
                "{} was begun with other settings: {key} is {begun} there, {asked} here; take \
                 another --out",
                folder.display()
            ))
            .into());
        }
    }
    Ok(())
}

/// A name of no other run's: process numbers repeat from container to container.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.partial", uuid::Uuid::new_v4().simple()))
}

/// Writes a small file so that it is there whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = beside(path);
    File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| path.display().to_string())
}
