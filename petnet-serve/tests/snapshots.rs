//! Help, answers and refusals of the real server, compared with the files in `snapshots/`. Review a change with
//! `cargo insta review`, or run the tests with `INSTA_UPDATE=always` and read the difference.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::process::Command;

use common::{Server, multipart, picture, post};
use image::ImageFormat;
use serde_json::{Value, json};

#[test]
fn help() {
    let output = Command::new(env!("CARGO_BIN_EXE_petnet-serve")).arg("--help").output().unwrap();
    insta::assert_snapshot!("help", String::from_utf8(output.stdout).unwrap());
}

/// Numbers, identifiers and versions by their type: they depend on the processor, the time and the model.
fn shape(value: Value) -> Value {
    match value {
        Value::Number(_) => json!("[number]"),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| match (name.as_str(), value) {
                ("status", value) => (name, value),
                ("prediction_id" | "model_version" | "version" | "timestamp", _) => {
                    (name, json!("[text]"))
                }
                (_, value) => (name, shape(value)),
            })
            .collect(),
        Value::Array(values) => values.into_iter().map(shape).collect(),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

#[test]
fn answers_and_refusals() {
    let server = Server::start(&["--max-body", "200000"]);
    let png = [("content-type", "image/png")];
    let image = picture(ImageFormat::Png);
    let (kind, body) = multipart(&[("image/png", &image), ("image/png", b"junk")]);
    let parts = [("content-type", kind.as_str())];
    let requests = [
        ("an image", post("/predict", &png, &image)),
        ("an image and a file that is none", post("/predict/batch", &parts, &body)),
        ("no image", post("/predict", &png, b"junk")),
        ("an empty body", post("/predict", &png, b"")),
        ("a cut image", post("/predict", &png, &image[..image.len() / 2])),
        ("a text", post("/predict", &[("content-type", "text/plain")], b"cat")),
        ("too many bytes", post("/predict", &png, &vec![0; 200_001])),
        ("two images for one answer", post("/predict", &parts, &body)),
        ("an unknown model", post("/predict?model=birds", &png, &image)),
        ("an unknown path", post("/predictions", &png, &image)),
        ("a wrong method", post("/health", &png, &image)),
        ("feedback on nothing", post("/feedback", &[("content-type", "application/json")], b"{}")),
    ];
    let mut texts = String::new();
    for (name, request) in requests {
        let reply = server.send(&request);
        let body = serde_json::to_string_pretty(&shape(reply.json())).unwrap();
        texts += &format!("{name}: {}\n{body}\n\n", reply.status);
    }
    insta::assert_snapshot!("answers", texts);
}
