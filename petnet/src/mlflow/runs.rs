//! Runs on a tracking server, and the models that they made.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{RequestError, Result, Server};

/// Most characters of a parameter or tag that MLflow stores.
const MAX_VALUE_CHARS: usize = 6000;
/// Tag of a run or model with its identifier where it was recorded.
const ORIGIN_TAG: &str = "petnet.id";

/// A run or a model on a server.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteRecord {
    /// Identifier on the server.
    pub id: String,
    /// Address of its artifacts, for [`Server::upload_artifact`].
    pub artifact_uri: String,
}

/// One value of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricValue {
    /// Name of the metric.
    pub key: String,
    /// The value.
    pub value: f64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Step of the training.
    pub step: i64,
}

/// The description of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewRun<'a> {
    /// Identifier of its experiment.
    pub experiment_id: &'a str,
    /// User who started it.
    pub user: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Milliseconds since 1970.
    pub start_time: i64,
    /// Its identifier where it was recorded, by which it is found again.
    pub origin: &'a str,
}

/// The description of a model that a run made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewModel<'a> {
    /// Identifier of its experiment.
    pub experiment_id: &'a str,
    /// Identifier of the run on the server.
    pub run_id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its type, such as `petnet`.
    pub model_type: &'a str,
    /// Its parameters.
    pub params: &'a [(String, String)],
    /// Its tags.
    pub tags: &'a [(String, String)],
    /// Its identifier where it was recorded, by which it is found again.
    pub origin: &'a str,
}

impl Server {
    /// The identifier of the experiment with this name, which is created where there is none.
    pub fn experiment_id(&self, name: &str) -> Result<String> {
        let kind = json!({ "key": "mlflow.experimentKind", "value": "custom_model_development" });
        let created = self.post("experiments/create", &json!({ "name": name, "tags": [kind] }));
        match created {
            Ok(created) => Ok(created["experiment_id"].as_str().unwrap_or_default().into()),
            Err(error) if error.is("RESOURCE_ALREADY_EXISTS") => {
                let query = [("experiment_name", name)];
                let found: Value = self.get("experiments/get-by-name", &query)?;
                let id = found["experiment"]["experiment_id"].as_str().map(str::to_string);
                let deleted = || format!("experiment {name} was deleted there");
                id.ok_or_else(|| RequestError::Invalid(deleted()))
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a run, unless an earlier request did, whose response was lost.
    pub fn create_run(&self, run: &NewRun) -> Result<RemoteRecord> {
        let NewRun { experiment_id, user, name, start_time, origin } = run;
        let found = self.post("runs/search", &by_origin(experiment_id, origin))?;
        let body = json!({
            "experiment_id": experiment_id,
            "user_id": user,
            "run_name": name,
            "start_time": start_time,
            "tags": [{ "key": ORIGIN_TAG, "value": origin }],
        });
        let run = match found["runs"].get(0) {
            Some(run) => run.clone(),
            None => self.post("runs/create", &body)?["run"].clone(),
        };
        record(&run["info"], "run_id")
    }

    /// Adds a data set to a run, in MLflow's form; `context` is its use, such as `training`.
    pub fn log_input(&self, run_id: &str, dataset: &impl Serialize, context: &str) -> Result<()> {
        let tags = [json!({ "key": "mlflow.data.context", "value": context })];
        let inputs = [json!({ "tags": tags, "dataset": dataset })];
        self.post("runs/log-inputs", &json!({ "run_id": run_id, "datasets": inputs })).map(drop)
    }

    /// Adds at most 100 parameters to a run.
    pub fn log_params(&self, run_id: &str, params: &[(String, String)]) -> Result<()> {
        let body = json!({ "run_id": run_id, "params": pairs(params) });
        self.post("runs/log-batch", &body).map(drop)
    }

    /// Sets at most 100 tags of a run.
    pub fn log_tags(&self, run_id: &str, tags: &[(String, String)]) -> Result<()> {
        let body = json!({ "run_id": run_id, "tags": pairs(tags) });
        self.post("runs/log-batch", &body).map(drop)
    }

    /// Adds at most 1,000 values of metrics to a run.
    pub fn log_metrics(&self, run_id: &str, metrics: &[MetricValue]) -> Result<()> {
        let body = json!({ "run_id": run_id, "metrics": metrics });
        self.post("runs/log-batch", &body).map(drop)
    }

    /// Sets the status of a run, and for one that has ended the time in milliseconds since 1970.
    pub fn set_status(&self, run_id: &str, status: &str, end_time: Option<i64>) -> Result<()> {
        let mut body = json!({ "run_id": run_id, "status": status });
        if let Some(end) = end_time {
            body["end_time"] = end.into();
        }
        self.post("runs/update", &body).map(drop)
    }

    /// Uploads a file as the artifact `path` of a run or a model, through the server to its artifact store.
    pub fn upload_artifact(&self, artifact_uri: &str, path: &str, file: &Path) -> Result<()> {
        self.upload(&format!("{}/{path}", self.artifact_path(artifact_uri)?), file)
    }

    /// Creates a model without its files, unless an earlier request did, whose response was lost.
    pub fn create_model(&self, model: &NewModel) -> Result<RemoteRecord> {
        let NewModel { experiment_id, run_id, name, model_type, params, tags, origin } = model;
        let found = self.post("logged-models/search", &by_origin(experiment_id, origin))?;
        if let Some(model) = found["models"].get(0) {
            return record(&model["info"], "model_id");
        }
        let mut tags = pairs(tags);
        tags.push(json!({ "key": ORIGIN_TAG, "value": origin }));
        let body = json!({
            "experiment_id": experiment_id,
            "name": name,
            "source_run_id": run_id,
            "model_type": model_type,
            "params": pairs(params),
            "tags": tags,
        });
        record(&self.post("logged-models", &body)?["model"]["info"], "model_id")
    }

    /// Marks a model whose files are uploaded as ready, and links it to its run as an output, unless the link exists.
    pub fn finish_model(&self, run_id: &str, model_id: &str) -> Result<()> {
        let ready = json!({ "model_id": model_id, "status": "LOGGED_MODEL_READY" });
        self.patch(&format!("logged-models/{model_id}"), &ready)?;
        let run: Value = self.get("runs/get", &[("run_id", run_id)])?;
        let outputs = run["run"]["outputs"]["model_outputs"].as_array();
        if outputs.is_some_and(|all| all.iter().any(|output| output["model_id"] == model_id)) {
            return Ok(());
        }
        let link = json!({ "run_id": run_id, "models": [{ "model_id": model_id, "step": 0 }] });
        self.post("runs/outputs", &link).map(drop)
    }
}

fn record(info: &Value, id: &str) -> Result<RemoteRecord> {
    let text = |key: &str| info[key].as_str().unwrap_or_default().to_string();
    match text(id) {
        none if none.is_empty() => {
            Err(RequestError::Invalid(format!("the server sent a record without `{id}`")))
        }
        id => Ok(RemoteRecord { id, artifact_uri: text("artifact_uri") }),
    }
}

/// The search for the run or model of an experiment that was recorded under an identifier.
fn by_origin(experiment_id: &str, origin: &str) -> Value {
    json!({
        "experiment_ids": [experiment_id],
        "filter": format!("tags.`{ORIGIN_TAG}` = '{origin}'"),
        "max_results": 1,
    })
}

fn pairs(all: &[(String, String)]) -> Vec<Value> {
    let cut = |value: &str| value.chars().take(MAX_VALUE_CHARS).collect::<String>();
    all.iter().map(|(key, value)| json!({ "key": key, "value": cut(value) })).collect()
}
