//! The prediction cache.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Server, drawn_image, multipart, test_image, variant, wait_until};
use image::ImageFormat;
use petnet::Precision;
use serde_json::Value;

const HITS: &str = "prediction_cache_requests_total{result=\"hit\"}";
const MISSES: &str = "prediction_cache_requests_total{result=\"miss\"}";

/// A response without the fields that differ each time.
fn without_varying_fields(mut answer: Value) -> Value {
    for own in ["prediction_id", "processing_time_ms", "index", "filename"] {
        answer.as_object_mut().unwrap().remove(own);
    }
    answer
}

#[test]
fn the_same_bytes_get_the_same_answer_without_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let feedback = folder.path().to_str().unwrap();
    let server = Server::start(&["--cache", "8", "--feedback", feedback]);
    let image = test_image(ImageFormat::Jpeg);
    let jpeg = [("content-type", "image/jpeg")];
    let first = server.post("/predict", &jpeg, &image).json();
    let (kind, form) = multipart(&[("image/jpeg", &image)]);
    let second = server.post("/predict", &[("content-type", &kind)], &form).json();
    assert_eq!(without_varying_fields(first.clone()), without_varying_fields(second.clone()));
    assert_ne!(first["prediction_id"], second["prediction_id"]);
    let embedding = server.post("/embed", &jpeg, &image).json()["embedding"].clone();
    let plain = Server::start(&[]).post("/embed", &jpeg, &image).json();
    assert_eq!(embedding, plain["embedding"], "bit for bit");
    let (kind, form) = multipart(&[("image/jpeg", &image), ("image/png", &drawn_image(1, 1.0))]);
    let many = server.post("/predict/batch", &[("content-type", &kind)], &form).json();
    assert_eq!(
        without_varying_fields(many["predictions"][0].clone()),
        without_varying_fields(first)
    );
    let metrics = server.metrics();
    assert_eq!((metrics[HITS], metrics[MISSES]), (3.0, 2.0));
    assert_eq!(metrics["preprocessing_images_total{result=\"ok\"}"], 2.0);
    assert_eq!(metrics["prediction_cache_entries"], 2.0);
    // A prediction from the cache accepts feedback like any other.
    let id = second["prediction_id"].as_str().unwrap();
    let label = second["predicted_class"].as_str().unwrap();
    let (status, answer) =
        server.post_json("/feedback", &serde_json::json!({ "prediction_id": id, "label": label }));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn another_model_does_not_get_cached_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    variant(1.0).save(&path, Precision::F16).unwrap();
    let server =
        Server::start(&["--cache", "8", "--watch", "20ms", "--model", path.to_str().unwrap()]);
    let image = test_image(ImageFormat::Jpeg);
    let ask = || server.post("/predict", &[("content-type", "image/jpeg")], &image).json();
    let before = ask()["model"]["version"].clone();
    assert_eq!(ask()["model"]["version"], before);
    variant(2.0).save(&path, Precision::F16).unwrap();
    wait_until("the new model", || ask()["model"]["version"] != before);
    assert_eq!(server.metrics()[MISSES], 2.0);
}

#[test]
fn the_cache_is_bounded_in_bytes_and_off_by_default() {
    let server = Server::start(&["--cache", "1"]);
    for number in 0..220 {
        let reply =
            server.post("/predict", &[("content-type", "image/png")], &drawn_image(number, 1.0));
        assert_eq!(reply.status, 200);
    }
    let metrics = server.metrics();
    let [bytes, capacity] =
        ["prediction_cache_bytes", "prediction_cache_capacity_bytes"].map(|name| metrics[name]);
    assert_eq!(capacity, f64::from(1 << 20));
    assert!(bytes <= capacity && bytes > capacity / 2.0, "{bytes}");
    assert!(metrics["prediction_cache_entries"] < 200.0);
    let off = Server::start(&[]);
    off.post("/predict", &[("content-type", "image/png")], &drawn_image(0, 1.0));
    assert!(!off.metrics().keys().any(|name| name.starts_with("prediction_cache")));
}
