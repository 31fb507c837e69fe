//! Every metric is in the table of `docs/metrics.md`, and changes with the event that it measures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Server, drawn, drawn_model, multipart, test_image};
use image::ImageFormat;
use serde_json::json;

type Series = BTreeMap<String, f64>;

/// Names of metrics in the first column of the service's tables in `docs/metrics.md`.
fn table() -> BTreeSet<String> {
    let page = include_str!("../../docs/metrics.md");
    let (service, _training) = page.split_once("## Training").unwrap();
    let cells = service.lines().filter(|line| line.starts_with("| `"));
    let cells = cells.map(|line| line.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(String::from).collect()
}

/// The metric that a series belongs to.
fn family(series: &str) -> String {
    let name = series.split('{').next().unwrap();
    let stem = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| name.strip_suffix(part));
    stem.unwrap_or(name).to_string()
}

/// Sum over all series of a metric whose labels contain each of `labels`.
fn sum(series: &Series, name: &str, labels: &[&str]) -> f64 {
    let mine = series.iter().filter(|(key, _)| {
        key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label))
    });
    mine.map(|(_, value)| value).sum()
}

fn series(all: &Series, name: &str) -> Series {
    let mine = all.iter().filter(|(key, _)| key.starts_with(name));
    mine.map(|(key, value)| (key.clone(), *value)).collect()
}

fn predict(server: &Server, image: &[u8]) -> serde_json::Value {
    let (kind, form) = multipart(&[("image/png", image)]);
    server.post("/predict", &[("content-type", &kind)], &form).json()
}

fn start(model: &Path, more: &[&str]) -> Server {
    let store = model.with_file_name("feedback");
    let files = ["--model", model.to_str().unwrap(), "--feedback", store.to_str().unwrap()];
    let settings =
        ["--drift-window", "40", "--session-idle", "1s", "--queue", "1", "--queue-timeout", "3ms"];
    Server::start(&[&files[..], &settings, more].concat())
}

#[test]
fn before_any_request_no_rate_is_served_and_a_pulled_model_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let model = drawn_model(folder.path(), 60);
    let digest = std::process::Command::new("md5sum").arg(&model).output().unwrap().stdout;
    let digest = String::from_utf8(digest).unwrap().split(' ').next().unwrap().to_string();
    let lock = folder.path().join("dvc.lock");
    let out = format!("stages:\n  train:\n    outs:\n    - path: m\n      md5: {digest}\n");
    std::fs::write(&lock, out).unwrap();
    let server = start(&model, &["--dvc-lock", lock.to_str().unwrap()]);
    let first = server.metrics();
    assert_eq!(first["dvc_pulls_total"], 1.0, "the model is the one that the lock names");
    for absent in ["api_error_rate", "batch_size_avg", "model_accuracy", "drift_psi"] {
        assert!(!first.keys().any(|series| family(series) == absent), "{absent}");
    }
    assert_eq!(first["predictions_abandoned_total"], 0.0, "a counter starts at zero");
    for decision in ["answered", "low_confidence", "out_of_distribution"] {
        let series =
            format!("prediction_decisions_total{{decision=\"{decision}\",model=\"drawn\"}}");
        assert_eq!(first[&series], 0.0);
    }
}

#[test]
fn every_family_is_in_the_table_and_its_cause_moves_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&drawn_model(folder.path(), 60), &[]);
    let before = server.metrics();
    let answers: Vec<_> = (0..40).map(|n| predict(&server, &drawn(n, 1.0))).collect();
    server.get("/health");
    let (kind, junk) = multipart(&[("image/png", b"junk")]);
    server.post("/predict", &[("content-type", &kind)], &junk);
    overload(&server, &drawn(0, 1.0));
    let label = answers[0]["predicted_class"].as_str().unwrap();
    for (answer, right) in [(&answers[0], true), (&answers[1], false)] {
        let predicted = answer["predicted_class"].as_str().unwrap();
        let other = if predicted == "cat" { "dog" } else { "cat" };
        let label = if right { predicted } else { other };
        let given = json!({ "prediction_id": answer["prediction_id"], "label": label });
        let (status, body) = server.post_json("/feedback", &given);
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(server.post_json("/events/adoption", &json!({ "species": "cat" })).0, 202);
    assert_eq!(server.post_json("/events/adoption", &json!({ "species": "x\"y" })).0, 422);
    let after = server.metrics();
    rose(&before, &after, label);
    stand(&after);
    let confidence = [0, 1].map(|place: usize| answers[place]["confidence"].as_f64().unwrap());
    let error = calibration_error(confidence);
    let shown = sum(&after, "model_calibration_error", &[]);
    assert!((shown - 3.0 * error).abs() < 1e-6, "three windows of {error} are {shown}");

    std::thread::sleep(Duration::from_millis(1100));
    let later = server.metrics();
    assert_eq!(later["active_user_sessions"], 0.0);
    assert!(sum(&later, "user_session_duration_seconds_count", &[]) >= 1.0);
    server.signal("-HUP");
    let began = Instant::now();
    while sum(&server.metrics(), "model_reloads_total", &["loaded"]) < 2.0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the reload is not counted");
    }
    let last = server.metrics();
    let loaded = |all: &Series| sum(all, "model_loaded_timestamp_seconds", &[]);
    assert!(loaded(&last) > loaded(&after));
    compare_with_table(after.keys().chain(later.keys()));
}

