//! The contract with clients, over a real socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use base64::Engine as _;
use common::{Server, multipart, test_image, wait_until};
use image::ImageFormat;

#[test]
fn clients_of_the_python_service_find_their_fields_and_metrics() {
    let server = Server::start(&[]);
    let health = server.get("/health");
    let body = health.json();
    assert_eq!(health.status, 200);
    assert_eq!(body["status"], "healthy");
    assert_eq!(body["model_loaded"], true);
    assert_eq!(body["device"], "cpu");
    assert_eq!(body["timestamp"].as_str().unwrap().len(), "2026-11-23T12:00:00.000Z".len());

    let (kind, form) = multipart(&[("image/jpeg", &test_image(ImageFormat::Jpeg))]);
    let reply = server.post("/predict", &[("content-type", &kind)], &form);
    let answer = reply.json();
    assert_eq!(reply.status, 200, "{answer}");
    let label = answer["predicted_class"].as_str().unwrap();
    assert_eq!(answer["predicted_label"], u8::from(label == "dog"));
    assert_eq!(answer["confidence"], answer["probabilities"][label]);
    let sum: f64 =
        ["cat", "dog"].map(|c| answer["probabilities"][c].as_f64().unwrap()).iter().sum();
    assert!((sum - 1.0).abs() < 1e-5, "{answer}");
    assert!(answer["processing_time_ms"].as_f64().unwrap() > 0.0);
    assert!(["cat", "dog", "unsure"].contains(&answer["decision"].as_str().unwrap()));
    // Valid for models with and without an out-of-distribution score, and for either decision.
    let unsure = answer["decision"] == "unsure";
    let reasons = ["low_confidence", "out_of_distribution"];
    assert_eq!(answer["reason"].as_str().is_some_and(|reason| reasons.contains(&reason)), unsure);
    assert_eq!((answer["reason"].is_null(), answer["message"].is_null()), (!unsure, !unsure));
    let scored = !server.get("/version").json()["model"]["ood"].is_null();
    assert_eq!((answer["ood_score"].is_number(), answer["ood_score"].is_null()), (scored, !scored));
    assert_eq!(answer["prediction_id"].as_str().unwrap().len(), 36);
    assert_eq!(answer["model"]["name"], "cats-vs-dogs");

    let (kind, form) = multipart(&[("text/plain", b"hello")]);
    let refused = server.post("/predict", &[("content-type", &kind)], &form);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["detail"].is_string());

    let root = server.get("/");
    let body = root.json();
    assert!(body["name"].is_string() && body["version"].is_string());
    assert!(body["endpoints"].as_array().unwrap().iter().any(|path| path == "/predict"));

    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    for part in [
        format!(
            "prediction_requests_total{{class_predicted=\"{label}\",model=\"cats-vs-dogs\"}} 1"
        ),
        "health_check_requests_total 1".into(),
        "prediction_errors_total{error_type=\"not_an_image\"} 1".into(),
        "prediction_latency_seconds_bucket{le=\"0.5\"}".into(),
    ] {
        assert!(metrics.contains(&part), "{part}\n{metrics}");
    }
}

#[test]
fn an_image_may_be_sent_in_any_form_and_format() {
    let server = Server::start(&[]);
    for (format, kind) in [
        (ImageFormat::Png, "image/png"),
        (ImageFormat::WebP, "image/webp"),
        (ImageFormat::Gif, "image/gif"),
        (ImageFormat::Bmp, "application/octet-stream"),
    ] {
        let reply = server.post("/predict", &[("content-type", kind)], &test_image(format));
        assert_eq!(reply.status, 200, "{kind}: {}", reply.head);
    }
    let file = test_image(ImageFormat::Png);
    let encoded = base64::engine::general_purpose::STANDARD.encode(&file);
    let whole = server.post("/predict", &[("content-type", "image/png")], &file).json();
    for text in [encoded.clone(), format!("data:image/png;base64,{encoded}")] {
        let body = serde_json::json!({ "image": text }).to_string();
        let reply =
            server.post("/predict", &[("content-type", "application/json")], body.as_bytes());
        assert_eq!(reply.json()["probabilities"], whole["probabilities"], "the same bytes");
    }
    let mut chunked = b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        content-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for chunk in file.chunks(100) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(server.send(&chunked).json()["probabilities"], whole["probabilities"]);
}

