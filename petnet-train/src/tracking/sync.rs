//! Transfer of a run from the store to a tracking server: only what the server lacks, and nothing twice.
//!
//! After every response, `sync.json` in the run's folder records what was sent. A request whose response was lost is sent
//! again: it is idempotent, or its result is searched for first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::Result;
use petnet::mlflow::{MetricValue, NewModel, NewRun, RemoteRecord, Server};
use serde::{Deserialize, Serialize};

use super::run::{Point, Run, RunMeta};
use crate::files;

const STATE_FILE: &str = "sync.json";
const LOCK: &str = "sync.lock";
/// Most metrics, and most parameters or tags, in a request to MLflow.
const MAX_METRICS: usize = 1000;
const MAX_PARAMS: usize = 100;

/// The parts of a run that a server has, recorded in `sync.json`.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Sent {
    run_id: String,
    experiment_id: String,
    artifacts_at: String,
    status: String,
    params: BTreeSet<String>,
    tags: BTreeMap<String, String>,
    /// Number of bytes of each metric's file that were sent.
    metrics: BTreeMap<String, u64>,
    /// Size and modification time of each file that was sent.
    artifacts: BTreeMap<String, String>,
    inputs: BTreeSet<String>,
    /// Models by their local identifiers.
    models: BTreeMap<String, SentModel>,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SentModel {
    id: String,
    complete: bool,
}

/// Identifiers of a run on a server.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) run_id: String,
    /// Identifiers of its models on the server, by their identifiers in the store.
    pub(crate) models: BTreeMap<String, String>,
}

/// A transfer in progress.
struct Transfer<'a> {
    run: &'a Run,
    server: &'a Server,
    sent: Sent,
    _lock: File,
}

/// Sends the parts of `run` that `server` lacks.
/// Errors: a [`petnet::mlflow::RequestError`] of the server, or an error of the disk. A later call continues from there.
pub(crate) fn sync(run: &Run, server: &Server) -> Result<Remote> {
    let lock = File::create(run.folder().join(LOCK))?;
    lock.lock()?;
    let sent = read(run.folder()).remove(server.uri()).unwrap_or_default();
    let mut transfer = Transfer { run, server, sent, _lock: lock };
    transfer.run()?;
    let Sent { run_id, models, .. } = transfer.sent;
    let models = models.into_iter().map(|(local, model)| (local, model.id)).collect();
    Ok(Remote { run_id, models })
}

