//! Tracked runs in the store and on a server: a stand-in for MLflow's endpoints, which can fail after it has handled a
//! request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{fail, petnet, prepared, succeed};
use serde_json::{Value, json};
use tiny_http::{Method, Request, Response};

/// State of the server. As in MLflow, a repeated request does not add a record twice.
#[derive(Default)]
struct State {
    requests: usize,
    /// Artifacts are in a store that clients cannot reach, so that they cannot send files.
    elsewhere: bool,
    experiments: Vec<String>,
    runs: Vec<Value>,
    metrics: BTreeSet<String>,
    params: BTreeMap<String, String>,
    inputs: BTreeSet<String>,
    outputs: Vec<Value>,
    models: Vec<Value>,
    files: BTreeMap<String, Vec<u8>>,
    versions: Vec<Value>,
    aliases: BTreeMap<String, String>,
}

struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Starts a server. Every `lost`-th response is an error, although the request was handled.
    fn start(lost: usize) -> Self {
        let listener = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.server_addr());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for mut request in listener.incoming_requests() {
                let mut state = shared.lock().unwrap();
                let (status, body) = state.answer(&mut request);
                let failed = lost > 0 && state.requests.is_multiple_of(lost);
                let status = if failed { 503 } else { status };
                let _ = request.respond(Response::from_data(body).with_status_code(status));
            }
        });
        Self { address, state }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn tag(of: &Value, key: &str) -> Option<String> {
    let tags = of["tags"].as_array()?;
    let found = tags.iter().find(|tag| tag["key"] == key)?;
    found["value"].as_str().map(str::to_string)
}

impl State {
    fn answer(&mut self, request: &mut Request) -> (u16, Vec<u8>) {
        self.requests += 1;
        let mut body = Vec::new();
        request.as_reader().read_to_end(&mut body).unwrap();
        let url = request.url().to_string();
        let (path, query) = url.split_once('?').unwrap_or((&url, ""));
        if let Some(place) = path.strip_prefix("/api/2.0/mlflow-artifacts/artifacts/") {
            assert_eq!(*request.method(), Method::Put);
            self.files.insert(place.into(), body);
            return (200, b"{}".to_vec());
        }
        let path = path.strip_prefix("/api/2.0/mlflow/").unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (status, answer) = self.call(path, query, &body);
        (status, serde_json::to_vec(&answer).unwrap())
    }

    #[expect(clippy::too_many_lines, reason = "one arm per endpoint")]
    fn call(&mut self, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let ok = |answer: Value| (200, answer);
        let refused = |status, code: &str| (status, json!({ "error_code": code, "message": "no" }));
        match path {
            "experiments/create" => {
                let name = body["name"].as_str().unwrap().to_string();
                if self.experiments.contains(&name) {
                    return refused(400, "RESOURCE_ALREADY_EXISTS");
                }
                self.experiments.push(name);
                ok(json!({ "experiment_id": "1" }))
            }
            "experiments/get-by-name" => ok(json!({ "experiment": { "experiment_id": "1" } })),
            "runs/search" | "logged-models/search" => {
                let models = path.starts_with("logged");
                let all = if models { &self.models } else { &self.runs };
                let filter = body["filter"].as_str().unwrap();
                let found: Vec<_> = all
                    .iter()
                    .filter(|one| tag(one, "petnet.id").is_some_and(|id| filter.contains(&id)))
                    .collect();
                ok(json!({ (if models { "models" } else { "runs" }): found }))
            }
            "runs/create" => {
                let id = format!("r{}", self.runs.len());
                let mut run = body.clone();
                let scheme = if self.elsewhere { "s3://bucket" } else { "mlflow-artifacts:" };
                let place = format!("{scheme}/1/{id}/artifacts");
                run["info"] = json!({ "run_id": id, "artifact_uri": place });
                self.runs.push(run.clone());
                ok(json!({ "run": run }))
            }
            "runs/log-batch" => {
                let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
                assert!(list("metrics").len() <= 1000 && list("params").len() <= 100);
                self.metrics.extend(list("metrics").iter().map(Value::to_string));
                for param in list("params") {
                    let [key, value] =
                        ["key", "value"].map(|k| param[k].as_str().unwrap().to_string());
                    let key = format!("{} {key}", body["run_id"].as_str().unwrap());
                    let old = self.params.insert(key, value.clone());
                    assert!(old.is_none_or(|old| old == value), "a setting changed");
                }
                ok(json!({}))
            }
            "runs/log-inputs" => {
                self.inputs.insert(body["datasets"].to_string());
                ok(json!({}))
            }
            "runs/get" => ok(json!({ "run": { "outputs": { "model_outputs": self.outputs } } })),
            "runs/outputs" => {
                self.outputs.extend(body["models"].as_array().unwrap().iter().cloned());
                ok(json!({}))
            }
            "runs/update" => {
                let number: usize = body["run_id"].as_str().unwrap()[1..].parse().unwrap();
                self.runs[number]["status"] = body["status"].clone();
                self.runs[number]["end_time"] = body["end_time"].clone();
                ok(json!({}))
            }
            "logged-models" => {
                let id = format!("m-{}", self.models.len());
                let mut model = body.clone();
                model["info"] = json!({ "model_id": id, "artifact_uri": format!("mlflow-artifacts:/1/models/{id}/artifacts") });
                self.models.push(model.clone());
                ok(json!({ "model": model }))
            }
            path if path.starts_with("logged-models/m-") => ok(json!({})),
            "registered-models/create" => ok(json!({})),
            "model-versions/create" => {
                let mut version = body.clone();
                version["version"] = (self.versions.len() + 1).to_string().into();
                self.versions.push(version.clone());
                ok(json!({ "model_version": version }))
            }
            "model-versions/search" => {
                let found: Vec<_> = self
                    .versions
                    .iter()
                    .filter(|v| {
                        tag(v, "petnet.sha256").is_some_and(|digest| query.contains(&digest))
                    })
                    .collect();
                ok(json!({ "model_versions": found }))
            }
            "model-versions/set-tag" => {
                let number: usize = body["version"].as_str().unwrap().parse().unwrap();
                let tags = self.versions[number - 1]["tags"].as_array_mut().unwrap();
                tags.push(json!({ "key": body["key"], "value": body["value"] }));
                ok(json!({}))
            }
            "registered-models/alias" if body.is_null() => {
                match self.aliases.get(query.rsplit('=').next().unwrap()) {
                    Some(number) => {
                        let place: usize = number.parse().unwrap();
                        ok(json!({ "model_version": self.versions[place - 1] }))
                    }
                    None => refused(404, "RESOURCE_DOES_NOT_EXIST"),
                }
            }
            "registered-models/alias" => {
                let [alias, version] =
                    ["alias", "version"].map(|k| body[k].as_str().unwrap().into());
                self.aliases.insert(alias, version);
                ok(json!({}))
            }
            other => panic!("{other} is no endpoint of MLflow's"),
        }
    }
}

