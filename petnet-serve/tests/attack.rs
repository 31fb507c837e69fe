//! Denial-of-service attacks on a service with little memory: each is refused within the memory budget, while other clients
//! are served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "../../petnet/tests/common/hostile.rs"]
mod hostile;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use common::{Server, multipart, post, test_image, wait_until};
use hostile::{PNG_KINDS, gif, jpeg, png, profile, webp};
use image::ImageFormat;
use serde_json::json;

const JPEG: (&str, &str) = ("content-type", "image/jpeg");
const JSON: (&str, &str) = ("content-type", "application/json");
/// Memory of the service in MB.
const MEMORY: usize = 160;

fn start_with_limited_memory(more: &[&str]) -> Server {
    Server::start(&[&["--memory", &MEMORY.to_string()], more].concat())
}

fn assert_within_budget(server: &Server, condition: &str) {
    let peak = server.peak() >> 20;
    println!("{condition}: {peak} of {MEMORY} MB");
    assert!(peak <= MEMORY, "{condition}: {peak} MB");
    assert_eq!(
        server.post("/predict", &[JPEG], &test_image(ImageFormat::Jpeg)).status,
        200,
        "{condition}"
    );
}

/// Posts a body from several threads concurrently; returns the statuses.
fn post_concurrently(
    server: &Server,
    threads: usize,
    path: &str,
    kind: (&str, &str),
    body: &[u8],
) -> Vec<u16> {
    std::thread::scope(|scope| {
        let send = || server.post(path, &[kind], body).status;
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// F1, F2: small files that need much memory (decompression bombs).
#[test]
fn images_that_need_much_memory_are_refused_or_fit() {
    let server = start_with_limited_memory(&[]);
    let (grey, rgb, deep) = (PNG_KINDS[0], PNG_KINDS[2], PNG_KINDS[5]);
    let trials: [(&str, Vec<u8>, &[u16]); 9] = [
        ("PNG of 3,200,000 x 1", png(3_200_000, 1, grey, &[]), &[413]),
        ("PNG of 65,535 x 700", png(65_535, 700, grey, &[]), &[413]),
        ("PNG of 65,535 x 90", png(65_535, 90, grey, &[]), &[200]),
        ("PNG of 90 x 65,535", png(90, 65_535, grey, &[]), &[200]),
        ("PNG of 5000 x 5000, deep", png(5000, 5000, deep, &[]), &[413]),
        ("PNG with a profile of 256 MB", png(64, 64, rgb, &[profile(256 << 20)]), &[200, 413]),
        ("JPEG of 49 megapixels", jpeg(7000, 7000, 12), &[413]),
        ("GIF frame beyond its canvas", gif([10, 10], [20_000, 1000]), &[413, 422]),
        ("WebP frame beyond its canvas", webp([10, 10], [16_383, 16_383]), &[422]),
    ];
    for (condition, bytes, right) in trials {
        let statuses =
            post_concurrently(&server, 8, "/predict", ("content-type", "image/png"), &bytes);
        let overloaded = |status: &u16| *status == 503;
        assert!(
            statuses.iter().all(|s| right.contains(s) || overloaded(s)),
            "{condition}: {statuses:?}"
        );
        assert_within_budget(&server, condition);
    }
}

/// F3: progressive JPEGs with many scans, which take CPU time.
#[test]
fn scans_cost_no_more_than_their_limit_and_the_end_comes_in_time() {
    let settings = ["--drain-delay", "0s", "--grace", "2s", "--transfer-timeout", "1h"];
    let mut server = start_with_limited_memory(&settings);
    let many = jpeg(3000, 2000, 10_000);
    let refused = post_concurrently(&server, 6, "/predict", JPEG, &many);
    assert!(refused.iter().all(|status| *status == 413), "{refused:?}");
    let metrics = server.metrics();
    assert_eq!(metrics["preprocessing_images_total{result=\"refused\"}"], 6.0);
    let decoded = metrics.get("preprocessing_duration_seconds_count");
    assert!(decoded.is_none_or(|count| *count == 0.0), "refused before decoding");
    assert_within_budget(&server, "10,000 scans");
    // Repeatedly as many scans as are permitted, and a body that never ends, while the service is stopped.
    let most = post("/predict", &[JPEG], &jpeg(2400, 1600, 100));
    let bodies = [&most[..]; 6].into_iter().chain([&most[..most.len() / 2]]);
    let senders: Vec<_> = bodies
        .map(|body| {
            let mut stream = server.connect();
            stream.write_all(body).unwrap();
            stream
        })
        .collect();
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
    drop(senders);
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut server = start_with_limited_memory(&["--drain-delay", "30s"]);
    server.signal("-TERM");
    wait_until("draining", || server.get("/readyz").status == 503);
    server.signal("-INT");
    assert_eq!(server.wait(), Some(130));
}

/// F4: clients that do not read responses.
#[test]
fn a_client_that_does_not_read_is_disconnected_and_no_address_has_all_connections() {
    // Neither a limit in total nor an idle connection ends any of them.
    let settings =
        ["--transfer-timeout", "1s", "--header-timeout", "1h", "--max-connections", "100"];
    let server = start_with_limited_memory(&settings);
    // Accepted in this order; half of the connections are for one address.
    let mut streams: Vec<TcpStream> = (0..150).map(|_| server.connect()).collect();
    for mut refused in streams.drain(50..) {
        let outcome = refused.read(&mut [0]);
        let closed = |kind| [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&kind);
        assert!(outcome.as_ref().map_or_else(|e| closed(e.kind()), |n| *n == 0), "{outcome:?}");
    }
    let gets = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    streams.iter_mut().for_each(|stream| stream.write_all(&gets).unwrap());
    wait_until("places are free again", || {
        let reply = server.try_send(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        reply.is_some_and(|reply| reply.status == 200)
    });
    wait_until("all are disconnected", || server.metrics().get("open_connections") == Some(&1.0));
    assert!(server.metrics()["connections_refused_total"] >= 100.0);
    let mut received = Vec::new();
    // The end may be a reset.
    let _ = streams[0].read_to_end(&mut received);
    let received = String::from_utf8_lossy(&received).matches("HTTP/1.1 200 OK").count();
    assert!((1..200).contains(&received), "{received} of 200 responses");
    drop(streams);
    assert_within_budget(&server, "unread answers");
}

#[test]
fn idle_connections_end_with_either_protocol() {
    let server = start_with_limited_memory(&["--header-timeout", "500ms"]);
    let mut idle: Vec<TcpStream> = (0..20)
        .map(|number| {
            let mut stream = server.connect();
            if number % 2 == 0 {
                // HTTP/2's preface and empty SETTINGS.
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
            }
            stream
        })
        .collect();
    for stream in &mut idle {
        let outcome = stream.read_to_end(&mut Vec::new());
        assert!(!outcome.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "still open");
    }
    // A connection that closes after one byte frees its slot at once, long before the timeout.
    let server = start_with_limited_memory(&["--header-timeout", "1h", "--max-connections", "4"]);
    for _ in 0..40 {
        server.connect().write_all(b"P").unwrap();
    }
    wait_until("places are free again", || {
        let reply = server.try_send(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        reply.is_some_and(|reply| reply.status == 200)
    });
    wait_until("all descriptors are closed", || server.descriptors() < 40);
}

/// F5: request bodies that stall.
#[test]
fn stalled_bodies_hold_no_more_than_the_budget() {
    let settings = ["--transfer-timeout", "2s", "--max-connections", "600"];
    let server = start_with_limited_memory(
        &[&settings[..], &["--max-connections-per-address", "600"]].concat(),
    );
    let head = "POST /feedback HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n";
    let part = [head.as_bytes(), &[b' '; 900_000]].concat();
    let streams: Vec<_> = (0..300)
        .map(|_| {
            let mut stream = server.connect();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(&part);
            stream
        })
        .collect();
    for _ in 0..10 {
        streams.iter().for_each(|mut stream| drop(stream.write(&part[..100_000])));
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until("others are served", || {
        server.post("/predict", &[JPEG], &test_image(ImageFormat::Jpeg)).status == 200
    });
    drop(streams);
    assert_within_budget(&server, "stalled bodies");
}

/// F6: compressed JSON (decompression bombs).
#[test]
fn compressed_json_expands_within_the_budget_while_others_are_served() {
    let server = start_with_limited_memory(&[]);
    let numbers = ["[", &"1,".repeat(7_900_000), "1]"].concat();
    let json = format!(
        r#"{{"inputs":[{{"name":"pixels","shape":[1,3,224,224],"datatype":"FP32","data":{numbers}}}]}}"#
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(json.as_bytes()).unwrap();
    let body = gzip.finish().unwrap();
    let headers = [JSON, ("content-encoding", "gzip")];
    std::thread::scope(|scope| {
        let attack = || server.post("/v2/models/cats-vs-dogs-pixels/infer", &headers, &body).status;
        let attackers: Vec<_> = (0..6).map(|_| scope.spawn(attack)).collect();
        for _ in 0..20 {
            assert_eq!(server.get("/livez").status, 200);
        }
        for attacker in attackers {
            let status = attacker.join().unwrap();
            assert!([400, 413, 503].contains(&status), "{status}");
        }
    });
    assert_within_budget(&server, "gzip of JSON");
}

/// F6: lists of items that take more memory than their JSON.
#[test]
fn lists_of_small_items_are_refused_within_the_budget() {
    let server = start_with_limited_memory(&[]);
    let list = |item: &str| [&format!("{item},").repeat((1 << 19) / item.len()), item].concat();
    let input = |shape: &str, data: &str| {
        format!(r#"{{"name":"image","shape":[{shape}],"datatype":"BYTES","data":[{data}]}}"#)
    };
    let inputs = |inputs: &str| format!(r#"{{"inputs":[{inputs}]}}"#);
    let outputs = format!(r#"{{"inputs":[],"outputs":[{}]}}"#, list(r#"{"name":""}"#));
    let cases = [
        ("strings", inputs(&input("1", &list(r#""""#))), "more than 1024 strings"),
        ("numbers", inputs(&input("1", &list("1"))), "the data is not of its datatype"),
        ("numbers and a string", inputs(&input("1", &(list("1") + r#","""#))), "are mixed"),
        ("shape", inputs(&input(&list("1"), "")), "a list has more than 4096 bytes"),
        ("inputs", inputs(&list(&input("1", ""))), "the inference request is invalid"),
        ("outputs", outputs.replace("[],", &format!("[{}],", input("1", ""))), "a list has more"),
    ];
    for (condition, body, reason) in cases {
        let path = "/v2/models/cats-vs-dogs/infer";
        let statuses = post_concurrently(&server, 6, path, JSON, body.as_bytes());
        assert!(statuses.iter().all(|s| [400, 503].contains(s)), "{condition}: {statuses:?}");
        // Alone, it is parsed.
        let alone = server.post(path, &[JSON], body.as_bytes());
        let error = alone.json()["error"].as_str().unwrap().to_string();
        assert!(alone.status == 400 && error.contains(reason), "{condition}: {error}");
        assert_within_budget(&server, condition);
    }
}

/// F7, F8: damaged files, and a recovery that fails or ends midway.
#[test]
fn a_damaged_feedback_store_is_set_aside_and_lost_labels_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("feedback");
    let settings = ["--feedback", store.to_str().unwrap()];
    let label_and_kill = |mut server: Server| {
        let answer = server.post("/predict", &[JPEG], &test_image(ImageFormat::Jpeg)).json();
        let label = serde_json::json!({ "prediction_id": answer["prediction_id"], "label": "cat" });
        assert_eq!(server.post_json("/feedback", &label).0, 200);
        server.signal("-KILL");
        server.wait();
    };
    label_and_kill(start_with_limited_memory(&settings));
    // All pages of all files of the database, except the file with the number of labels.
    let mut damaged = 0;
    for file in files(&store) {
        if file.file_name().is_some_and(|name| name != "labels.json") {
            let length = std::fs::metadata(&file).unwrap().len().min(1 << 16);
            let mut bytes = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
            bytes.write_all(&vec![0x5a; length as usize]).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    // A file in the place of the new store's folder: the recovery fails, and the next one still finds the number of labels.
    let replacement = folder.path().join("feedback.replacement");
    std::fs::write(&replacement, "").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off"])
        .args(settings)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    std::fs::remove_file(&replacement).unwrap();
    let server = start_with_limited_memory(&settings);
    let metrics = server.metrics();
    assert_eq!(metrics["feedback_labels_lost_total"], 1.0);
    let message = server.log();
    assert!(
        message.iter().any(|line| line["labels"] == 1 && line["level"] == "ERROR"),
        "{message:?}"
    );
    label_and_kill(server);
    let folders = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(folders(), 2, "the store, and the damaged one");
    // As left by a recovery that ended when the damaged store had its new name.
    std::fs::rename(&store, &replacement).unwrap();
    let server = start_with_limited_memory(&settings);
    let labels = server.get("/feedback/export").body;
    assert_eq!(String::from_utf8(labels).unwrap().lines().count(), 1);
    assert_eq!(folders(), 2);
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, mut found): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    folders.iter().for_each(|folder| found.extend(files(folder)));
    found
}

/// F9: model files with a correct checksum whose outputs are not finite.
#[test]
fn a_model_whose_outputs_are_not_finite_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let good = common::variant(0.5).to_bytes(petnet::Precision::F32).unwrap();
    // Sums of the largest values overflow in the last layer.
    for (value, reason) in
        [(f32::NAN, "values that are not finite"), (f32::MAX, "outputs are not finite")]
    {
        std::fs::write(&path, with_constant_weights(&good, value)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
            .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off"])
            .args(["--feedback", "off", "--model", path.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = || child.try_wait().unwrap().is_some();
        wait_until("the end", ended);
        let message = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(message.contains(reason), "{message}");
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
    std::fs::write(&path, &good).unwrap();
    let server = start_with_limited_memory(&["--model", path.to_str().unwrap(), "--watch", "50ms"]);
    std::fs::write(&path, with_constant_weights(&good, f32::MAX)).unwrap();
    let refused = || {
        let metrics = server.metrics();
        let mut series = metrics.iter().filter(|(name, _)| name.starts_with("model_reloads_total"));
        series.any(|(name, count)| name.contains("refused") && *count >= 1.0)
    };
    wait_until("the refusal", refused);
    assert_within_budget(&server, "a model without finite outputs");
}

/// A model file with one value for all weights of its linear layers, and the matching checksum.
fn with_constant_weights(file: &[u8], value: f32) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let range = |tensor: &serde_json::Value| {
        let offset =
            |end: usize| 8 + length + tensor["data_offsets"][end].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    };
    let digest = |file: &[u8]| {
        let mut hashed = header["__metadata__"]["petnet"].as_str().unwrap().as_bytes().to_vec();
        let tensors = header.as_object().unwrap().iter();
        // Sorted by name, as `serde_json` sorts keys.
        for (name, tensor) in tensors.filter(|(name, _)| *name != "__metadata__") {
            let data = &file[range(tensor)];
            hashed.extend(name.as_bytes());
            hashed.extend((data.len() as u64).to_le_bytes());
            hashed.extend(data);
        }
        petnet::disk::sha256(&hashed)
    };
    let mut changed = file.to_vec();
    let linear =
        |tensor: &&serde_json::Value| tensor["shape"].as_array().is_some_and(|s| s.len() == 2);
    for tensor in header.as_object().unwrap().values().filter(linear) {
        for weight in changed[range(tensor)].chunks_exact_mut(4) {
            weight.copy_from_slice(&value.to_le_bytes());
        }
    }
    let (old, new) = (digest(file), digest(&changed));
    let at = file.windows(old.len()).position(|part| part == old.as_bytes()).unwrap();
    changed[at..at + new.len()].copy_from_slice(new.as_bytes());
    changed
}

/// F10: a log whose reader stops.
#[test]
fn a_log_reader_that_stops_does_not_block_requests() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off", "--feedback", "off"])
        .args(["--drain-delay", "0s", "--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Only the first line is read, which has the address.
    let (mut log, mut first) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    log.read_line(&mut first).unwrap();
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    let address = first["address"].as_str().unwrap();
    let ask = |path: &str| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        Some(reply)
    };
    wait_until("ready", || ask("/readyz").is_some_and(|reply| reply.contains(" 200 ")));
    for number in 0..8000 {
        assert!(ask("/livez").is_some(), "request {number}");
    }
    let metrics = ask("/metrics").unwrap();
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("log_lines_dropped_total "));
    assert!(dropped.unwrap().parse::<f64>().unwrap() > 0.0, "{dropped:?}");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    wait_until("the end", || child.try_wait().unwrap().is_some());
    drop(log);
}

/// F11: a signal before the model is loaded.
#[test]
fn a_signal_while_the_model_is_fetched_ends_the_start() {
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", registry.local_addr().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off", "--feedback", "off"])
        .args(["--model", "models:/name@champion", "--tracking-uri", &uri])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _asked = registry.accept().unwrap();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    wait_until("the end", || child.try_wait().unwrap().is_some());
    assert_eq!(child.wait().unwrap().code(), Some(0), "ended by the signal, not by the registry");
}

/// F12: invalid settings.
#[test]
fn invalid_settings_are_refused_by_name() {
    for (setting, value) in [
        ("--max-connections", "4294967296"),
        ("--max-connections", "0"),
        ("--queue", "0"),
        ("--max-batch", "0"),
        ("--max-body", "0"),
        ("--max-parts", "0"),
        ("--memory", "0"),
        ("--request-timeout", "0s"),
        ("--decode-timeout", "0s"),
        ("--min-rate", "0"),
        ("--memory", "40"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
            .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off", setting, value])
            .args(["--feedback", "off"])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(setting),
            "{setting} {value}: {message}"
        );
    }
}

#[test]
fn http_1_1_has_one_host() {
    let server = start_with_limited_memory(&[]);
    let none = server.send(b"GET /livez HTTP/1.1\r\nconnection: close\r\n\r\n");
    let two =
        server.send(b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n");
    assert_eq!((none.status, two.status), (400, 400));
    assert_eq!(server.send(b"GET /livez HTTP/1.0\r\n\r\n").status, 200);
}

/// Requests every path without a key.
#[test]
fn without_a_key_only_what_is_declared_open_answers() {
    // printf %s secret | sha256sum
    let key = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let server = start_with_limited_memory(&["--api-keys-sha256", key]);
    let described: serde_json::Value =
        serde_json::from_str(include_str!("../assets/openapi.json")).unwrap();
    let open = [
        "/",
        "/health",
        "/livez",
        "/readyz",
        "/version",
        "/openapi.json",
        "/docs",
        "/docs/viewer.js",
        "/docs/viewer.css",
        "/artifacts/compare",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}/ready",
    ];
    let mut closed = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        let method = if methods.get("post").is_some() { "POST" } else { "GET" };
        let named = path.replace("{model}", "cats-vs-dogs");
        let request = |key: &str| {
            format!(
                "{method} {named} HTTP/1.1\r\nhost: x\r\n{key}content-length: 0\r\nconnection: close\r\n\r\n"
            )
        };
        let status = server.send(request("").as_bytes()).status;
        if open.contains(&path.as_str()) {
            assert_eq!(status, 200, "{path}");
        } else {
            closed += 1;
            assert_eq!(status, 401, "{path}");
            let status = server.send(request("authorization: bearer secret\r\n").as_bytes()).status;
            assert_ne!(status, 401, "{path} with a key");
        }
    }
    assert_eq!(closed + open.len(), described["paths"].as_object().unwrap().len());
}

/// Batches of the documented maximum, concurrently with single images.
#[test]
fn a_batch_of_the_documented_maximum_is_served_beside_single_photos() {
    let server = start_with_limited_memory(&[]);
    let image = test_image(ImageFormat::Jpeg);
    let parts = vec![("image/jpeg", &image[..]); 32];
    let (kind, form) = multipart(&parts);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let single = || {
            let mut statuses = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                statuses.push(server.post("/predict", &[JPEG], &image).status);
            }
            statuses
        };
        let singles: Vec<_> = (0..4).map(|_| scope.spawn(single)).collect();
        let batches: Vec<_> = (0..12)
            .map(|_| server.post("/predict/batch", &[("content-type", &kind)], &form))
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for batch in batches {
            assert_eq!(batch.status, 200);
            let all = batch.json()["predictions"].as_array().unwrap().clone();
            assert!(all.len() == 32 && all.iter().all(|one| one.get("error").is_none()));
        }
        for single in singles {
            let statuses = single.join().unwrap();
            assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        }
    });
}

/// A slow upload without pauses is not an attack.
#[test]
fn a_slow_upload_that_does_not_pause_is_served() {
    let server = start_with_limited_memory(&["--transfer-timeout", "2s"]);
    let image = test_image(ImageFormat::Bmp);
    let request = post("/predict", &[("content-type", "image/bmp")], &image);
    let mut stream = server.connect();
    // Longer than the timeout in all.
    for part in request.chunks(request.len() / 25) {
        stream.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!(common::Reply::parse(&reply).status, 200);
}

/// Nor is a client that reads slowly: its response is sent in full, even where that takes longer than the header timeout.
#[test]
fn a_slow_reader_is_served_in_full() {
    let server = Server::start(&["--header-timeout", "1s", "--memory", "1000"]);
    let image = base64::engine::general_purpose::STANDARD.encode(test_image(ImageFormat::Jpeg));
    // The response repeats the id, and is larger than the buffers of both sockets.
    let id = "x".repeat(8 << 20);
    let input = json!({ "name": "image", "shape": [1], "datatype": "BYTES", "data": [image] });
    let body = json!({ "id": id, "inputs": [input], "outputs": [{ "name": "label" }] }).to_string();
    let request = post("/v2/models/cats-vs-dogs/infer", &[JSON], body.as_bytes());
    let mut stream = server.connect();
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
    stream.write_all(&request).unwrap();
    // Three seconds from the first byte on.
    let mut reply = Vec::new();
    for _ in 0..30 {
        let mut part = [0; 16 << 10];
        let length = stream.read(&mut part).unwrap();
        reply.extend_from_slice(&part[..length]);
        std::thread::sleep(Duration::from_millis(100));
    }
    stream.read_to_end(&mut reply).unwrap();
    let reply = common::Reply::parse(&reply);
    assert_eq!((reply.status, reply.json()["id"].as_str().unwrap().len()), (200, id.len()));
}
