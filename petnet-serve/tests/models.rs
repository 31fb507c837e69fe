//! Several models in one process, the shadow model, and images by URL.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Server, multipart, test_image, variant, wait_until};
use image::ImageFormat;
use petnet::burn::{Network, open};
use petnet::{Checkpoint, Device, Precision};
use serde_json::{Value, json};

fn predict(server: &Server, path: &str) -> Value {
    let reply =
        server.post(path, &[("content-type", "image/jpeg")], &test_image(ImageFormat::Jpeg));
    assert_eq!(reply.status, 200, "{path}: {}", String::from_utf8_lossy(&reply.body));
    reply.json()
}

#[test]
fn each_model_answers_by_its_name_and_is_replaced_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("second.safetensors");
    variant(0.5).save(&file, petnet::Precision::F16).unwrap();
    let second = format!("second={}", file.display());
    let server = Server::start(&["--model", "pretrained", "--model", &second, "--watch", "50ms"]);
    let home = server.get("/").json();
    assert_eq!(home["models"], json!(["cats-vs-dogs", "second"]));
    let versions: Vec<Value> = ["/predict", "/predict?model=second", "/predict?model=cats-vs-dogs"]
        .iter()
        .map(|path| predict(&server, path)["model"].clone())
        .collect();
    assert_eq!(versions[0], versions[2], "the first model is the default");
    assert_eq!(
        (&versions[0]["name"], &versions[1]["name"]),
        (&json!("cats-vs-dogs"), &json!("second"))
    );
    assert_ne!(versions[0]["version"], versions[1]["version"]);

    // The model may be a field of the body; the query must not contradict it.
    let (kind, mut form) = multipart(&[("image/jpeg", &test_image(ImageFormat::Jpeg))]);
    form.truncate(form.len() - "--XyZ--\r\n".len());
    form.extend(
        b"--XyZ\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nsecond\r\n--XyZ--\r\n",
    );
    let headers = [("content-type", kind.as_str())];
    assert_eq!(server.post("/predict", &headers, &form).json()["model"]["name"], "second");
    assert_eq!(server.post("/predict?model=cats-vs-dogs", &headers, &form).status, 400);
    assert_eq!(server.post("/predict?model=third", &headers, &form).status, 404);
    // A field that was not filled in.
    form.truncate(form.len() - "second\r\n--XyZ--\r\n".len());
    form.extend(b"\r\n--XyZ--\r\n");
    assert_eq!(server.post("/predict", &headers, &form).json()["model"], versions[0]);

    // Both models have both names of the Open Inference Protocol.
    let index = server.post("/v2/repository/index", &[], b"").json();
    let names: Vec<&str> =
        index.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cats-vs-dogs", "cats-vs-dogs-pixels", "second", "second-pixels"]);
    assert_eq!(server.get("/v2/models/second").json()["versions"][0], versions[1]["version"]);

    // A changed file replaces its own model, and feedback belongs to the model that made the prediction.
    variant(0.6).save(&file, petnet::Precision::F16).unwrap();
    wait_until("the second model's new file", || {
        predict(&server, "/predict?model=second")["model"]["version"] != versions[1]["version"]
    });
    assert_eq!(predict(&server, "/predict")["model"], versions[0]);
    let metrics = server.metrics();
    assert_eq!(metrics["model_reloads_total{model=\"second\",result=\"loaded\"}"], 2.0);
    assert_eq!(metrics["model_reloads_total{model=\"cats-vs-dogs\",result=\"loaded\"}"], 1.0);
    assert_eq!(metrics["batch_queue_capacity{model=\"second\"}"], 16.0, "half of the places");
}

/// The bundled network with other names of its classes, and another digest for each number.
fn renamed_classes(number: f32) -> Checkpoint {
    let checkpoint = variant(number);
    let mut info = checkpoint.info().clone();
    info.labels = vec!["hen".into(), "owl".into()];
    // Their values are no part of the network.
    (info.source, info.ood, info.quantization) = (None, None, None);
    let network = Network::load(&checkpoint, &open(Device::Cpu).unwrap()).unwrap();
    network.checkpoint(info).unwrap()
}

#[test]
fn feedback_belongs_to_the_model_of_the_prediction_also_after_its_reload() {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("birds.safetensors"), folder.path().join("feedback"));
    renamed_classes(0.5).save(&file, Precision::F16).unwrap();
    let models = ["--model", "pretrained", "--model", file.to_str().unwrap(), "--watch", "50ms"];
    let server = Server::start(&[&models[..], &["--feedback", store.to_str().unwrap()]].concat());
    let birds = || predict(&server, "/predict?model=birds");
    let [birds_answer, default_answer] = [birds(), predict(&server, "/predict")];
    renamed_classes(0.6).save(&file, Precision::F16).unwrap();
    wait_until("the new file", || birds()["model"]["version"] != birds_answer["model"]["version"]);
    for (answer, label, status) in [
        (&birds_answer, "owl", 200),
        (&birds_answer, "cat", 422),
        (&default_answer, "cat", 200),
        (&default_answer, "owl", 422),
    ] {
        let given = json!({ "prediction_id": answer["prediction_id"], "label": label });
        let (answered, body) = server.post_json("/feedback", &given);
        assert_eq!(answered, status, "{label}: {body}");
    }
}