fn compare_with_table<'a>(series: impl Iterator<Item = &'a String>) {
    let served: BTreeSet<String> = series.map(|series| family(series)).collect();
    let unknown: Vec<_> = served.difference(&table()).cloned().collect();
    assert_eq!(unknown, [""; 0], "served, but not in docs/metrics.md");
    let mut missing: Vec<_> = table().difference(&served).cloned().collect();
    missing.retain(|name| !MAY_BE_ABSENT.contains(&name.as_str()));
    assert_eq!(missing, [""; 0], "in docs/metrics.md, but not served");
}

/// Metrics of a GPU or a memory limit, which this machine may not have, and of keys, the prediction cache and a shadow model,
/// which are off here and tested in `keys.rs`, `cache.rs` and `models.rs`.
const MAY_BE_ABSENT: [&str; 15] = [
    "api_key_requests_total",
    "prediction_cache_bytes",
    "prediction_cache_capacity_bytes",
    "prediction_cache_entries",
    "prediction_cache_requests_total",
    "gpu_utilization_percent",
    "gpu_utilization_ratio",
    "gpu_memory_used_mb",
    "gpu_memory_used_bytes",
    "process_virtual_memory_max_bytes",
    "shadow_classes_total",
    "shadow_decisions_total",
    "shadow_difference",
    "shadow_feedback_total",
    "shadow_photos_total",
];

/// Sends requests from several threads until one is refused.
fn overload(server: &Server, image: &[u8]) {
    let began = Instant::now();
    let (kind, form) = multipart(&[("image/png", image)]);
    let refused = AtomicBool::new(false);
    let deep = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !(refused.load(Ordering::Relaxed) && deep.load(Ordering::Relaxed))
                    && began.elapsed() < Duration::from_secs(20)
                {
                    let reply = server.post("/predict", &[("content-type", &kind)], &form);
                    refused.fetch_or(reply.status == 503, Ordering::Relaxed);
                }
            });
        }
        while !deep.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(20) {
            let waiting = sum(&server.metrics(), "batch_queue_depth", &[]) > 0.0;
            deep.fetch_or(waiting, Ordering::Relaxed);
        }
    });
    assert!(refused.into_inner() && deep.into_inner(), "no overload in 20 s");
}

/// Checks that counters and gauges have risen by at least the expected values.
fn rose(before: &Series, after: &Series, label: &str) {
    let predicted = format!("class_predicted=\"{label}\"");
    let class = format!("class=\"{label}\"");
    let png = drawn(0, 1.0).len() as f64;
    for (name, labels, least) in [
        ("api_requests_total", &["/predict\"", "POST", "200"][..], 40.0),
        ("api_requests_total", &["503"], 1.0),
        ("api_request_latency_seconds_count", &["/predict\""], 42.0),
        ("api_errors_total", &["/predict\"", "not_an_image"], 1.0),
        ("api_errors_total", &["/events/adoption", "unknown_label"], 1.0),
        ("api_predictions_total", &[&class], 1.0),
        ("prediction_requests_total", &[&predicted], 1.0),
        ("prediction_decisions_total", &[], 40.0),
        ("prediction_errors_total", &["not_an_image"], 1.0),
        ("prediction_errors_total", &["overloaded"], 1.0),
        ("prediction_latency_seconds_count", &[], 42.0),
        ("health_check_requests_total", &[], 1.0),
        ("input_image_size_total", &[], 40.0 * png * 0.5),
        ("validation_duration_seconds_count", &[], 42.0),
        ("preprocessing_duration_seconds_count", &[], 41.0),
        ("preprocessing_images_total", &["ok"], 40.0),
        ("preprocessing_images_total", &["refused"], 1.0),
        ("batch_size_count", &[], 1.0),
        ("batch_size_sum", &[], 40.0),
        ("inference_duration_seconds_count", &[], 1.0),
        ("model_prediction_confidence_count", &[], 40.0),
        ("feedback_total", &["right"], 1.0),
        ("feedback_total", &["wrong"], 1.0),
        ("pet_adoptions_total", &["cat"], 1.0),
        ("service_uptime_seconds", &[], 0.01),
        ("requests_per_minute", &[], 43.0),
        ("active_user_sessions", &[], 1.0),
    ] {
        let rise = sum(after, name, labels) - sum(before, name, labels);
        assert!(rise >= least, "{name} {labels:?} rose by {rise}, not {least}");
    }
    assert_eq!(sum(after, "pet_adoptions_total", &["x"]), 0.0, "no label value of a client");
}

