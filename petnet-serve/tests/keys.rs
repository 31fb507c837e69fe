//! The file of API keys: scopes, rate limits, and reload.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Server, test_image, wait_until};
use image::ImageFormat;

/// The SHA-256 of a key, as of `printf %s KEY | sha256sum`.
fn digest(key: &str) -> String {
    petnet::disk::sha256(key.as_bytes())
}

fn keys(limits: &str) -> String {
    format!(
        "- {{name: shop, sha256: {}, {limits}}}\n\
         - {{name: reports, sha256: {}, scopes: [export, metrics]}}\n\
         - {{name: operator, sha256: {}, scopes: [admin, metrics]}}\n",
        digest("shop"),
        digest("export"),
        digest("operator"),
    )
}

#[test]
fn a_key_may_use_the_paths_of_its_scopes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    std::fs::write(&file, keys("requests_per_second: 1000")).unwrap();
    let store = folder.path().join("feedback");
    let arguments = ["--api-keys", file.to_str().unwrap(), "--feedback", store.to_str().unwrap()];
    let server = Server::start(&arguments);
    let image = test_image(ImageFormat::Jpeg);
    let ask = |key: &str, path: &str| {
        let headers = [("content-type", "image/jpeg"), ("x-api-key", key)];
        let get = ["/feedback/export", "/metrics"].contains(&path);
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: h\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n"
        );
        if get { server.send(request.as_bytes()) } else { server.post(path, &headers, &image) }
    };
    for (key, path, status) in [
        ("shop", "/predict", 200),
        ("shop", "/feedback/export", 403),
        ("shop", "/metrics", 403),
        ("shop", "/admin/reload", 403),
        ("export", "/feedback/export", 200),
        ("export", "/metrics", 200),
        ("shop", "/feedback", 415),
        ("operator", "/feedback", 403),
        ("export", "/predict", 403),
        ("operator", "/admin/reload", 200),
        ("operator", "/predict", 403),
        ("nobody", "/predict", 401),
        ("", "/predict", 401),
    ] {
        let reply = ask(key, path);
        assert_eq!(reply.status, status, "{key} {path}: {}", reply.head);
    }
    let metrics = String::from_utf8(ask("operator", "/metrics").body).unwrap();
    for line in [
        "api_key_requests_total{key=\"shop\",result=\"allowed\"} 2",
        "api_key_requests_total{key=\"shop\",result=\"forbidden\"} 3",
        "api_key_requests_total{key=\"reports\",result=\"allowed\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[test]
fn a_key_whose_limit_is_exceeded_gets_retry_after() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    std::fs::write(&file, keys("requests_per_day: 3")).unwrap();
    let server = Server::start(&["--api-keys", file.to_str().unwrap()]);
    let image = test_image(ImageFormat::Jpeg);
    let headers = [("content-type", "image/jpeg"), ("authorization", "Bearer shop")];
    let ask = || server.post("/predict", &headers, &image);
    for left in (0..3).rev() {
        let reply = ask();
        assert_eq!(reply.status, 200, "{}", reply.head);
        assert_eq!(reply.header("ratelimit-policy"), Some("\"day\";q=3;w=86400"));
        assert_eq!(reply.header("ratelimit"), Some(format!("\"day\";r={left}").as_str()));
    }
    let refused = ask();
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("ratelimit"), Some("\"day\";r=0"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((28_000..=28_800).contains(&wait), "a third of a day: {wait}");
    assert_eq!(refused.json()["status"], 429);
    // An invalid file changes nothing; an unchanged key keeps the state of its limits; a changed one starts again.
    std::fs::write(&file, "- {name: shop}").unwrap();
    server.signal("-HUP");
    wait_until("the refusal is logged", || {
        server.log().iter().any(|line| line.to_string().contains("the keys were refused"))
    });
    assert_eq!(ask().status, 429);
    std::fs::write(&file, keys("requests_per_day: 3").replace("reports", "export")).unwrap();
    server.signal("-HUP");
    wait_until("the other keys", || {
        server.log().iter().any(|line| line.to_string().contains("keys are in use"))
    });
    assert_eq!(ask().status, 429);
    std::fs::write(&file, keys("requests_per_day: 4")).unwrap();
    server.signal("-HUP");
    wait_until("the new limit", || ask().status == 200);
}

#[test]
fn a_request_refused_by_the_limit_per_second_does_not_count_for_the_day() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    std::fs::write(&file, keys("requests_per_second: 1, requests_per_day: 1000")).unwrap();
    let server = Server::start(&["--api-keys", file.to_str().unwrap()]);
    let image = test_image(ImageFormat::Jpeg);
    let headers = [("content-type", "image/jpeg"), ("authorization", "Bearer shop")];
    let mut replies = Vec::new();
    wait_until("one is served after a refused one", || {
        replies.push(server.post("/predict", &headers, &image));
        let mut statuses = replies.iter().map(|reply| reply.status);
        statuses.any(|status| status == 429) && statuses.any(|status| status == 200)
    });
    let served: Vec<_> = replies.iter().filter(|reply| reply.status == 200).collect();
    for (number, reply) in served.iter().enumerate() {
        let state = format!("\"second\";r=0, \"day\";r={}", 999 - number);
        assert_eq!(reply.header("ratelimit"), Some(state.as_str()));
    }
}

#[test]
fn an_invalid_file_of_keys_ends_the_start_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let (digest, other) = (digest("shop"), digest("export"));
    for (text, fault) in [
        ("- {name: shop, sha256: abc}".to_string(), "not a SHA-256"),
        (format!("- {{name: a b, sha256: {digest}}}"), "is invalid"),
        (
            format!("- {{name: a, sha256: {digest}}}\n- {{name: a, sha256: {other}}}"),
            "two keys have the name",
        ),
        (
            format!("- {{name: a, sha256: {digest}}}\n- {{name: b, sha256: {digest}}}"),
            "another key",
        ),
        (format!("- {{name: a, sha256: {digest}, scope: [admin]}}"), "unknown field"),
        (format!("- {{name: a, sha256: {digest}, scopes: [all]}}"), "unknown variant"),
        (format!("- {{name: a, sha256: {digest}, requests_per_second: 0}}"), "nonzero"),
    ] {
        std::fs::write(&file, &text).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
            .args(["--port", "0", "--metrics-addr", "off", "--feedback", "off", "--api-keys"])
            .arg(&file)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(fault), "{text}: {error}");
    }
}
