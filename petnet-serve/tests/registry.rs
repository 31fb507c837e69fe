//! Registered models; a mock of MLflow's endpoints serves two versions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Server, multipart, test_image, variant, wait_until};
use image::ImageFormat;
use petnet::Precision;
use petnet::disk::sha256;
use serde_json::{Value, json};
use tiny_http::Response;

struct Registry {
    address: String,
    /// The version that the alias `champion` resolves to, and the number of downloads.
    state: Arc<Mutex<(usize, usize)>>,
    /// Digests of the two versions' files.
    digests: Vec<String>,
}

/// Two models with different digests.
fn models() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    [0.5, 0.75]
        .into_iter()
        .map(|number| {
            let path = folder.path().join("model.safetensors");
            variant(number).save(&path, Precision::F16).unwrap();
            std::fs::read(path).unwrap()
        })
        .collect()
}

impl Registry {
    /// `altered`: downloads differ from the registered files.
    fn start(altered: bool) -> Self {
        let listener = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.server_addr());
        let state = Arc::new(Mutex::new((1, 0)));
        let shared = Arc::clone(&state);
        let models = models();
        let digests = models.iter().map(|model| sha256(model)).collect();
        std::thread::spawn(move || {
            for request in listener.incoming_requests() {
                let (champion, fetched) = &mut *shared.lock().unwrap();
                let url = request.url();
                let version = json!({ "model_version": {
                    "name": "Pets",
                    "version": champion.to_string(),
                    "tags": [{ "key": "petnet.sha256", "value": sha256(&models[*champion - 1]) }],
                } });
                let (status, body) = match url.split('?').next().unwrap() {
                    "/api/2.0/mlflow/registered-models/alias"
                        if url.ends_with("alias=champion") =>
                    {
                        (200, version.to_string().into_bytes())
                    }
                    "/api/2.0/mlflow/model-versions/get-download-uri" => {
                        let place = format!("mlflow-artifacts:/1/models/m-{champion}/artifacts");
                        (200, json!({ "artifact_uri": place }).to_string().into_bytes())
                    }
                    "/api/2.0/mlflow-artifacts/artifacts" => {
                        let files = json!([{ "path": "MLmodel", "is_dir": false },
                            { "path": "model.safetensors", "is_dir": false }]);
                        (200, json!({ "files": files }).to_string().into_bytes())
                    }
                    path if path.ends_with("/artifacts/model.safetensors") => {
                        *fetched += 1;
                        (200, models[if altered { 2 - *champion } else { *champion - 1 }].clone())
                    }
                    _ => {
                        let code =
                            json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no" });
                        (404, code.to_string().into_bytes())
                    }
                };
                let _ = request.respond(Response::from_data(body).with_status_code(status));
            }
        });
        Self { address, state, digests }
    }
}

fn version_and_sha256(server: &Server) -> (Value, Value) {
    let version = server.get("/version").json();
    (version["model"]["registry_version"].clone(), version["model"]["sha256"].clone())
}

#[test]
fn a_promotion_swaps_the_model_in_the_running_service() {
    let registry = Registry::start(false);
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let named = ["--model", "models:/Pets@champion", "--tracking-uri", &registry.address];
    let kept = ["--model-cache", cache, "--follow", "50ms"];
    let server = Server::start(&[named, kept].concat());
    let digests = &registry.digests;
    assert_ne!(digests[0], digests[1]);
    assert_eq!(version_and_sha256(&server), (json!("1"), json!(digests[0])));
    let (kind, body) = multipart(&[("image/png", &test_image(ImageFormat::Png))]);
    assert_eq!(server.post("/predict", &[("content-type", &kind)], &body).status, 200);
    registry.state.lock().unwrap().0 = 2;
    wait_until("the promoted version", || version_and_sha256(&server).0 == "2");
    assert_eq!(version_and_sha256(&server), (json!("2"), json!(digests[1])));
    drop(server);
    // A cached file is not downloaded again.
    let server = Server::start(&[named, kept].concat());
    assert_eq!(version_and_sha256(&server).0, "2");
    assert_eq!(registry.state.lock().unwrap().1, 2);
}

#[test]
fn without_its_server_the_cached_model_is_used() {
    let registry = Registry::start(false);
    let cache = tempfile::tempdir().unwrap();
    let kept = ["--model-cache", cache.path().to_str().unwrap()];
    let address = registry.address.as_str();
    let named = ["--model", "models:/Pets@champion", "--tracking-uri", address];
    drop(Server::start(&[&named[..], &kept].concat()));
    // An unreachable proxy simulates an unreachable server at the same address.
    let gone = petnet_serve_with_proxy(&[&named[..], &kept].concat());
    assert!(gone.contains("the cached model is used"), "{gone}");
}

/// Starts the service with an unreachable proxy, and ends it once it is ready.
fn petnet_serve_with_proxy(arguments: &[&str]) -> String {
    use std::io::{BufRead as _, BufReader};
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--metrics-addr",
            "off",
            "--log-format",
            "json",
        ])
        .args(arguments)
        .env("http_proxy", "http://127.0.0.1:9")
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .env("NO_PROXY", "")
        .env("no_proxy", "")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        log.push_str(&line);
        if line.contains("\"ready\"") {
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    log
}

#[test]
fn a_file_that_is_not_the_registered_one_is_never_served() {
    let registry = Registry::start(true);
    let cache = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off"])
        .args(["--model", "models:/Pets@champion", "--tracking-uri", &registry.address])
        .args(["--model-cache", cache.path().to_str().unwrap()])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("not the one that was registered"), "{message}");
}