const FIT: [&str; 6] = ["fit", "--config", "settings.yaml", "--data", "data", "--quiet"];

fn run(folder: &Path, server: &Server, arguments: &[&str]) -> std::process::Output {
    petnet(folder, arguments).env("MLFLOW_TRACKING_URI", &server.address).output().unwrap()
}

fn done(output: &std::process::Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every value of every metric file, as it is sent to a server.
fn recorded(folder: &Path) -> BTreeSet<String> {
    let output = succeed(folder, &["runs", "list", "--json"]);
    let runs: Value = serde_json::from_str(&output).unwrap();
    let id = runs[0]["run_id"].as_str().unwrap();
    let (mut values, mut steps) = (BTreeSet::new(), BTreeSet::new());
    let experiments = fs::read_dir(folder.join("mlruns")).unwrap().map(|e| e.unwrap().path());
    let run = experiments.map(|e| e.join(id)).find(|run| run.is_dir()).unwrap();
    let metrics = run.join("metrics");
    let mut pending = vec![metrics.clone()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let key = path.strip_prefix(&metrics).unwrap().to_str().unwrap();
        for line in fs::read_to_string(&path).unwrap().lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let [time, step] = [0, 2].map(|place| parts[place].parse::<i64>().unwrap());
            let value: f64 = parts[1].parse().unwrap();
            let sent = json!({ "key": key, "value": value, "timestamp": time, "step": step });
            values.insert(sent.to_string());
            assert!(steps.insert((key.to_string(), step)), "{key} has step {step} twice");
        }
    }
    values
}

fn assert_complete(folder: &Path, server: &Server) {
    let state = server.state();
    assert!(state.metrics == recorded(folder), "the values on the server differ");
    assert_eq!((state.runs.len(), state.models.len(), state.outputs.len()), (1, 1, 1));
    assert_eq!(state.runs[0]["status"], "FINISHED");
    assert_eq!(state.inputs.len(), 2, "training and validation data");
    assert_eq!(state.params["r0 image_size"], "16");
    let best = fs::read(folder.join("models/best.safetensors")).unwrap();
    assert!(state.files["1/models/m-0/artifacts/model.safetensors"] == best);
    for file in ["loss_curves.png", "confusion_matrix.npy", "metrics.json", "report.html"] {
        let sent = &state.files[&format!("1/r0/artifacts/{file}")];
        assert!(*sent == fs::read(folder.join("models").join(file)).unwrap(), "{file} differs");
    }
}

