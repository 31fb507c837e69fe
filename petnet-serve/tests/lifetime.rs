//! Restarts and reloads under load lose no request.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Reply, Server, post, test_image, variant, wait_until};
use image::ImageFormat;
use petnet::Precision;

/// Writes a model file like the bundled one, with another digest.
fn write_model(path: &Path, number: f32) {
    variant(number).save(path, Precision::F16).unwrap();
}

fn version(server: &Server) -> String {
    server.get("/version").json()["model"]["version"].as_str().unwrap().to_string()
}

/// Clients that send images to several addresses in turn, and count failures.
struct Load {
    stop: Arc<AtomicBool>,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    sent: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(addresses: &[SocketAddr]) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            addresses: Arc::new(Mutex::new(addresses.to_vec())),
            sent: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
        };
        let request = Arc::new(post(
            "/predict",
            &[("content-type", "image/jpeg")],
            &test_image(ImageFormat::Jpeg),
        ));
        for _ in 0..3 {
            let (stop, addresses) = (Arc::clone(&load.stop), Arc::clone(&load.addresses));
            let (sent, failed) = (Arc::clone(&load.sent), Arc::clone(&load.failed));
            let request = Arc::clone(&request);
            load.threads.push(std::thread::spawn(move || {
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let address = {
                        let addresses = addresses.lock().unwrap();
                        addresses[turn % addresses.len()]
                    };
                    let right = response_status(address, &request) == 200;
                    sent.fetch_add(1, Ordering::Relaxed);
                    failed.fetch_add(usize::from(!right), Ordering::Relaxed);
                }
            }));
        }
        load
    }

    /// Waits until further requests have been answered, so that every restart or reload is under load.
    fn wait_for_requests(&self) {
        let before = self.sent.load(Ordering::Relaxed);
        wait_until("more requests", || self.sent.load(Ordering::Relaxed) >= before + 6);
    }

    fn assert_none_failed(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let failed = self.failed.load(Ordering::Relaxed);
        assert_eq!(failed, 0, "of {}", self.sent.load(Ordering::Relaxed));
    }
}

/// The status of the response; 0 for none.
fn response_status(address: SocketAddr, request: &[u8]) -> u16 {
    use std::io::Read as _;
    let mut reply = Vec::new();
    let outcome = std::net::TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(request)?;
        stream.read_to_end(&mut reply)
    });
    if outcome.is_err() { 0 } else { Reply::parse(&reply).status }
}

/// Each server is replaced as in a rolling update: clients use it until it is not ready.
#[test]
fn twenty_restarts_lose_no_request() {
    // Much longer than clients take to notice that a server drains.
    let settings = ["--drain-delay", "5s"];
    let mut servers = [Server::start(&settings), Server::start(&settings)];
    let load = Load::start(&[servers[0].address, servers[1].address]);
    let mut draining = Vec::new();
    for turn in 0..20 {
        let (index, new) = (turn % 2, Server::start(&settings));
        servers[index].signal("-TERM");
        wait_until("draining", || servers[index].get("/readyz").status == 503);
        load.addresses.lock().unwrap()[index] = new.address;
        draining.push(std::mem::replace(&mut servers[index], new));
        load.wait_for_requests();
    }
    for mut server in draining {
        assert_eq!(server.wait(), Some(0), "a clean exit");
    }
    load.assert_none_failed();
}

#[test]
fn twenty_reloads_lose_no_request_and_each_takes_effect() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_model(&path, 0.5);
    let server = Server::start(&["--model", path.to_str().unwrap(), "--watch", "0s"]);
    let load = Load::start(&[server.address]);
    for turn in 0..20u8 {
        let before = version(&server);
        write_model(&path, 0.5 + f32::from(turn + 1) / 100.0);
        server.signal("-HUP");
        wait_until("the new version", || version(&server) != before);
        load.wait_for_requests();
    }
    load.assert_none_failed();
}

#[test]
fn a_changed_file_is_reloaded_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_model(&path, 0.5);
    let server = Server::start(&["--model", path.to_str().unwrap(), "--watch", "50ms"]);
    let first = version(&server);
    write_model(&path, 0.6);
    wait_until("the new version", || version(&server) != first);
    let second = version(&server);
    let refused = || {
        let text = String::from_utf8(server.get("/metrics").body).unwrap();
        text.contains("model_reloads_total{model=\"model\",result=\"refused\"} 1")
    };
    fs::write(&path, b"no model").unwrap();
    wait_until("the refusal", refused);
    assert_eq!(version(&server), second, "the old model stays");
    let headers = [("content-type", "image/png")];
    assert_eq!(server.post("/predict", &headers, &test_image(ImageFormat::Png)).status, 200);
    write_model(&path, 0.7);
    wait_until("the repaired file", || version(&server) != second);
}

/// The model is a named pipe: a reload waits until this test writes to it.
#[test]
fn a_reload_whose_client_disconnects_keeps_its_memory_and_is_finished_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("model.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let models = [0.5, 0.6, 0.7].map(|number| variant(number).to_bytes(Precision::F16).unwrap());
    // Returns once the server has opened the pipe and read all.
    let write = |model: &[u8]| fs::write(&pipe, model).unwrap();
    let server = std::thread::scope(|scope| {
        scope.spawn(|| write(&models[0]));
        // printf %s secret | sha256sum
        let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let model = ["--model", pipe.to_str().unwrap(), "--watch", "0s"];
        Server::start(&[&model[..], &["--api-keys-sha256", digest]].concat())
    });
    let metric = |name: &str| {
        let request =
            "GET /metrics HTTP/1.1\r\nhost: x\r\nx-api-key: secret\r\nconnection: close\r\n\r\n";
        let text = String::from_utf8(server.send(request.as_bytes()).body).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse::<f64>().unwrap()
    };
    let claimed = || metric("memory_claimed_bytes{purpose=\"decoding\"}");
    assert_eq!(claimed(), 0.0);
    let mut client = server.connect();
    let head = "POST /admin/reload HTTP/1.1\r\nhost: x\r\nx-api-key: secret\r\n";
    client.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes()).unwrap();
    wait_until("the reload", || claimed() > 0.0);
    drop(client);
    // The connection of this request itself is open.
    wait_until("the end of the connection", || metric("open_connections") == 1.0);
    assert!(claimed() > 0.0, "the reload goes on");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| server.post("/admin/reload", &[("x-api-key", "secret")], b""));
        write(&models[1]);
        // Before that, the first reload may read on, and the next model with it.
        let loaded = || metric("model_reloads_total{model=\"model\",result=\"loaded\"}");
        wait_until("the first reload", || loaded() == 2.0);
        write(&models[2]);
        let version = petnet::disk::sha256(&models[2]);
        assert_eq!(next.join().unwrap().json()["model"]["sha256"], version);
    });
    wait_until("the memory", || claimed() == 0.0);
}

#[test]
fn while_draining_requests_are_served_and_connections_closed() {
    let mut server = Server::start(&["--drain-delay", "3s"]);
    assert_eq!(server.get("/readyz").status, 200);
    server.signal("-TERM");
    wait_until("draining", || server.get("/readyz").status == 503);
    assert_eq!(server.get("/livez").status, 200);
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let reply = server.send(request);
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_start_with_a_reason() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
        .args(["--host", "127.0.0.1", "--port", "0", "--metrics-addr", "off", "--model", "nothing"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.lines().last().unwrap().starts_with("error: nothing"), "{message}");
}
