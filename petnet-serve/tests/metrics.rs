//! Every metric is in a table of `docs/metrics.md`, and changes with the event that it measures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Server, drawn_image, drawn_model, multipart, test_image, wait_until};
use image::ImageFormat;
use serde_json::json;

type Series = BTreeMap<String, f64>;

/// Names of metrics in the first column of the service's tables in `docs/metrics.md`.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../../docs/metrics.md");
    let (service, _training) = page.split_once("## Training").unwrap();
    let cells = service.lines().filter(|line| line.starts_with("| `"));
    let cells = cells.map(|line| line.split('|').nth(1).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(String::from).collect()
}

/// Names of all metrics that the service can have: the declarations `CONSTANT = "name", "help text";` of the source.
fn declared() -> BTreeSet<String> {
    let source = include_str!("../src/telemetry/names.rs");
    let names = source.lines().filter_map(|line| line.split_once(" = \"")?.1.split('"').next());
    names.map(String::from).collect()
}

#[test]
fn the_tables_of_docs_metrics_name_exactly_the_declared_metrics() {
    let (declared, documented) = (declared(), documented());
    assert!(declared.len() > 80, "the declarations are not found: {declared:?}");
    let undocumented: Vec<_> = declared.difference(&documented).collect();
    assert_eq!(undocumented, [""; 0], "declared in names.rs, but not in docs/metrics.md");
    let undeclared: Vec<_> = documented.difference(&declared).collect();
    assert_eq!(undeclared, [""; 0], "in docs/metrics.md, but not declared in names.rs");
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
    let settings = ["--drift-window", "40", "--session-idle", "5s", "--queue", "1"];
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
fn every_metric_is_served_and_its_cause_moves_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&drawn_model(folder.path(), 60), &[]);
    let before = server.metrics();
    let answers: Vec<_> = (0..40).map(|n| predict(&server, &drawn_image(n, 1.0))).collect();
    server.get("/health");
    let (kind, junk) = multipart(&[("image/png", b"junk")]);
    server.post("/predict", &[("content-type", &kind)], &junk);
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
    assert_risen(&before, &after, label);
    assert_gauges(&after);
    let confidence = [0, 1].map(|place: usize| answers[place]["confidence"].as_f64().unwrap());
    let error = calibration_error(confidence);
    let shown = sum(&after, "model_calibration_error", &[]);
    assert!((shown - 3.0 * error).abs() < 1e-6, "three windows of {error} are {shown}");

    wait_until("all sessions have ended", || server.metrics()["active_user_sessions"] == 0.0);
    let later = server.metrics();
    assert!(sum(&later, "user_session_duration_seconds_count", &[]) >= 1.0);
    server.signal("-HUP");
    wait_until("the reload is counted", || {
        sum(&server.metrics(), "model_reloads_total", &["loaded"]) >= 2.0
    });
    let last = server.metrics();
    let loaded = |all: &Series| sum(all, "model_loaded_timestamp_seconds", &[]);
    assert!(loaded(&last) > loaded(&after));
    let served: BTreeSet<String> =
        after.keys().chain(later.keys()).map(|key| family(key)).collect();
    let documented = documented();
    let unknown: Vec<_> = served.difference(&documented).collect();
    assert_eq!(unknown, [""; 0], "served, but not in docs/metrics.md");
    let missing = documented.difference(&served);
    let missing: Vec<_> = missing.filter(|name| !MAY_BE_ABSENT.contains(&name.as_str())).collect();
    assert_eq!(missing, [""; 0], "in docs/metrics.md, but not served");
}

/// With one permit and no time to wait for it, the third of three concurrent requests is refused at once, because its
/// estimated wait is not zero once an image was classified. The speed of network and machine has no part in that.
#[test]
fn overload_and_images_in_flight_are_counted() {
    let server = Server::start(&["--queue", "1", "--queue-timeout", "1ns"]);
    let image = drawn_image(0, 1.0);
    let (kind, form) = multipart(&[("image/png", &image)]);
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    let (mut in_flight, mut refused) = (false, false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    server.post("/predict", &[("content-type", &kind)], &form);
                }
            });
        }
        while !(in_flight && refused) && began.elapsed() < Duration::from_secs(60) {
            let metrics = server.metrics();
            in_flight |= sum(&metrics, "batch_queue_depth", &[]) > 0.0;
            refused |= sum(&metrics, "prediction_errors_total", &["overloaded"]) > 0.0;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(in_flight, "no image in flight was seen in 60 s");
    let metrics = server.metrics();
    for (name, labels) in [
        ("api_requests_total", "503"),
        ("api_errors_total", "overloaded"),
        ("prediction_errors_total", "overloaded"),
    ] {
        assert!(sum(&metrics, name, &[labels]) > 0.0, "{name} {labels}");
    }
    let rate = metrics["api_error_rate"];
    assert!(rate > 0.0 && rate <= 1.0, "{rate}");
}