#[test]
fn a_changed_file_does_not_load_an_unloaded_model_and_a_deleted_one_is_no_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let [file, deleted] = ["a.safetensors", "b.safetensors"].map(|name| folder.path().join(name));
    for path in [&file, &deleted] {
        variant(0.5).save(path, petnet::Precision::F16).unwrap();
    }
    let [first, second, third] = [("kept", &file), ("unloaded", &file), ("deleted", &deleted)]
        .map(|(name, path)| format!("{name}={}", path.display()));
    let models = ["--model", &first, "--model", &second, "--model", &third, "--watch", "50ms"];
    // printf %s secret | sha256sum
    let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let server = Server::start(&[&models[..], &["--api-keys-sha256", digest]].concat());
    let key = ("x-api-key", "secret");
    let reloads = |name: &str, result: &str| {
        let request =
            "GET /metrics HTTP/1.1\r\nhost: x\r\nx-api-key: secret\r\nconnection: close\r\n\r\n";
        let text = String::from_utf8(server.send(request.as_bytes()).body).unwrap();
        let series = format!("model_reloads_total{{model=\"{name}\",result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_string()
    };
    let repository = |verb: &str| {
        server.post(&format!("/v2/repository/models/unloaded/{verb}"), &[key], b"").status
    };
    assert_eq!(repository("unload"), 200);
    std::fs::remove_file(&deleted).unwrap();
    // Until `kept` is reloaded twice, the other models have had the time for one reload.
    for number in [0.6, 0.7] {
        let before = reloads("kept", "loaded");
        variant(number).save(&file, petnet::Precision::F16).unwrap();
        wait_until("the changed file", || reloads("kept", "loaded") != before);
    }
    assert_eq!(reloads("unloaded", "loaded"), "1");
    assert_eq!(
        (reloads("deleted", "loaded"), reloads("deleted", "refused")),
        ("1".into(), "0".into())
    );
    let image = test_image(ImageFormat::Jpeg);
    let headers = [key, ("content-type", "image/jpeg")];
    let status =
        |name: &str| server.post(&format!("/predict?model={name}"), &headers, &image).status;
    assert_eq!((status("deleted"), status("unloaded")), (200, 503));
    assert_eq!((repository("load"), status("unloaded")), (200, 200));
}

#[test]
fn models_of_one_name_and_shadows_of_none_end_the_start() {
    for arguments in [
        &["--model", "pretrained", "--model", "pretrained"][..],
        &["--model", "a-pixels=pretrained"],
        &["--shadow", "cats-vs-dogs"],
        &["--model", "pretrained", "--shadow", "nobody"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
            .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off"])
            .args(arguments)
            .env("PETNET_FEEDBACK", "off")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn a_shadow_model_classifies_sampled_images_and_feedback_evaluates_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.safetensors");
    variant(0.5).save(&file, petnet::Precision::F16).unwrap();
    let new = format!("new={}", file.display());
    let store = folder.path().join("feedback");
    let server =
        Server::start(
            &[
                &[
                    "--model",
                    "pretrained",
                    "--model",
                    &new,
                    "--shadow",
                    "new",
                    "--shadow-share",
                    "1",
                ][..],
                &["--feedback", store.to_str().unwrap()],
            ]
            .concat(),
        );
    assert_eq!(server.get("/shadow").json()["agreement"], Value::Null);
    // One at a time, so that none is skipped.
    let answers: Vec<Value> = (1..=3)
        .map(|number| {
            let answer = predict(&server, "/predict");
            wait_until("the shadow model", || server.get("/shadow").json()["photos"] == number);
            answer
        })
        .collect();
    let class = answers[0]["predicted_class"].clone();
    let given = json!({ "prediction_id": answers[0]["prediction_id"], "label": class });
    assert_eq!(server.post_json("/feedback", &given).0, 200);
    let shadow = server.get("/shadow").json();
    assert_eq!((&shadow["agreement"], &shadow["skipped"]), (&json!(1.0), &json!(0)));
    assert_eq!(shadow["feedback"]["both_right"], 1);
    assert_eq!(
        shadow["shadow"]["version"],
        predict(&server, "/predict?model=new")["model"]["version"]
    );
    let metrics = server.metrics();
    assert!(metrics["shadow_photos_total{model=\"new\",result=\"agreed\"}"] >= 3.0);
    assert_eq!(metrics["shadow_feedback_total{model=\"shadow\",result=\"right\"}"], 1.0);
    // The shadow model's outputs do not count as predictions of the service: the only one is that of the last request.
    let predictions: f64 = metrics
        .iter()
        .filter(|(name, _)| {
            name.starts_with("prediction_requests_total") && name.contains("\"new\"")
        })
        .map(|(_, count)| count)
        .sum();
    assert_eq!(predictions, 1.0);
    assert_eq!(Server::start(&[]).get("/shadow").status, 404);
}

#[test]
fn an_image_is_fetched_from_a_listed_host_alone() {
    let hosts = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let port = hosts.server_addr().to_ip().unwrap().port();
    std::thread::spawn(move || {
        for request in hosts.incoming_requests() {
            let body = test_image(ImageFormat::Jpeg);
            let _ = request.respond(tiny_http::Response::from_data(body));
        }
    });
    let listed = format!("http://127.0.0.1:{port}");
    let server = Server::start(&["--image-hosts", &listed]);
    let ask = |server: &Server, url: String| server.post_json("/predict", &json!({ "url": url }));
    let (status, answer) = ask(&server, format!("{listed}/rex.jpg"));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["probabilities"], predict(&server, "/predict")["probabilities"]);
    for url in [
        format!("http://localhost:{port}/rex.jpg"),
        "http://169.254.169.254/latest/meta-data".into(),
        format!("http://127.0.0.1:{}/x", port ^ 1),
        "file:///etc/passwd".into(),
    ] {
        assert_eq!(ask(&server, url.clone()).0, 400, "{url}");
    }
    let (status, _) = server.post_json("/predict", &json!({ "url": listed, "image": "aGk=" }));
    assert_eq!(status, 400);
    assert_eq!(ask(&Server::start(&[]), listed).0, 400, "off by default");
}
