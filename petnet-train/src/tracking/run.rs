//! A run in the store: parameters, metrics, tags, artifacts, data sets and models.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layout::{
    address, file_name, folders, millis, now, read_yaml, short_hash, texts, tree, write_yaml,
};
use crate::files;

/// File that the process that writes a run keeps locked; the operating system releases the lock when the process ends.
const LOCK: &str = "active.lock";
/// Attempts to lock a run that is reopened, for about a second: [`Run::open`] of another process may hold the lock briefly.
const LOCK_ATTEMPTS: u32 = 20;
/// Pause before the second attempt; each further one is longer by as much.
const LOCK_DELAY: Duration = Duration::from_millis(5);

/// Status of a run, with the numbers of MLflow's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Running = 1,
    Finished = 3,
    Failed = 4,
    Killed = 5,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }

    fn of(number: i64) -> Self {
        match number {
            1 | 2 => Self::Running,
            3 => Self::Finished,
            4 => Self::Failed,
            _ => Self::Killed,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ExperimentMeta {
    pub(super) artifact_location: String,
    pub(super) creation_time: i64,
    pub(super) experiment_id: String,
    pub(super) last_update_time: i64,
    pub(super) lifecycle_stage: String,
    pub(super) name: String,
}

/// Metadata of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunMeta {
    artifact_uri: String,
    pub(crate) end_time: Option<i64>,
    entry_point_name: String,
    experiment_id: String,
    lifecycle_stage: String,
    pub(crate) run_id: String,
    pub(crate) run_name: String,
    source_name: String,
    source_type: i64,
    source_version: String,
    pub(crate) start_time: i64,
    status: i64,
    tags: Vec<String>,
    pub(crate) user_id: String,
}

impl RunMeta {
    pub(crate) fn status(&self) -> Status {
        Status::of(self.status)
    }
}

/// A data set that a run used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) name: String,
    /// At most 36 characters, the limit of MLflow's database.
    pub(crate) digest: String,
    pub(crate) source_type: String,
    /// JSON.
    pub(crate) source: String,
    /// JSON.
    pub(crate) schema: String,
    /// JSON.
    pub(crate) profile: String,
}

/// Metadata of a model that a run made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ModelMeta {
    artifact_location: String,
    pub(crate) creation_timestamp: i64,
    experiment_id: String,
    last_updated_timestamp: i64,
    pub(crate) model_id: String,
    pub(crate) model_type: String,
    pub(crate) name: String,
    pub(crate) source_run_id: String,
    status: i64,
}

#[derive(Serialize, Deserialize)]
struct Link {
    destination_id: String,
    destination_type: String,
    source_id: String,
    source_type: String,
    step: i64,
    tags: BTreeMap<String, String>,
}

/// One measured value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Milliseconds since 1970.
    pub(crate) time: i64,
    pub(crate) value: f64,
    pub(crate) step: i64,
}

impl Point {
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut parts = line.split(' ');
        let mut field = || parts.next();
        Some(Self {
            time: field()?.parse().ok()?,
            value: field()?.parse().ok()?,
            step: field()?.parse().ok()?,
        })
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    folder: PathBuf,
    meta: RunMeta,
    /// Locked while this process writes the run.
    lock: Option<File>,
}

impl Run {
    /// Creates a run in an experiment's folder and locks it.
    pub(super) fn create(experiment: &Path, name: &str, user: &str) -> Result<Self> {
        let id = Uuid::new_v4().simple().to_string();
        let folder = experiment.join(&id);
        let meta = RunMeta {
            artifact_uri: address(&folder.join("artifacts")),
            end_time: None,
            entry_point_name: String::new(),
            experiment_id: file_name(experiment),
            lifecycle_stage: "active".into(),
            run_id: id,
            run_name: name.into(),
            source_name: String::new(),
            source_type: 4,
            source_version: String::new(),
            start_time: now(),
            status: Status::Running as i64,
            tags: Vec::new(),
            user_id: user.into(),
        };
        for part in ["artifacts", "metrics", "params", "tags"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let lock = lock(&folder)?.context("another process writes this run")?;
        write_yaml(&folder, &meta)?;
        let run = Self { folder, meta, lock: Some(lock) };
        run.tag("mlflow.runName", name)?;
        Ok(run)
    }

    /// Reads a run; a running one whose process has ended is marked as killed.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        let mut run = Self { meta: read_yaml(&folder)?, folder, lock: None };
        if run.meta.status() == Status::Running
            && let Some(_held) = lock(&run.folder)?
        {
            let mut last = run.meta.start_time;
            for (_, file) in run.metric_files()? {
                last = last.max(millis(fs::metadata(&file)?.modified()?));
            }
            // Its process may have finished it after the first reading.
            run.meta = read_yaml(&run.folder)?;
            if run.meta.status() == Status::Running {
                run.mark(Status::Killed, Some(last))?;
            }
        }
        Ok(run)
    }

