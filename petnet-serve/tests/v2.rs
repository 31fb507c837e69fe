//! The Open Inference Protocol over HTTP at the level of bytes; `scripts/triton-test.sh` tests it with `tritonclient`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};

use base64::Engine as _;
use common::{Reply, Server, multipart, test_image};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use image::ImageFormat;
use serde_json::{Value, json};

const INFER: &str = "/v2/models/cats-vs-dogs/infer";
const LENGTH: &str = "inference-header-content-length";

/// Posts JSON followed by raw tensors.
fn post_tensors(
    server: &Server,
    path: &str,
    head: &Value,
    binary: &[u8],
    more: &[(&str, &str)],
) -> Reply {
    let head = head.to_string();
    let length = head.len().to_string();
    let headers = [&[(LENGTH, length.as_str())][..], more].concat();
    server.post(path, &headers, &[head.as_bytes(), binary].concat())
}

fn element(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn image(images: usize, binary: usize) -> Value {
    json!({
        "name": "image", "shape": [images], "datatype": "BYTES",
        "parameters": { "binary_data_size": binary },
    })
}

/// The JSON of a response, and the raw tensors after it.
fn parts(reply: &Reply) -> (Value, Vec<u8>) {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    let head: usize = reply.header(LENGTH).unwrap().parse().unwrap();
    let (head, binary) = reply.body.split_at(head);
    (serde_json::from_slice(head).unwrap(), binary.to_vec())
}

#[test]
fn metadata_and_configuration_describe_the_models() {
    let server = Server::start(&[]);
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/cats-vs-dogs/ready"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let about = server.get("/v2").json();
    assert!(about["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    let model = server.get("/v2/models/cats%2Dvs-dogs/versions/1").json();
    assert_eq!(model["inputs"], json!([{ "name": "image", "datatype": "BYTES", "shape": [-1] }]));
    assert_eq!(model["outputs"][0]["shape"], json!([-1, 2]));
    assert_eq!(
        model["outputs"][3],
        json!({ "name": "decision", "datatype": "BYTES", "shape": [-1] })
    );
    let pixels = server.get("/v2/models/cats-vs-dogs-pixels").json();
    assert_eq!(pixels["inputs"][0]["shape"], json!([-1, 3, 224, 224]));
    assert_eq!(
        server.get("/v2/models/cats-vs-dogs/config").json()["input"][0]["dims"],
        json!([-1])
    );
    let index = server.post("/v2/repository/index", &[], b"").json();
    assert_eq!(index.as_array().unwrap().len(), 2);
    assert_eq!(index[0]["state"], "READY");
    let unknown = server.get("/v2/models/horse");
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].as_str().unwrap().contains("cats-vs-dogs"));
    assert_eq!(server.get("/v2/models/cats-vs-dogs/nothing").status, 404);
}

#[test]
fn json_binary_and_a_raw_image_give_the_outputs_of_predict() {
    let server = Server::start(&[]);
    let file = test_image(ImageFormat::Jpeg);
    let (kind, form) = multipart(&[("image/jpeg", &file)]);
    let known = server.post("/predict", &[("content-type", &kind)], &form).json();
    let probabilities = |label: &str| known["probabilities"][label].as_f64().unwrap();
    let expected = [probabilities("cat"), probabilities("dog")];
    let near = |values: &[f64]| values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);

    let encoded = base64::engine::general_purpose::STANDARD.encode(&file);
    let body = json!({ "id": "4711", "inputs": [
        { "name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded] },
    ] });
    let answer = server.post(INFER, &[], body.to_string().as_bytes()).json();
    assert_eq!((&answer["id"], &answer["model_name"]), (&json!("4711"), &json!("cats-vs-dogs")));
    let values: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert!(near(&values), "{values:?} {expected:?}");
    assert_eq!(answer["outputs"][1]["data"][0], known["predicted_class"]);
    assert_eq!(answer["outputs"][2]["data"][0].as_str().unwrap().len(), 36);
    assert_eq!(answer["outputs"][3]["name"], "decision");
    let decision = known["reason"].as_str().unwrap_or("answered");
    assert_eq!(answer["outputs"][3]["data"][0], decision);

    let two = [element(&file), element(&file)].concat();
    let head = json!({ "inputs": [image(2, two.len())], "outputs": [
        { "name": "probabilities", "parameters": { "binary_data": true } },
        { "name": "probabilities", "parameters": { "classification": 1 } },
    ] });
    let reply = post_tensors(&server, INFER, &head, &two, &[]);
    let (head, binary) = parts(&reply);
    assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
    assert_eq!(head["outputs"][0]["shape"], json!([2, 2]));
    let values = binary.as_chunks().0.iter().map(|v| f64::from(f32::from_le_bytes(*v)));
    let values: Vec<f64> = values.collect();
    assert!(near(&values[..2]) && near(&values[2..]) && values.len() == 4);
    let label = known["predicted_class"].as_str().unwrap();
    let top = head["outputs"][1]["data"][1].as_str().unwrap();
    assert!(top.ends_with(&format!("{}:{label}", u8::from(label == "dog"))), "{top}");

    let bare = server.post(INFER, &[(LENGTH, "0")], &file);
    let (head, binary) = parts(&bare);
    let values = binary[..8].as_chunks().0.iter().map(|v| f64::from(f32::from_le_bytes(*v)));
    assert!(near(&values.collect::<Vec<_>>()), "{head}");
    assert_eq!(
        binary[8..].to_vec(),
        [element(label.as_bytes()), binary[8 + 4 + label.len()..].to_vec()].concat()
    );
}

#[test]
fn tensors_give_the_outputs_of_the_same_pixels_and_compression_changes_nothing() {
    let server = Server::start(&[]);
    let classifier = petnet::Classifier::pretrained().unwrap();
    let pixels = classifier.preprocess(&test_image(ImageFormat::Png)).unwrap();
    let expected = classifier.classify_pixels(std::slice::from_ref(&pixels)).unwrap();
    let plane = 224 * 224;
    let value = |at: usize| f32::from(pixels.data()[at % plane * 3 + at / plane]);
    let raw: Vec<u8> = (0..3 * plane).flat_map(|at| value(at).to_le_bytes()).collect();
    let head = json!({ "inputs": [{
        "name": "pixels", "shape": [1, 3, 224, 224], "datatype": "FP32",
        "parameters": { "binary_data_size": raw.len() },
    }] });
    let path = "/v2/models/cats-vs-dogs-pixels/infer";
    let plain = post_tensors(&server, path, &head, &raw, &[]).json();
    let got: Vec<f32> = serde_json::from_value(plain["outputs"][0]["data"].clone()).unwrap();
    assert!(got.iter().zip(expected[0].probabilities()).all(|(a, b)| (a - b).abs() < 1e-5));

    let text = head.to_string();
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&[text.as_bytes(), &raw].concat()).unwrap();
    let length = text.len().to_string();
    let headers =
        [(LENGTH, length.as_str()), ("content-encoding", "gzip"), ("accept-encoding", "gzip")];
    let reply = server.post(path, &headers, &packed.finish().unwrap());
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    let mut unpacked = String::new();
    GzDecoder::new(&reply.body[..]).read_to_string(&mut unpacked).unwrap();
    let unpacked: Value = serde_json::from_str(&unpacked).unwrap();
    assert_eq!(unpacked["outputs"][0], plain["outputs"][0]);
    let stats = server.get("/v2/models/cats-vs-dogs-pixels/stats").json();
    assert_eq!(stats["model_stats"][0]["inference_stats"]["success"]["count"], 2);
}