#[test]
fn in_a_batch_an_invalid_image_fails_alone() {
    let server = Server::start(&[]);
    let file = test_image(ImageFormat::Jpeg);
    let (kind, form) = multipart(&[
        ("image/jpeg", &file),
        ("image/jpeg", &file[..file.len() / 2]),
        ("text/plain", b"junk"),
        ("image/jpeg", &file),
    ]);
    let reply = server.post("/predict/batch", &[("content-type", &kind)], &form);
    let body = reply.json();
    assert_eq!(reply.status, 200, "{body}");
    let entries = body["predictions"].as_array().unwrap();
    assert_eq!(entries.len(), 4);
    assert_eq!(entries[0]["probabilities"], entries[3]["probabilities"]);
    assert_eq!(entries[1]["error"]["status"], 422);
    assert_eq!(entries[2]["error"]["status"], 400);
    assert_eq!(entries[3]["filename"], "3.jpg");
}

#[test]
fn an_explanation_is_a_png_or_json_with_both() {
    let server = Server::start(&[]);
    let file = test_image(ImageFormat::Jpeg);
    let reply = server.post("/explain", &[("content-type", "image/jpeg")], &file);
    assert_eq!(reply.header("content-type"), Some("image/png"));
    assert!(["cat", "dog"].contains(&reply.header("x-predicted-class").unwrap()));
    let decisions = ["answered", "low_confidence", "out_of_distribution"];
    assert!(decisions.contains(&reply.header("x-decision").unwrap()));
    let overlay = image::load_from_memory(&reply.body).unwrap();
    assert_eq!((overlay.width(), overlay.height()), (200, 150));
    let headers = [("content-type", "image/jpeg"), ("accept", "application/json")];
    let body = server.post("/explain", &headers, &file).json();
    let heat = &body["heatmap"];
    let cells = heat["width"].as_u64().unwrap() * heat["height"].as_u64().unwrap();
    assert_eq!(heat["values"].as_array().unwrap().len() as u64, cells);
    assert!(body["overlay"].as_str().unwrap().starts_with("data:image/png;base64,"));
    let plain = server.post("/predict", &[("content-type", "image/jpeg")], &file).json();
    for field in ["predicted_class", "decision", "reason", "message", "ood_score"] {
        assert_eq!(body.get(field), plain.get(field), "{field}");
        assert!(body.get(field).is_some(), "{field}");
    }
}