/// Metrics of a GPU or a memory limit, which this machine may not have, and of keys, the prediction cache and a shadow model,
/// which are off here and tested in `keys.rs`, `cache.rs` and `models.rs`.
const MAY_BE_ABSENT: &[&str] = &[
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

/// Checks that counters and gauges have risen by at least the expected values.
fn assert_risen(before: &Series, after: &Series, label: &str) {
    let predicted = format!("class_predicted=\"{label}\"");
    let class = format!("class=\"{label}\"");
    let png = drawn_image(0, 1.0).len() as f64;
    for (name, labels, least) in [
        ("api_requests_total", &["/predict\"", "POST", "200"][..], 40.0),
        ("api_request_latency_seconds_count", &["/predict\""], 41.0),
        ("api_errors_total", &["/predict\"", "not_an_image"], 1.0),
        ("api_errors_total", &["/events/adoption", "unknown_label"], 1.0),
        ("api_predictions_total", &[&class], 1.0),
        ("prediction_requests_total", &[&predicted], 1.0),
        ("prediction_decisions_total", &[], 40.0),
        ("prediction_errors_total", &["not_an_image"], 1.0),
        ("prediction_latency_seconds_count", &[], 41.0),
        ("health_check_requests_total", &[], 1.0),
        ("input_image_size_total", &[], 40.0 * png * 0.5),
        ("validation_duration_seconds_count", &[], 41.0),
        ("preprocessing_duration_seconds_count", &[], 40.0),
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
        ("requests_per_minute", &[], 1.0),
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
fn assert_gauges(after: &Series) {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let info = petnet::Checkpoint::pretrained().unwrap().info().clone();
    let near = |name: &str, expected: f64, tolerance: f64| {
        let value = sum(after, name, &[]);
        assert!((value - expected).abs() <= tolerance, "{name} is {value}, not {expected}");
    };
    // The figures were taken some minutes ago at most, perhaps before an hour or a day ended.
    let recent = [now - 600, now];
    let hours = recent.map(|second| (second % 86_400 / 3600) as f64);
    assert!(hours.contains(&sum(after, "current_hour", &[])), "{hours:?}");
    let days = recent.map(|second| ((second / 86_400 + 3) % 7) as f64);
    assert!(days.contains(&sum(after, "current_day_of_week", &[])), "{days:?}");
    near("model_last_trained_timestamp", info.trained.unwrap() as f64, 0.0);
    near("data_version_timestamp", info.data_time.unwrap() as f64, 0.0);
    near("model_loaded_timestamp_seconds", now as f64, 600.0);
    near("process_start_time_seconds", now as f64, 600.0);
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
        ("api_error_rate", 0.0, 0.0),
        ("batch_throughput_images_per_second", 0.01, 1e4),
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
    send(&mut (1000..1200).map(|n| drawn_image(n, 1.0)));
    let bright = server.metrics();
    let all = bright.iter().filter(|(key, _)| key.starts_with("drift_psi")).map(|(_, v)| *v);
    assert!(all.fold(0.0, f64::max) < 0.25, "{:?}", series(&bright, "drift_psi"));
    send(&mut (0..200).map(|n| drawn_image(n, 0.3)));
    assert!(psi(&server, "brightness") > 0.25, "dark images");
    send(&mut (0..200).map(|_| test_image(ImageFormat::Png)));
    assert!(psi(&server, "aspect") > 0.25, "images of another aspect ratio");
    send(&mut (2000..2200).map(|n| drawn_image(n, 1.0)));
    assert!(psi(&server, "brightness") < 0.25, "bright images again");
}