#[test]
fn invalid_requests_are_refused_with_a_reason() {
    let server = Server::start(&["--max-body", "400000", "--max-parts", "4"]);
    let file = test_image(ImageFormat::Jpeg);
    let one = element(&file);
    let head = |inputs: Value| json!({ "inputs": inputs });
    let data = |data: Value| {
        head(json!([{ "name": "image", "shape": [1], "datatype": "BYTES", "data": data }]))
    };
    let cases = [
        (head(json!([])), &[][..], 400),
        (head(json!([image(1, one.len() + 1)])), &one[..], 400),
        (head(json!([image(2, one.len())])), &one, 400),
        (head(json!([image(1, one.len() - 1)])), &one, 400),
        (head(json!([image(5, one.len())])), &one, 413),
        (data(json!(["%%"])), &[], 400),
        (data(json!([["aGVsbG8="], [1]])), &[], 400),
        (
            json!({ "inputs": [{ "name": "image", "shape": [1, 9], "datatype": "BYTES", "data": [] }] }),
            &[],
            413,
        ),
        (
            json!({ "inputs": [image(1, one.len())], "outputs": vec![json!({ "name": "label" }); 17] }),
            &one,
            413,
        ),
        (data(json!([7])), &[], 400),
        (data(json!(["aGVsbG8="])), &[], 400),
        (
            json!({ "inputs": [{ "name": "image", "shape": [-1], "datatype": "BYTES", "data": [] }] }),
            &[],
            400,
        ),
        (
            json!({ "inputs": [{ "name": "image", "shape": [1], "datatype": "INT8", "data": [1] }] }),
            &[],
            400,
        ),
        (
            json!({ "inputs": [{ "name": "image", "shape": [1], "datatype": "FP32", "data": [1.0] }] }),
            &[],
            400,
        ),
        (json!({ "inputs": [{ "name": "x", "shape": [1], "datatype": "BYTES" }] }), &[], 400),
        (json!({ "inputs": [image(1, one.len())], "outputs": [{ "name": "x" }] }), &one, 400),
        (
            json!({ "inputs": [{ "name": "image", "shape": [9_000_000_000_000_000_000_i64, 4], "datatype": "BYTES", "data": [] }] }),
            &[],
            413,
        ),
    ];
    for (number, (head, binary, status)) in cases.iter().enumerate() {
        let reply = post_tensors(&server, INFER, head, binary, &[]);
        assert_eq!(reply.status, *status, "case {number}: {}", reply.json());
        assert!(!reply.json()["error"].as_str().unwrap().is_empty());
    }
}