fn read(folder: &Path) -> BTreeMap<String, Sent> {
    let text = fs::read_to_string(folder.join(STATE_FILE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

impl Transfer<'_> {
    fn run(&mut self) -> Result<()> {
        if self.sent.run_id.is_empty() {
            self.begin()?;
        }
        self.inputs()?;
        self.params_and_tags()?;
        self.metrics()?;
        let uri = self.sent.artifacts_at.clone();
        // The status is sent even if the server accepts no files.
        let files = self.artifacts(&uri).and_then(|()| self.models());
        self.status()?;
        files
    }

    fn save(&self) -> Result<()> {
        let folder = self.run.folder();
        let mut all = read(folder);
        all.insert(self.server.uri().into(), self.sent.clone());
        files::write_json(&folder.join(STATE_FILE), &all)
    }

    fn begin(&mut self) -> Result<()> {
        let experiment_id = self.server.experiment_id(&self.run.experiment()?)?;
        let RunMeta { user_id, run_name, start_time, run_id, .. } = self.run.meta();
        let run = self.server.create_run(&NewRun {
            experiment_id: &experiment_id,
            user: user_id,
            name: run_name,
            start_time: *start_time,
            origin: run_id,
        })?;
        self.sent.run_id = run.id;
        self.sent.artifacts_at = run.artifact_uri;
        self.sent.experiment_id = experiment_id;
        self.save()
    }

    fn inputs(&mut self) -> Result<()> {
        for (id, context, input) in self.run.inputs()? {
            if self.sent.inputs.contains(&id) {
                continue;
            }
            self.server.log_input(&self.sent.run_id, &input, &context)?;
            self.sent.inputs.insert(id);
            self.save()?;
        }
        Ok(())
    }

    /// Sends parameters and tags.
    fn params_and_tags(&mut self) -> Result<()> {
        let (mut params, mut tags) = (self.run.params()?, self.run.tags()?);
        params.retain(|(key, _)| !self.sent.params.contains(key));
        tags.retain(|(key, value)| self.sent.tags.get(key) != Some(value));
        for some in params.chunks(MAX_PARAMS) {
            self.server.log_params(&self.sent.run_id, some)?;
            self.sent.params.extend(some.iter().map(|(key, _)| key.clone()));
            self.save()?;
        }
        for some in tags.chunks(MAX_PARAMS) {
            self.server.log_tags(&self.sent.run_id, some)?;
            self.sent.tags.extend(some.iter().cloned());
            self.save()?;
        }
        Ok(())
    }

    fn metrics(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        let mut ends = BTreeMap::new();
        for (key, path) in self.run.metric_files()? {
            let mut offset = self.sent.metrics.get(&key).copied().unwrap_or_default();
            let mut file = BufReader::new(File::open(&path)?);
            file.seek(SeekFrom::Start(offset))?;
            let mut line = String::new();
            // A line without a line feed is still being written.
            while file.read_line(&mut line)? > 0 && line.ends_with('\n') {
                offset += line.len() as u64;
                if let Some(Point { time, value, step }) = Point::read(line.trim_end()) {
                    batch.push(MetricValue { key: key.clone(), value, timestamp: time, step });
                    ends.insert(key.clone(), offset);
                }
                line.clear();
                if batch.len() == MAX_METRICS {
                    self.send_metrics(&mut batch, &mut ends)?;
                }
            }
        }
        self.send_metrics(&mut batch, &mut ends)
    }

    fn send_metrics(
        &mut self,
        batch: &mut Vec<MetricValue>,
        ends: &mut BTreeMap<String, u64>,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.server.log_metrics(&self.sent.run_id, batch)?;
        batch.clear();
        self.sent.metrics.append(ends);
        self.save()
    }

    fn artifacts(&mut self, uri: &str) -> Result<()> {
        for (path, file) in self.run.artifacts()? {
            let size_and_time = size_and_time(&file)?;
            if self.sent.artifacts.get(&path) != Some(&size_and_time) {
                self.server.upload_artifact(uri, &path, &file)?;
                self.sent.artifacts.insert(path, size_and_time);
                self.save()?;
            }
        }
        Ok(())
    }

    fn models(&mut self) -> Result<()> {
        for model in self.run.models()? {
            let local = model.meta.model_id.clone();
            let known = self.sent.models.get(&local).cloned().unwrap_or_default();
            if known.complete {
                continue;
            }
            let RemoteRecord { id, artifact_uri } = self.server.create_model(&NewModel {
                experiment_id: &self.sent.experiment_id,
                run_id: &self.sent.run_id,
                name: &model.meta.name,
                model_type: &model.meta.model_type,
                params: &model.params()?,
                tags: &model.tags()?,
                origin: &local,
            })?;
            self.sent.models.insert(local.clone(), SentModel { id: id.clone(), complete: false });
            self.save()?;
            for (path, file) in model.artifacts()? {
                self.server.upload_artifact(&artifact_uri, &path, &file)?;
            }
            self.server.finish_model(&self.sent.run_id, &id)?;
            self.sent.models.insert(local, SentModel { id, complete: true });
            self.save()?;
        }
        Ok(())
    }

    fn status(&mut self) -> Result<()> {
        let status = self.run.meta().status();
        if self.sent.status == status.name() {
            return Ok(());
        }
        let end_time = self.run.meta().end_time;
        self.server.set_status(&self.sent.run_id, status.name(), end_time)?;
        self.sent.status = status.name().into();
        self.save()
    }
}

fn size_and_time(file: &Path) -> Result<String> {
    let meta = fs::metadata(file)?;
    let changed = humantime::format_rfc3339_nanos(meta.modified()?);
    Ok(format!("{} {changed}", meta.len()))
}
