//! Experiment tracking: every training and evaluation is a run in an embedded store in MLflow's file layout, and on an
//! MLflow server if one is configured. Neither a full disk nor a network failure stops a training.

mod layout;
mod run;
mod sender;
mod store;
mod sync;
mod system;
mod worker;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use petnet::disk::sha256;
use petnet::mlflow::{DIGEST_TAG, Server};
use petnet::train::{EpochReport, StepReport};
use petnet::{Dataset, ModelInfo};
use serde_json::{Value, json};

pub(crate) use run::{Input, Run, Status};
pub(crate) use store::Store;
pub(crate) use sync::sync;

use crate::config::MlflowConfig;
use crate::error::UsageError;
use worker::Worker;

/// Default folder of the store.
const STORE_FOLDER: &str = "mlruns";
/// Steps between two recorded ones; the metrics of an epoch include all of its steps.
const STEP_INTERVAL: usize = 10;

/// Store and, optionally, server that runs are recorded in.
#[derive(Debug)]
pub(crate) struct Tracking {
    pub(crate) store: Store,
    pub(crate) server: Option<Server>,
    experiment: String,
}

/// Parsed tracking address: a server or the folder of a store.
#[derive(Debug, PartialEq)]
enum Address<'a> {
    Server(&'a str),
    Folder(&'a str),
}

impl<'a> Address<'a> {
    /// Parses an address; `None` for `off`.
    fn parse(uri: &'a str) -> Result<Option<Self>> {
        let refused = || {
            let known = "http(s)://HOST, a folder, file:FOLDER, or `off`";
            Err(UsageError(format!("tracking address {uri}: must be {known}")).into())
        };
        match uri.split_once(':') {
            None if matches!(uri, "databricks" | "databricks-uc" | "uc") => refused(),
            None => Ok((uri != "off").then_some(Self::Folder(uri))),
            Some(("http" | "https", _)) => Ok(Some(Self::Server(uri))),
            Some(("file", path)) => {
                let path =
                    path.strip_prefix("//localhost").or(path.strip_prefix("//")).unwrap_or(path);
                if path.is_empty() { refused() } else { Ok(Some(Self::Folder(path))) }
            }
            // A drive letter of Windows.
            Some((drive, _)) if drive.len() == 1 => Ok(Some(Self::Folder(uri))),
            Some(_) => refused(),
        }
    }
}

impl Tracking {
    /// Opens the store at `MLFLOW_TRACKING_URI`, else at the address in the settings, else in the folder `mlruns`. `None` where
    /// the address is `off`.
    pub(crate) fn open(config: &MlflowConfig) -> Result<Option<Self>> {
        let uri = variable("MLFLOW_TRACKING_URI").or_else(|| config.tracking_uri.clone());
        let uri = uri.unwrap_or_else(|| STORE_FOLDER.into());
        let Some(address) = Address::parse(uri.trim())? else { return Ok(None) };
        let (folder, server) = match address {
            Address::Server(uri) => (STORE_FOLDER, Some(Server::from_variables(uri, variable)?)),
            Address::Folder(folder) => (folder, None),
        };
        let experiment = variable("MLFLOW_EXPERIMENT_NAME");
        Ok(Some(Self {
            store: Store::open(Path::new(folder))?,
            server,
            experiment: experiment.unwrap_or_else(|| config.experiment_name.clone()),
        }))
    }

    /// [`Tracking::open`] for commands that need it; `off` is an error.
    pub(crate) fn required() -> Result<Self> {
        Self::open(&MlflowConfig::default())?
            .ok_or_else(|| UsageError("tracking is `off`".into()).into())
    }

    /// The server, for commands that need one.
    pub(crate) fn server(&self) -> Result<&Server> {
        let missing = "no tracking server: set MLFLOW_TRACKING_URI, e.g. http://localhost:5001";
        self.server.as_ref().ok_or_else(|| UsageError(missing.into()).into())
    }

    /// Starts a run, tagged with user, command line, version and git commit.
    pub(crate) fn start(&self, name: &str) -> Result<Run> {
        let user = variable("USER").or_else(|| output_of("id", &["-un"])).unwrap_or_default();
        let run = self.store.start(&self.experiment, name, &user)?;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        run.tag("mlflow.user", &user)?;
        run.tag("mlflow.source.name", &format!("petnet-train {}", arguments.join(" ")))?;
        run.tag("mlflow.source.type", "LOCAL")?;
        run.tag("petnet.version", env!("CARGO_PKG_VERSION"))?;
        let git = [
            ("mlflow.source.git.commit", ["rev-parse", "HEAD"].as_slice()),
            ("mlflow.source.git.branch", &["rev-parse", "--abbrev-ref", "HEAD"]),
            ("mlflow.source.git.repoURL", &["config", "--get", "remote.origin.url"]),
        ];
        for (tag, arguments) in git {
            if let Some(value) = output_of("git", arguments) {
                run.tag(tag, &value)?;
            }
        }
        Ok(run)
    }

    /// The run that trained a model, or a new run with that model.
    pub(crate) fn run_with_model(&self, bytes: &[u8], info: &ModelInfo, name: &str) -> Result<Run> {
        if let Some(run) = self.store.run_of_model(&sha256(bytes))? {
            return Ok(run);
        }
        let mut run = self.start(name)?;
        log_model(&run, bytes, info)?;
        run.finish(Status::Finished)?;
        Ok(run)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Trimmed standard output of a program; `None` where it fails, is missing or prints nothing.
fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(text.trim().to_string()).filter(|text| !text.is_empty())
}

/// Records a model file as a logged model, with an `MLmodel` file and the digest by which it is found again.
pub(crate) fn log_model(run: &Run, bytes: &[u8], info: &ModelInfo) -> Result<()> {
    const FILE: &str = "model.safetensors";
    let digest = sha256(bytes);
    let created = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
    let about = json!({
        "artifact_path": "model",
        "flavors": { "petnet": {
            "file": FILE,
            "architecture": info.graph.name(),
            "labels": info.labels,
            "petnet_version": info.petnet_version,
            "sha256": digest,
        } },
        "model_uuid": uuid::Uuid::new_v4().simple().to_string(),
        "run_id": run.id(),
        "utc_time_created": created.replace('T', " ").trim_end_matches('Z'),
        "mlflow_version": "3.17.2",
    });
    let files = [("MLmodel", serde_yaml::to_string(&about)?.into_bytes()), (FILE, bytes.to_vec())];
    let params = flatten(&json!({
        "architecture": info.graph.name(),
        "preprocess": info.preprocess,
        "labels": info.labels,
    }));
    run.model(&files, &params, &[(DIGEST_TAG, &digest)])?;
    run.tag("mlflow.log-model.history", &serde_json::to_string(&[about])?)
}

/// Description of a data set in MLflow's terms.
pub(crate) fn input(dataset: &Dataset, name: &str, path: &Path) -> Input {
    let counts = dataset.counts().into_iter().map(Value::from);
    let classes: serde_json::Map<_, _> = dataset.classes().iter().cloned().zip(counts).collect();
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    Input {
        name: name.into(),
        digest: dataset.digest().chars().take(36).collect(),
        source_type: "local".into(),
        source: json!({ "uri": absolute.display().to_string() }).to_string(),
        schema: json!({ "photo": "image", "class": dataset.classes() }).to_string(),
        profile: json!({ "num_rows": dataset.len(), "classes": classes }).to_string(),
    }
}

/// Flattens nested objects: `{"a": {"b": 1}}` becomes `a.b` = `1`.
pub(crate) fn flatten(value: &Value) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    let mut pending = vec![(String::new(), value)];
    while let Some((key, value)) = pending.pop() {
        match value {
            Value::Object(map) => {
                let prefix = if key.is_empty() { key } else { format!("{key}.") };
                pending.extend(map.iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
            }
            Value::String(text) => flat.push((key, text.clone())),
            Value::Null => flat.push((key, "none".into())),
            other => flat.push((key, other.to_string())),
        }
    }
    flat.sort();
    flat
}

/// File with the identifier of the run that trains into a folder, so that `--resume` continues that run.
fn run_file(out: &Path) -> PathBuf {
    out.join("run_id")
}

/// Records a run in progress.
pub(crate) struct Tracker {
    run: Run,
    sender: Option<Worker<bool>>,
    monitor: Option<Worker<()>>,
    /// Last recorded step of each metric: a resumed training repeats some steps.
    steps: HashMap<&'static str, i64>,
    failed: bool,
}

impl Tracker {
    /// Starts the run of a training into `out`; with `resume`, continues the run that was started there.
    pub(crate) fn begin(tracking: &Tracking, name: &str, out: &Path, resume: bool) -> Result<Self> {
        let known = std::fs::read_to_string(run_file(out)).ok().filter(|_| resume);
        let known = known.and_then(|id| tracking.store.run(id.trim()).ok());
        let run = match known {
            Some(mut run) => {
                run.reopen()?;
                run
            }
            None => tracking.start(name)?,
        };
        crate::files::write(&run_file(out), run.id().as_bytes())?;
        Self::new(run, tracking.server.clone(), true)
    }

    /// Adds records to a run that has ended, without changing its status.
    pub(crate) fn append(run: Run, server: Option<Server>) -> Result<Self> {
        Self::new(run, server, false)
    }

    fn new(run: Run, server: Option<Server>, monitor: bool) -> Result<Self> {
        let sender = server.map(|server| sender::start(&run, server)).transpose()?;
        let monitor = monitor.then(|| system::start(&run)).transpose()?;
        Ok(Self { run, sender, monitor, steps: HashMap::new(), failed: false })
    }

    pub(crate) fn run_id(&self) -> &str {
        self.run.id()
    }

    /// Records, and logs the first failure; a training does not stop for it.
    pub(crate) fn record(&mut self, write: impl FnOnce(&Run) -> Result<()>) {
        if let Err(error) = write(&self.run)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(error = format!("{error:#}"), "tracking: the run is incomplete");
        }
    }

    fn metric(&mut self, key: &'static str, value: f64, step: i64) {
        let last = self.steps.entry(key).or_insert_with(|| {
            self.run.points(key).iter().map(|point| point.step).max().unwrap_or(i64::MIN)
        });
        if step > *last {
            *last = step;
            self.record(|run| run.metric(key, value, step));
        }
    }

    pub(crate) fn step(&mut self, report: &StepReport) {
        let step = (report.epoch - 1) * report.steps + report.step;
        if step.is_multiple_of(STEP_INTERVAL) {
            let step = step as i64;
            self.metric("step/loss", report.loss, step);
            self.metric("step/accuracy", report.accuracy, step);
            self.metric("step/learning_rate", report.learning_rate, step);
            self.metric("step/images_per_second", report.images_per_second, step);
        }
    }

    pub(crate) fn epoch(&mut self, report: &EpochReport) {
        let step = report.epoch as i64;
        self.metric("train_loss", report.train_loss, step);
        self.metric("train_accuracy", report.train_accuracy, step);
        self.metric("val_loss", report.val_loss, step);
        self.metric("val_accuracy", report.val_accuracy, step);
        if let Some(precision) = report.val_map {
            self.metric("val_map", precision, step);
        }
        self.metric("learning_rate", report.learning_rate, step);
        self.metric("seconds", report.seconds, step);
        self.metric("loader_wait_seconds", report.waited, step);
    }

    /// Ends the run of a training, then [`Tracker::close`].
    pub(crate) fn finish(mut self, status: Status) {
        if let Some(monitor) = self.monitor.take() {
            monitor.finish();
        }
        if let Err(error) = self.run.finish(status) {
            tracing::warn!(
                error = format!("{error:#}"),
                "tracking: the end of the run could not be recorded"
            );
        }
        self.close();
    }

    /// Waits for a limited time until everything is sent to the server.
    pub(crate) fn close(mut self) {
        if self.sender.take().is_some_and(|sender| sender.finish() != Some(true)) {
            tracing::warn!(
                "tracking: the run is not complete on the server; `petnet-train runs sync` sends the rest"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_or_refused() {
        for (uri, expected) in [
            ("off", None),
            ("runs", Some(Address::Folder("runs"))),
            ("file:./runs", Some(Address::Folder("./runs"))),
            ("file:///var/runs", Some(Address::Folder("/var/runs"))),
            ("file://localhost/var/runs", Some(Address::Folder("/var/runs"))),
            ("https://a@b:1", Some(Address::Server("https://a@b:1"))),
        ] {
            assert_eq!(Address::parse(uri).unwrap(), expected, "{uri}");
        }
        for uri in ["databricks", "databricks://profile", "sqlite:///x.db", "s3://b/c", "file:"] {
            assert!(Address::parse(uri).is_err(), "{uri}");
        }
    }
}
