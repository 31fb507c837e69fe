//! Transfer of a run from the store to a tracking server: only what the server lacks, and nothing twice.
//!
//! After every response, `sync.json` in the run's folder records what was sent. A request whose response was lost is sent
//! again: it is idempotent, or its result is searched for first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, Result};
use petnet::mlflow::Server;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::run::{Model, Point, Run};
use crate::files;

const FILE: &str = "sync.json";
const LOCK: &str = "sync.lock";
/// Tag with the local identifier, by which a run or model is found again on a server.
const ORIGIN: &str = "petnet.id";
/// Most metrics, and most parameters or tags, in a request to MLflow.
const MAX_METRICS: usize = 1000;
const MAX_PARAMS: usize = 100;
/// Most characters of a parameter or tag.
const MAX_VALUE: usize = 6000;

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
///
/// # Errors
/// A [`petnet::mlflow::Failure`] of the server, or an error of the disk. A later call continues from there.
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
    let text = fs::read_to_string(folder.join(FILE)).unwrap_or_default();
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
        files::write_json(&folder.join(FILE), &all)
    }

    fn begin(&mut self) -> Result<()> {
        let experiment = self.experiment()?;
        let run = match self.find_run(&experiment)? {
            Some(run) => run,
            None => {
                let meta = self.run.meta();
                let body = json!({
                    "experiment_id": experiment,
                    "user_id": meta.user_id,
                    "run_name": meta.run_name,
                    "start_time": meta.start_time,
                    "tags": [{ "key": ORIGIN, "value": meta.run_id }],
                });
                self.server.post("runs/create", &body)?["run"].clone()
            }
        };
        let text = |name: &str| run["info"][name].as_str().map(str::to_string);
        self.sent.run_id =
            text("run_id").context("the server created a run without an identifier")?;
        self.sent.artifacts_at = text("artifact_uri").unwrap_or_default();
        self.sent.experiment_id = experiment;
        self.save()
    }

    fn experiment(&self) -> Result<String> {
        let name = self.run.experiment()?;
        let kind = json!({ "key": "mlflow.experimentKind", "value": "custom_model_development" });
        let created =
            self.server.post("experiments/create", &json!({ "name": name, "tags": [kind] }));
        match created {
            Ok(answer) => Ok(answer["experiment_id"].as_str().unwrap_or_default().into()),
            Err(failure) if failure.is("RESOURCE_ALREADY_EXISTS") => {
                let query = [("experiment_name", name.as_str())];
                let found: Value = self.server.get("experiments/get-by-name", &query)?;
                let id = found["experiment"]["experiment_id"].as_str();
                Ok(id.with_context(|| format!("experiment {name} was deleted there"))?.into())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// The run on the server that an earlier request created but whose response was lost.
    fn find_run(&self, experiment: &str) -> Result<Option<Value>> {
        let body = json!({
            "experiment_ids": [experiment],
            "filter": format!("tags.`{ORIGIN}` = '{}'", self.run.id()),
            "max_results": 1,
        });
        let found = self.server.post("runs/search", &body)?;
        Ok(found["runs"].get(0).cloned())
    }

    fn inputs(&mut self) -> Result<()> {
        for (id, context, input) in self.run.inputs()? {
            if self.sent.inputs.contains(&id) {
                continue;
            }
            let body = json!({
                "run_id": self.sent.run_id,
                "datasets": [{
                    "tags": [{ "key": "mlflow.data.context", "value": context }],
                    "dataset": input,
                }],
            });
            self.server.post("runs/log-inputs", &body)?;
            self.sent.inputs.insert(id);
            self.save()?;
        }
        Ok(())
    }

    /// Sends parameters and tags.
    fn params_and_tags(&mut self) -> Result<()> {
        let params: Vec<_> = self
            .run
            .params()?
            .into_iter()
            .filter(|(key, _)| !self.sent.params.contains(key))
            .collect();
        let tags: Vec<_> = self
            .run
            .tags()?
            .into_iter()
            .filter(|(key, value)| self.sent.tags.get(key) != Some(value))
            .collect();
        for some in params.chunks(MAX_PARAMS) {
            let body = json!({ "run_id": self.sent.run_id, "params": pairs(some) });
            self.server.post("runs/log-batch", &body)?;
            self.sent.params.extend(some.iter().map(|(key, _)| key.clone()));
            self.save()?;
        }
        for some in tags.chunks(MAX_PARAMS) {
            let body = json!({ "run_id": self.sent.run_id, "tags": pairs(some) });
            self.server.post("runs/log-batch", &body)?;
            self.sent.tags.extend(some.iter().cloned());
            self.save()?;
        }
        Ok(())
    }

    fn metrics(&mut self) -> Result<()> {
        let mut batch = Vec::new();
        let mut ends = BTreeMap::new();
        for (key, path) in self.run.metric_files()? {
            let mut at = self.sent.metrics.get(&key).copied().unwrap_or_default();
            let mut file = BufReader::new(File::open(&path)?);
            file.seek(SeekFrom::Start(at))?;
            let mut line = String::new();
            // A line without a line feed is still being written.
            while file.read_line(&mut line)? > 0 && line.ends_with('\n') {
                at += line.len() as u64;
                if let Some(Point { time, value, step }) = Point::read(line.trim_end()) {
                    batch.push(json!({
                        "key": key, "value": value, "timestamp": time, "step": step,
                    }));
                    ends.insert(key.clone(), at);
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
        batch: &mut Vec<Value>,
        ends: &mut BTreeMap<String, u64>,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let body = json!({ "run_id": self.sent.run_id, "metrics": std::mem::take(batch) });
        self.server.post("runs/log-batch", &body)?;
        self.sent.metrics.append(ends);
        self.save()
    }

    fn artifacts(&mut self, uri: &str) -> Result<()> {
        let files = self.run.artifacts()?;
        if files.is_empty() {
            return Ok(());
        }
        let folder = self.server.place(uri)?;
        for (path, file) in files {
            let stamp = stamp(&file)?;
            if self.sent.artifacts.get(&path) != Some(&stamp) {
                self.server.upload(&format!("{folder}/{path}"), &file)?;
                self.sent.artifacts.insert(path, stamp);
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
            let there = self.begin_model(&model)?;
            let id = there["info"]["model_id"].as_str().unwrap_or_default().to_string();
            self.sent.models.insert(local.clone(), SentModel { id: id.clone(), complete: false });
            self.save()?;
            let uri = there["info"]["artifact_uri"].as_str().unwrap_or_default();
            let folder = self.server.place(uri)?;
            for (path, file) in model.artifacts()? {
                self.server.upload(&format!("{folder}/{path}"), &file)?;
            }
            let ready = json!({ "model_id": id, "status": "LOGGED_MODEL_READY" });
            self.server.patch(&format!("logged-models/{id}"), &ready)?;
            self.link_model(&id)?;
            self.sent.models.insert(local, SentModel { id, complete: true });
            self.save()?;
        }
        Ok(())
    }

    /// The logged model on the server: the one that an earlier request created, or a new one.
    fn begin_model(&self, model: &Model) -> Result<Value> {
        let origin = &model.meta.model_id;
        let query = json!({
            "experiment_ids": [self.sent.experiment_id],
            "filter": format!("tags.`{ORIGIN}` = '{origin}'"),
            "max_results": 1,
        });
        let found = self.server.post("logged-models/search", &query)?;
        if let Some(there) = found["models"].get(0) {
            return Ok(there.clone());
        }
        let mut tags = model.tags()?;
        tags.push((ORIGIN.into(), origin.clone()));
        let body = json!({
            "experiment_id": self.sent.experiment_id,
            "name": model.meta.name,
            "source_run_id": self.sent.run_id,
            "model_type": model.meta.model_type,
            "params": pairs(&model.params()?),
            "tags": pairs(&tags),
        });
        Ok(self.server.post("logged-models", &body)?["model"].clone())
    }

    /// Links the model to the run as an output, unless the link exists.
    fn link_model(&self, id: &str) -> Result<()> {
        let query = [("run_id", self.sent.run_id.as_str())];
        let there: Value = self.server.get("runs/get", &query)?;
        let outputs = there["run"]["outputs"]["model_outputs"].as_array();
        if outputs.is_some_and(|all| all.iter().any(|output| output["model_id"] == id)) {
            return Ok(());
        }
        let link = json!({ "run_id": self.sent.run_id, "models": [{ "model_id": id, "step": 0 }] });
        self.server.post("runs/outputs", &link)?;
        Ok(())
    }

    fn status(&mut self) -> Result<()> {
        let status = self.run.meta().status();
        if self.sent.status == status.name() {
            return Ok(());
        }
        let mut body = json!({ "run_id": self.sent.run_id, "status": status.name() });
        if let Some(end) = self.run.meta().end_time {
            body["end_time"] = end.into();
        }
        self.server.post("runs/update", &body)?;
        self.sent.status = status.name().into();
        self.save()
    }
}

fn pairs(all: &[(String, String)]) -> Vec<Value> {
    let cut = |value: &str| value.chars().take(MAX_VALUE).collect::<String>();
    all.iter().map(|(key, value)| json!({ "key": key, "value": cut(value) })).collect()
}

fn stamp(file: &Path) -> Result<String> {
    let meta = fs::metadata(file)?;
    let changed = humantime::format_rfc3339_nanos(meta.modified()?);
    Ok(format!("{} {changed}", meta.len()))
}