    pub(crate) fn id(&self) -> &str {
        &self.meta.run_id
    }

    pub(crate) fn meta(&self) -> &RunMeta {
        &self.meta
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn experiment(&self) -> Result<String> {
        Ok(read_yaml::<ExperimentMeta>(self.experiment_folder())?.name)
    }

    /// Folder of the experiment, in which runs share data sets and models.
    fn experiment_folder(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    /// A handle of the same run for another thread.
    pub(crate) fn share(&self) -> Self {
        Self { folder: self.folder.clone(), meta: self.meta.clone(), lock: None }
    }

    /// A handle with the metadata read again from the file.
    pub(crate) fn reread(&self) -> Result<Self> {
        Ok(Self { folder: self.folder.clone(), meta: read_yaml(&self.folder)?, lock: None })
    }

    /// Opens an ended run again; incomplete last lines of metrics are cut off.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let held = (0..LOCK_ATTEMPTS).find_map(|attempt| {
            std::thread::sleep(LOCK_DELAY * attempt);
            lock(&self.folder).transpose()
        });
        let held = held.transpose()?;
        self.lock = Some(held.context("another process writes this run")?);
        for (_, file) in self.metric_files()? {
            let text = fs::read(&file)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if whole < text.len() {
                File::options().write(true).open(&file)?.set_len(whole as u64)?;
            }
        }
        self.mark(Status::Running, None)
    }

    pub(crate) fn finish(&mut self, status: Status) -> Result<()> {
        self.mark(status, Some(now()))?;
        self.lock = None;
        Ok(())
    }

    fn mark(&mut self, status: Status, end: Option<i64>) -> Result<()> {
        self.meta.status = status as i64;
        self.meta.end_time = end;
        write_yaml(&self.folder, &self.meta)
    }

    pub(crate) fn tag(&self, key: &str, value: &str) -> Result<()> {
        files::write(&self.folder.join("tags").join(key), value.as_bytes())
    }

    pub(crate) fn tag_value(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("tags").join(key)).ok()
    }

    /// All tags, sorted.
    pub(crate) fn tags(&self) -> Result<Vec<(String, String)>> {
        texts(&self.folder.join("tags"))
    }

    /// Records a parameter; the first value stays.
    pub(crate) fn param(&self, key: &str, value: &str) -> Result<()> {
        let file = self.folder.join("params").join(key);
        if file.is_file() {
            return Ok(());
        }
        files::write(&file, value.as_bytes())
    }

    /// All parameters, sorted.
    pub(crate) fn params(&self) -> Result<Vec<(String, String)>> {
        texts(&self.folder.join("params"))
    }

    /// Appends a value of a metric. Values that are not finite are left out.
    pub(crate) fn metric(&self, key: &str, value: f64, step: i64) -> Result<()> {
        if !value.is_finite() {
            return Ok(());
        }
        let file = self.folder.join("metrics").join(key);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let line = format!("{} {value} {step}\n", now());
        let mut file = File::options().create(true).append(true).open(&file)?;
        Ok(file.write_all(line.as_bytes())?)
    }

    /// Key and file of each metric, sorted.
    pub(crate) fn metric_files(&self) -> Result<Vec<(String, PathBuf)>> {
        tree(&self.folder.join("metrics"))
    }

    /// Values of a metric in the order in which they were recorded.
    pub(crate) fn points(&self, key: &str) -> Vec<Point> {
        let text = fs::read_to_string(self.folder.join("metrics").join(key)).unwrap_or_default();
        text.lines().filter_map(Point::read).collect()
    }

    /// Last value of a metric.
    pub(crate) fn last(&self, key: &str) -> Option<f64> {
        self.points(key).last().map(|point| point.value)
    }

    /// Writes a file below `artifacts/`.
    pub(crate) fn artifact(&self, path: &str, bytes: &[u8]) -> Result<()> {
        files::write(&self.folder.join("artifacts").join(path), bytes)
    }

    /// Path and file of each artifact, sorted.
    pub(crate) fn artifacts(&self) -> Result<Vec<(String, PathBuf)>> {
        tree(&self.folder.join("artifacts"))
    }

    /// Records a data set and its use: training, validation or testing.
    pub(crate) fn input(&self, input: &Input, context: &str) -> Result<()> {
        let id = short_hash(&format!("{}{}{}", input.name, input.digest, input.source));
        write_yaml(&self.experiment_folder().join("datasets").join(&id), input)?;
        let link = Link {
            destination_id: id.clone(),
            destination_type: "RUN".into(),
            source_id: id.clone(),
            source_type: "DATASET".into(),
            step: 0,
            tags: [("mlflow.data.context".to_string(), context.to_string())].into(),
        };
        let folder = self.folder.join("inputs").join(short_hash(&format!("{id}{context}")));
        write_yaml(&folder, &link)
    }

    /// Each data set with the identifier of its link and its use.
    pub(crate) fn inputs(&self) -> Result<Vec<(String, String, Input)>> {
        folders(&self.folder.join("inputs"))?
            .into_iter()
            .map(|folder| {
                let link: Link = read_yaml(&folder)?;
                let input =
                    read_yaml(&self.experiment_folder().join("datasets").join(&link.source_id))?;
                let context = link.tags.get("mlflow.data.context").cloned().unwrap_or_default();
                Ok((file_name(&folder), context, input))
            })
            .collect()
    }

    /// Records a model with its files, parameters and tags.
    pub(crate) fn model(
        &self,
        files: &[(&str, Vec<u8>)],
        params: &[(String, String)],
        tags: &[(&str, &str)],
    ) -> Result<()> {
        let id = format!("m-{}", Uuid::new_v4().simple());
        let folder = self.experiment_folder().join("models").join(&id);
        for (path, bytes) in files {
            files::write(&folder.join("artifacts").join(path), bytes)?;
        }
        for (key, value) in params {
            files::write(&folder.join("params").join(key), value.as_bytes())?;
        }
        for (key, value) in tags {
            files::write(&folder.join("tags").join(key), value.as_bytes())?;
        }
        let meta = ModelMeta {
            artifact_location: address(&folder.join("artifacts")),
            creation_timestamp: now(),
            experiment_id: self.meta.experiment_id.clone(),
            last_updated_timestamp: now(),
            model_id: id.clone(),
            model_type: "petnet".into(),
            name: "model".into(),
            source_run_id: self.id().into(),
            status: 2,
        };
        write_yaml(&folder, &meta)?;
        let link = Link {
            destination_id: id.clone(),
            destination_type: "MODEL_OUTPUT".into(),
            source_id: id.clone(),
            source_type: "RUN_OUTPUT".into(),
            step: 0,
            tags: Default::default(),
        };
        write_yaml(&self.folder.join("outputs").join(&id), &link)
    }

    /// The models that this run made.
    pub(crate) fn models(&self) -> Result<Vec<LoggedModel>> {
        folders(&self.folder.join("outputs"))?
            .iter()
            .map(|link| {
                let folder = self.experiment_folder().join("models").join(file_name(link));
                Ok(LoggedModel { meta: read_yaml(&folder)?, folder })
            })
            .collect()
    }
}

