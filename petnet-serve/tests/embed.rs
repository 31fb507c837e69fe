//! Embeddings over HTTP, by `/embed` and by the Open Inference Protocol, compared with those of the library.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use common::{Server, multipart, test_image};
use image::ImageFormat;
use petnet::Classifier;
use serde_json::{Value, json};

const INFER: &str = "/v2/models/cats-vs-dogs/infer";

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_embedding_is_the_librarys_in_every_form_of_request() {
    let server = Server::start(&[]);
    let file = test_image(ImageFormat::Jpeg);
    let classifier = Classifier::pretrained().unwrap();
    let expected = classifier.embed_bytes(&file).unwrap();
    let (kind, form) = multipart(&[("image/jpeg", &file)]);
    let encoded = base64::engine::general_purpose::STANDARD.encode(&file);
    let text = json!({ "image": encoded }).to_string();
    let bodies: [(&str, &[u8]); 3] =
        [(&kind, &form), ("image/jpeg", &file), ("application/json", text.as_bytes())];
    for (kind, body) in bodies {
        let reply = server.post("/embed", &[("content-type", kind)], body);
        assert_eq!(reply.status, 200, "{}", reply.head);
        let answer = reply.json();
        assert_eq!(floats(&answer["embedding"]), expected, "bit for bit");
        assert_eq!(answer["length"], classifier.embedding_len());
        assert_eq!(answer["model"]["name"], "cats-vs-dogs");
        assert_eq!(answer["model"]["sha256"], server.get("/version").json()["model"]["sha256"]);
        assert!(answer["processing_time_ms"].as_f64().unwrap() > 0.0);
    }
    let metrics = server.metrics();
    let requests = "api_requests_total{endpoint=\"/embed\",method=\"POST\",status=\"200\"}";
    assert_eq!(metrics[requests], 3.0);
    let predictions: f64 = metrics
        .iter()
        .filter(|(name, _)| name.starts_with("prediction_requests_total"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(predictions, 0.0, "no prediction was given");
}

#[test]
fn an_embedding_is_refused_as_a_prediction_is() {
    let server = Server::start(&["--max-body", "100000"]);
    let image = [("content-type", "image/jpeg")];
    for (reply, status) in [
        (server.get("/embed"), 405),
        (server.post("/embed", &image, &vec![0; 100_001]), 413),
        (server.post("/embed", &[("content-type", "text/html")], b"<p>"), 415),
        (server.post("/embed", &image, b"no image"), 400),
        (server.post("/embed", &image, &test_image(ImageFormat::Jpeg)[..300]), 422),
    ] {
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
    let errors: f64 = server
        .metrics()
        .iter()
        .filter(|(name, _)| name.starts_with("prediction_errors_total"))
        .map(|(_, value)| value)
        .sum();
    assert_eq!(errors, 5.0);
    // printf %s secret | sha256sum
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let guarded = Server::start(&["--api-keys-sha256", hash]);
    assert_eq!(guarded.post("/embed", &image, &test_image(ImageFormat::Jpeg)).status, 401);
}

#[test]
fn the_protocol_returns_embeddings_only_where_they_are_requested() {
    let server = Server::start(&[]);
    let classifier = Classifier::pretrained().unwrap();
    let (length, files) =
        (classifier.embedding_len(), [ImageFormat::Jpeg, ImageFormat::Png].map(test_image));
    let expected = files.clone().map(|file| classifier.embed_bytes(&file).unwrap()).concat();
    let described = json!({ "name": "embedding", "datatype": "FP32", "shape": [-1, length] });
    let model = server.get("/v2/models/cats-vs-dogs").json();
    assert!(model["outputs"].as_array().unwrap().contains(&described), "{model}");
    let config = server.get("/v2/models/cats-vs-dogs-pixels/config").json();
    assert_eq!(config["output"][4]["dims"], json!([-1, length]));

    let data = files.map(|file| base64::engine::general_purpose::STANDARD.encode(file));
    let ask = |outputs: Value| {
        let inputs = json!([{ "name": "image", "shape": [2], "datatype": "BYTES", "data": data }]);
        let body = json!({ "inputs": inputs, "outputs": outputs }).to_string();
        server.post(INFER, &[], body.as_bytes())
    };
    let named = ask(json!([{ "name": "embedding" }, { "name": "label" }])).json();
    let output = &named["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("FP32"), &json!([2, length])));
    assert_eq!(floats(&output["data"]), expected);
    assert_eq!(named["outputs"].as_array().unwrap().len(), 2);
    let binary = ask(json!([{ "name": "embedding", "parameters": { "binary_data": true } }]));
    let head: usize = binary.header("inference-header-content-length").unwrap().parse().unwrap();
    let values = binary.body[head..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    assert_eq!(values.collect::<Vec<_>>(), expected);
    let default = ask(json!([])).json();
    let names = default["outputs"].as_array().unwrap().iter().map(|output| &output["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["probabilities", "label", "prediction_id", "decision"]);
    let ranked =
        ask(json!([{ "name": "embedding", "parameters": { "classification": 1 } }])).status;
    assert_eq!(ranked, 400);
}