/// The expected calibration error, in 15 bins, of two predictions of which the first is right.
fn calibration_error([right, wrong]: [f64; 2]) -> f64 {
    let bin = |confidence: f64| ((confidence * 15.0) as usize).min(14);
    if bin(right) == bin(wrong) {
        (0.5 - (right + wrong) / 2.0).abs()
    } else {
        ((1.0 - right) + wrong) / 2.0
    }
}

/// Checks the values of gauges.
fn stand(after: &Series) {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let info = petnet::Checkpoint::pretrained().unwrap().info().clone();
    let near = |name: &str, expected: f64, tolerance: f64| {
        let value = sum(after, name, &[]);
        assert!((value - expected).abs() <= tolerance, "{name} is {value}, not {expected}");
    };
    // The figures were taken at most a minute ago, perhaps before an hour or a day ended.
    let recent = [now - 60, now];
    let hours = recent.map(|second| (second % 86_400 / 3600) as f64);
    assert!(hours.contains(&sum(after, "current_hour", &[])), "{hours:?}");
    let days = recent.map(|second| ((second / 86_400 + 3) % 7) as f64);
    assert!(days.contains(&sum(after, "current_day_of_week", &[])), "{days:?}");
    near("model_last_trained_timestamp", info.trained.unwrap() as f64, 0.0);
    near("data_version_timestamp", info.data_time.unwrap() as f64, 0.0);
    near("model_loaded_timestamp_seconds", now as f64, 60.0);
    near("process_start_time_seconds", now as f64, 60.0);
    near("batch_queue_capacity", 1.0, 0.0);
    let [images, batches] =
        ["batch_size_sum", "batch_size_count"].map(|name| sum(after, name, &[]));
    near("batch_size_avg", images / batches, 1e-9);
    near("drift_window_photos", 40.0, 0.0);
    for window in ["window=\"1h\"", "window=\"24h\"", "window=\"7d\""] {
        assert_eq!(sum(after, "feedback_photos", &[window]), 2.0);
        assert_eq!(sum(after, "model_accuracy", &[window]), 0.5, "one right, one wrong");
        assert_eq!(sum(after, "model_confusion_photos", &[window]), 2.0);
    }
    for (name, low, high) in [
        ("api_error_rate", 1e-4, 1.0),
        ("batch_throughput_images_per_second", 0.5, 1e4),
        ("process_memory_usage_mb", 10.0, 1e4),
        ("process_cpu_usage_percent", 0.1, 1e4),
        ("feedback_store_bytes", 1.0, 1e9),
        ("disk_free_bytes", 1e6, 1e16),
    ] {
        let value = sum(after, name, &[]);
        assert!((low..=high).contains(&value), "{name} is {value}");
    }
    let resident = sum(after, "process_resident_memory_bytes", &[]);
    near("process_memory_usage_mb", resident / 1e6, resident / 1e7);
}

#[test]
fn drift_is_raised_by_darker_or_wider_images_and_not_by_more_of_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let model = drawn_model(folder.path(), 600);
    let server = Server::start(&["--model", model.to_str().unwrap(), "--drift-window", "200"]);
    let psi = |server: &Server, statistic: &str| {
        sum(&server.metrics(), "drift_psi", &[&format!("statistic=\"{statistic}\"")])
    };
    let send = |images: &mut dyn Iterator<Item = Vec<u8>>| {
        for image in images {
            assert!(predict(&server, &image)["predicted_class"].is_string());
        }
    };
    send(&mut (1000..1200).map(|n| drawn(n, 1.0)));
    let bright = server.metrics();
    let all = bright.iter().filter(|(key, _)| key.starts_with("drift_psi")).map(|(_, v)| *v);
    assert!(all.fold(0.0, f64::max) < 0.25, "{:?}", series(&bright, "drift_psi"));
    send(&mut (0..200).map(|n| drawn(n, 0.3)));
    assert!(psi(&server, "brightness") > 0.25, "dark images");
    send(&mut (0..200).map(|_| test_image(ImageFormat::Png)));
    assert!(psi(&server, "aspect") > 0.25, "images of another aspect ratio");
    send(&mut (2000..2200).map(|n| drawn(n, 1.0)));
    assert!(psi(&server, "brightness") < 0.25, "bright images again");
}