#[test]
fn a_run_recorded_without_a_server_is_sent_later_once() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &FIT);
    let server = Server::start(0);
    done(&run(folder, &server, &["runs", "sync", "--quiet"]));
    assert_complete(folder, &server);
    let requests = server.state().requests;
    done(&run(folder, &server, &["runs", "sync", "--quiet"]));
    assert_eq!(server.state().requests, requests, "nothing is sent again");
}

#[test]
fn a_server_that_accepts_no_files_gets_the_rest_of_every_run() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &FIT);
    succeed(folder, &FIT);
    let server = Server::start(0);
    server.state().elsewhere = true;
    let output = run(folder, &server, &["runs", "sync", "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        printed.contains("2 of 2 runs") && printed.contains("--artifacts-destination"),
        "{printed}"
    );
    let state = server.state();
    assert_eq!(state.runs.len(), 2);
    assert!(state.runs.iter().all(|run| run["status"] == "FINISHED"), "{:?}", state.runs);
    assert!(recorded(folder).is_subset(&state.metrics), "the values of the latest run");
}

#[test]
fn lost_responses_neither_lose_nor_repeat_records() {
    let root = prepared();
    let folder = root.path();
    let server = Server::start(7);
    done(&run(folder, &server, &FIT));
    // `runs sync` sends what the training could not send in time.
    for _ in 0..9 {
        if run(folder, &server, &["runs", "sync", "--quiet"]).status.success() {
            break;
        }
    }
    assert_complete(folder, &server);
}

#[test]
fn a_killed_run_is_marked_and_continues_as_the_same_run() {
    let root = prepared();
    let folder = root.path();
    let settings = fs::read_to_string(folder.join("settings.yaml")).unwrap();
    let longer = settings.replace("num_epochs: 6", "num_epochs: 60");
    fs::write(folder.join("settings.yaml"), longer).unwrap();
    let mut child = petnet(folder, &FIT).spawn().unwrap();
    while !folder.join("models/last.safetensors").is_file() {
        std::thread::sleep(Duration::from_millis(10));
        assert!(child.try_wait().unwrap().is_none(), "the training ended before it was killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let status = || {
        let runs = succeed(folder, &["runs", "list", "--json"]);
        let runs: Value = serde_json::from_str(&runs).unwrap();
        assert_eq!(runs.as_array().unwrap().len(), 1);
        (runs[0]["status"].as_str().unwrap().to_string(), runs[0]["run_id"].clone())
    };
    let (killed, id) = status();
    assert_eq!(killed, "KILLED");
    succeed(folder, &[&FIT[..], &["--resume"]].concat());
    assert_eq!(status(), ("FINISHED".into(), id));
    let epochs = recorded(folder).iter().filter(|v| v.contains("\"val_loss\"")).count();
    assert_eq!(epochs, 60, "one value per epoch");
}

#[test]
fn a_worse_model_does_not_replace_the_champion() {
    let root = prepared();
    let folder = root.path();
    let server = Server::start(0);
    succeed(folder, &FIT);
    fs::write(
        folder.join("weak.yaml"),
        "model: {name: simple_cnn}\nimage_size: 16\nnum_epochs: 1\nlearning_rate: 0.000001\n",
    )
    .unwrap();
    succeed(
        folder,
        &["fit", "--config", "weak.yaml", "--data", "data", "--out", "weak", "--quiet"],
    );
    let evaluate =
        |model: &'static str| ["evaluate", "--model", model, "--data", "data", "--quiet"];
    let register = |model: &'static str| ["register", "--model", model, "--alias", "champion"];
    let (best, weak) = ("models/best.safetensors", "weak/best.safetensors");
    let (status, message) = fail(folder, &register(best));
    assert_eq!(status, 2);
    assert!(message.contains("MLFLOW_TRACKING_URI"), "{message}");
    succeed(folder, &evaluate(best));
    done(&run(folder, &server, &register(best)));
    let refused = |reason: &str| {
        let output = run(folder, &server, &register(weak));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(reason), "{message}");
    };
    refused("not evaluated on the same test images");
    succeed(folder, &evaluate(weak));
    refused("is below the");
    let challenger = ["register", "--model", weak, "--alias", "challenger"];
    done(&run(folder, &server, &challenger));
    assert_eq!(server.state().aliases["challenger"], "2");
    let stage = ["register", "--model", weak, "--stage", "Staging"];
    let output = run(folder, &server, &stage);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is below the"), "{output:?}");
    assert_eq!(server.state().aliases["champion"], "1");
    done(&run(folder, &server, &[&register(weak)[..], &["--force"]].concat()));
    assert_eq!(server.state().aliases["champion"], "2");
    done(&run(folder, &server, &register(best)));
    let state = server.state();
    assert_eq!(
        (state.aliases["champion"].as_str(), state.versions.len()),
        ("1", 2),
        "no model is registered twice"
    );
}