#[test]
fn every_refusal_is_problem_json_with_a_reason() {
    let server = Server::start(&["--max-body", "100000"]);
    let jpeg = test_image(ImageFormat::Jpeg);
    let image = [("content-type", "image/jpeg")];
    let (kind, empty_form) = multipart(&[]);
    let (several, two_images) = multipart(&[("image/jpeg", &jpeg), ("image/jpeg", &jpeg)]);
    // The format is recognised from the bytes, not from the content type.
    for headers in
        [&[][..], &[("content-type", "text/plain")], &[("content-type", "binary/octet-stream")]]
    {
        assert_eq!(server.post("/predict", headers, &jpeg).status, 200, "{headers:?}");
    }
    let (kind_of_part, body) = multipart(&[("text/plain", &jpeg)]);
    assert_eq!(server.post("/predict", &[("content-type", &kind_of_part)], &body).status, 200);
    let cases = [
        (server.get("/nowhere"), 404),
        (server.get("/predict"), 405),
        (server.send(b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"), 411),
        (server.post("/predict", &image, &vec![0; 100_001]), 413),
        (server.post("/predict", &[("content-type", "text/html")], b"<p>"), 415),
        (server.post("/predict", &[], b"no image"), 415),
        (server.post("/predict", &image, b"\0\0\0\x18ftypheic\0\0\0\0"), 415),
        (server.post("/predict", &[image[0], ("content-encoding", "gzip")], &jpeg), 415),
        (server.post("/predict", &[("content-type", &several)], &two_images), 400),
        (server.post("/predict", &image, b""), 400),
        (server.post("/predict", &image, b"no image"), 400),
        (server.post("/predict", &image, &jpeg[..300]), 422),
        (server.post("/predict", &[("content-type", "application/json")], b"{}"), 400),
        (server.post("/predict", &[("content-type", &kind)], &empty_form), 400),
        (server.post("/predict", &[("content-type", "multipart/form-data")], b""), 400),
        (server.post("/admin/reload", &[], b""), 403),
    ];
    for (number, (reply, status)) in cases.iter().enumerate() {
        assert_eq!(reply.status, *status, "case {number}: {}", reply.head);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        let body = reply.json();
        assert_eq!(body["status"], *status);
        assert!(!body["detail"].as_str().unwrap().is_empty());
        assert!(reply.header("x-request-id").is_some());
    }
    assert_eq!(cases[1].0.header("allow"), Some("POST"));
}

#[test]
fn keys_guard_predictions_and_administration() {
    // printf %s secret | sha256sum
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let server = Server::start(&["--api-keys-sha256", hash]);
    let file = test_image(ImageFormat::Png);
    let image = ("content-type", "image/png");
    let refused = server.post("/predict", &[image], &file);
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let bearer = ("authorization", "Bearer secret");
    assert_eq!(server.post("/predict", &[image, bearer], &file).status, 200);
    assert_eq!(server.post("/admin/reload", &[("x-api-key", "secret")], b"").status, 200);
    assert_eq!(server.post("/admin/reload", &[("x-api-key", "Secret")], b"").status, 401);
    assert_eq!(server.get("/health").status, 200, "probes need no key");
    let said = format!("{:?}", server.log());
    assert!(!said.contains("Bearer secret"), "keys are not logged");
}

#[test]
fn ids_and_traces_of_clients_are_logged() {
    let server = Server::start(&[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = [
        ("content-type", "image/png"),
        ("x-request-id", "order-66"),
        ("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01")),
    ];
    let reply = server.post("/predict", &headers, &test_image(ImageFormat::Png));
    assert_eq!(reply.header("x-request-id"), Some("order-66"));
    let find = || server.log().into_iter().find(|line| line["id"] == "order-66");
    wait_until("the request has a log line", || find().is_some());
    let line = find().unwrap();
    assert_eq!(line["trace"], trace);
    assert_eq!(line["status"], 200);
    assert_eq!(line["label"], reply.json()["predicted_class"]);
    assert_eq!(line["prediction_id"], reply.json()["prediction_id"]);
    assert!(line["model_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn running_and_expected_artifacts_are_compared() {
    let silent = Server::start(&[]);
    assert!(silent.get("/artifacts/compare").json()["match"].is_null());
    let digest = silent.get("/version").json()["model"]["sha256"].as_str().unwrap().to_string();
    let right = Server::start(&["--expect-model-sha256", &digest]);
    assert_eq!(right.get("/artifacts/compare").json()["match"], true);
    let wrong = Server::start(&["--expect-model-sha256", &digest, "--expect-version", "9.9"]);
    let body = wrong.get("/artifacts/compare").json();
    assert_eq!(body["match"], false);
    assert_eq!(body["model_sha256"]["match"], true);
}

#[test]
fn browsers_get_pages_that_may_run_only_their_own_script() {
    let server = Server::start(&[]);
    let page = server
        .send(b"GET / HTTP/1.1\r\nhost: x\r\naccept: text/html,*/*\r\nconnection: close\r\n\r\n");
    for reply in [page, server.get("/docs")] {
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"));
        let html = String::from_utf8(reply.body).unwrap();
        assert!(!html.contains("src=\"http") && !html.contains("href=\"http"), "works offline");
    }
}

#[test]
fn the_health_check_of_a_container_requests_its_own_server() {
    let server = Server::start(&[]);
    let ask = |port: &str| {
        let program = env!("CARGO_BIN_EXE_petnet-serve");
        std::process::Command::new(program)
            .arg("healthcheck")
            .env("PETNET_PORT", port)
            .output()
            .unwrap()
    };
    assert_eq!(ask(&server.address.port().to_string()).status.code(), Some(0));
    let nobody = ask("9");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).starts_with("error: http://127.0.0.1:9/livez"));
}