#[test]
fn wrong_lengths_and_broken_compression_are_refused() {
    let server = Server::start(&["--max-body", "400000"]);
    let half = element(&test_image(ImageFormat::Jpeg)[..400]);
    let head = json!({ "inputs": [image(1, half.len())] });
    assert_eq!(post_tensors(&server, INFER, &head, &half, &[]).status, 422, "half an image");
    assert_eq!(server.post(INFER, &[(LENGTH, "99")], b"{}").status, 400);
    assert_eq!(server.post(INFER, &[(LENGTH, "x")], b"{}").status, 400);
    assert_eq!(server.post(INFER, &[("content-encoding", "br")], b"{}").status, 415);
    assert_eq!(server.post(INFER, &[("content-encoding", "gzip")], b"{}").status, 400);
    // A decompression bomb: larger than the body limit once decompressed.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![b' '; 8 << 20]).unwrap();
    assert_eq!(
        server.post(INFER, &[("content-encoding", "gzip")], &bomb.finish().unwrap()).status,
        413
    );
    assert_eq!(server.post("/v2/repository/models/cats-vs-dogs/unload", &[], b"").status, 403);
}

#[test]
fn a_model_is_unloaded_and_loaded_with_a_key() {
    // printf %s secret | sha256sum
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let server = Server::start(&["--api-keys-sha256", hash]);
    let key = [("x-api-key", "secret")];
    let repository = |verb: &str| format!("/v2/repository/models/cats-vs-dogs/{verb}");
    assert_eq!(server.post(INFER, &[], b"{}").status, 401);
    assert_eq!(server.post(&repository("unload"), &[], b"").status, 401);
    assert_eq!(server.post(&repository("unload"), &key, b"").status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 503);
    assert_eq!(server.get("/readyz").status, 503);
    assert_eq!(server.get("/v2/health/live").status, 200);
    assert_eq!(server.post(&repository("load"), &key, b"").status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 200);
}
