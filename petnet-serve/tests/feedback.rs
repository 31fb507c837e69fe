//! User feedback: labels are stored, survive a kill, and are exported for training.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Server, drawn_image, post, test_image};
use image::ImageFormat;
use serde_json::{Value, json};

fn start(store: &Path) -> Server {
    Server::start(&["--feedback", store.to_str().unwrap()])
}

fn predict(server: &Server, image: &[u8]) -> Value {
    server.post("/predict", &[("content-type", "image/png")], image).json()
}

/// The exported labels by prediction, from all pages.
fn exported(server: &Server) -> BTreeMap<String, Value> {
    let reply = server.get("/feedback/export");
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    let lines = String::from_utf8(reply.body).unwrap();
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|entry| (entry["prediction_id"].as_str().unwrap().to_string(), entry)).collect()
}

#[test]
fn labels_are_accepted_one_by_one_and_in_batches_and_the_last_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let image = test_image(ImageFormat::Png);
    let answers: Vec<Value> = (0..3).map(|_| predict(&server, &image)).collect();
    let id = |n: usize| answers[n]["prediction_id"].clone();
    let right = answers[0]["predicted_class"].clone();
    let wrong = if right == "cat" { "dog" } else { "cat" };
    let (status, body) =
        server.post_json("/feedback", &json!({ "prediction_id": id(0), "label": wrong }));
    assert_eq!((status, &body["correct"]), (200, &json!(false)), "{body}");
    let (status, body) =
        server.post_json("/feedback", &json!({ "prediction_id": id(0), "label": right }));
    assert_eq!((status, &body["correct"]), (200, &json!(true)), "{body}");
    let nobody = "0193f7f2-5c1e-7d3a-9b0c-2f6a4e8d1c55";
    let many = json!({ "feedback": [
        { "prediction_id": id(1), "label": wrong },
        { "prediction_id": id(2), "label": "fish" },
        { "prediction_id": nobody, "label": "cat" },
        { "prediction_id": id(2), "label": right },
    ] });
    let (status, body) = server.post_json("/feedback", &many);
    let entries = body["feedback"].as_array().unwrap();
    assert_eq!(status, 200);
    assert_eq!(entries[0]["correct"], false);
    assert_eq!(entries[1]["error"]["status"], 422);
    assert_eq!(entries[2]["error"]["status"], 404);
    assert_eq!(entries[3]["correct"], true);
    let labels = exported(&server);
    assert_eq!(labels.len(), 3);
    let first = &labels[id(0).as_str().unwrap()];
    assert_eq!((&first["label"], &first["predicted_class"]), (&right, &right));
    assert_eq!(first["sha256"], petnet::disk::sha256(&image));
    assert_eq!(first["model_version"], answers[0]["model"]["version"]);
    let after = server.get(&format!("/feedback/export?after={}", id(1).as_str().unwrap()));
    assert_eq!(String::from_utf8(after.body).unwrap().lines().count(), 1);
}

#[test]
fn every_refusal_has_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let id = predict(&server, &test_image(ImageFormat::Png))["prediction_id"].clone();
    let labels: Vec<Value> =
        (0..1001).map(|_| json!({ "prediction_id": id, "label": "cat" })).collect();
    for (path, body, status) in [
        ("/feedback", json!({ "prediction_id": id, "label": "fish" }), 422),
        (
            "/feedback",
            json!({ "prediction_id": "0193f7f2-5c1e-7d3a-9b0c-2f6a4e8d1c55", "label": "cat" }),
            404,
        ),
        ("/feedback", json!({ "prediction_id": "4711", "label": "cat" }), 400),
        ("/feedback", json!({ "label": "cat" }), 400),
        ("/feedback", json!([]), 400),
        ("/feedback", json!({ "feedback": labels }), 413),
        ("/events/adoption", json!({ "species": "dragon" }), 422),
        ("/events/adoption", json!({ "species": "cat", "name": "Tom" }), 400),
    ] {
        let (answered, problem) = server.post_json(path, &body);
        assert_eq!(answered, status, "{path} {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    let plain = server.post("/feedback", &[("content-type", "image/png")], b"{}");
    assert_eq!(plain.status, 415);
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(
        server.post("/feedback", &[("content-type", "application/json")], &large).status,
        413
    );
    assert_eq!(server.get("/feedback/export?after=4711").status, 400);
    let off = Server::start(&[]);
    assert_eq!(off.post_json("/feedback", &json!({ "prediction_id": id, "label": "cat" })).0, 501);
    assert_eq!(off.get("/feedback/export").status, 501);
    assert_eq!(off.get("/version").json()["feedback"], false);
    assert_eq!(server.get("/version").json()["feedback"], true);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let image = drawn_image(1, 1.0);
    let (predictions, labels) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    for round in 0..3u64 {
        let mut server = start(folder.path());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (server, stop, image) = (&server, &stop, &image);
                let (predictions, labels) = (&predictions, &labels);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let ask = post("/predict", &[("content-type", "image/png")], image);
                        let Some(reply) = server.try_send(&ask) else { return };
                        let Ok(answer) = serde_json::from_slice::<Value>(&reply.body) else {
                            return;
                        };
                        let id = answer["prediction_id"].as_str().unwrap().to_string();
                        predictions.lock().unwrap().push(id.clone());
                        let body = json!({ "prediction_id": id, "label": "cat" }).to_string();
                        let json = [("content-type", "application/json")];
                        let tell = post("/feedback", &json, body.as_bytes());
                        let told = if thread > 0 { server.try_send(&tell) } else { None };
                        if told.is_some_and(|reply| reply.status == 200) {
                            labels.lock().unwrap().insert(id, "cat");
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(300 + 170 * round));
            let began = Instant::now();
            let enough = 10 * (round as usize + 1);
            while predictions.lock().unwrap().len().min(2 * labels.lock().unwrap().len()) < enough
                && began.elapsed() < Duration::from_secs(60)
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            server.signal("-KILL");
            stop.store(true, Ordering::Relaxed);
        });
        server.wait();
    }
    let (predictions, labels) = (predictions.into_inner().unwrap(), labels.into_inner().unwrap());
    let counts = (predictions.len(), labels.len());
    assert!(counts.0 >= 30 && counts.1 >= 15, "{counts:?}");
    let server = start(folder.path());
    let kept = exported(&server);
    for id in labels.keys() {
        assert_eq!(kept.get(id).map(|entry| &entry["label"]), Some(&json!("cat")), "{id}");
    }
    for id in &predictions {
        let (status, body) =
            server.post_json("/feedback", &json!({ "prediction_id": id, "label": "dog" }));
        assert_eq!(status, 200, "{body}");
    }
    let metrics = server.metrics();
    let series = "feedback_photos{model=\"cats-vs-dogs\",window=\"1h\"}";
    assert_eq!(metrics[series], exported(&server).len() as f64);
}

#[test]
fn an_explicit_folder_that_cannot_be_used_ends_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off", "--feedback"])
        .arg(file.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("error: feedback store"),
        "{output:?}"
    );
}