/// A model that a run made, with its folder in the store.
#[derive(Debug)]
pub(crate) struct LoggedModel {
    folder: PathBuf,
    pub(crate) meta: ModelMeta,
}

impl LoggedModel {
    pub(crate) fn tag(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.folder.join("tags").join(key)).ok()
    }

    pub(crate) fn tags(&self) -> Result<Vec<(String, String)>> {
        texts(&self.folder.join("tags"))
    }

    pub(crate) fn params(&self) -> Result<Vec<(String, String)>> {
        texts(&self.folder.join("params"))
    }

    pub(crate) fn artifacts(&self) -> Result<Vec<(String, PathBuf)>> {
        tree(&self.folder.join("artifacts"))
    }
}

/// Locks a run for writing; `None` while another process has the lock.
fn lock(folder: &Path) -> Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_reopened_as_soon_as_another_process_has_released_it() {
        let experiment = tempfile::tempdir().unwrap();
        let mut run = Run::create(experiment.path(), "run", "user").unwrap();
        run.finish(Status::Finished).unwrap();
        let held = lock(run.folder()).unwrap().unwrap();
        let reopened = std::thread::spawn(move || run.reopen().map(|()| run));
        drop(held);
        let run = reopened.join().unwrap().unwrap();
        assert_eq!(run.meta().status(), Status::Running);
        assert!(lock(run.folder()).unwrap().is_none(), "it is locked again");
    }
}
