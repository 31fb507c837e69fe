//! Starts the real binary on a free port, and sends it HTTP requests.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::Value;

/// A running server, which is killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[], arguments)
    }

    /// Starts with environment variables, and waits until it is ready.
    pub(crate) fn start_with(variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_petnet-serve"))
            .args(["--host", "127.0.0.1", "--port", "0", "--log-format", "json"])
            .args(["--metrics-addr", "off"])
            .args(arguments)
            .env("PETNET_FEEDBACK", "off")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut entries = Vec::new();
        let address = loop {
            let line = lines.next().expect("the server ended before it was ready").unwrap();
            let Ok(entry) = serde_json::from_str::<Value>(&line) else { panic!("{line}") };
            let address = entry["address"].as_str().map(|a| a.parse().unwrap());
            let ready = entry["message"] == "ready";
            entries.push(entry);
            if let (true, Some(address)) = (ready, address) {
                break address;
            }
        };
        let log = Arc::new(Mutex::new(entries));
        let shared_log = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(entry) = serde_json::from_str(&line) {
                    shared_log.lock().unwrap().push(entry);
                }
            }
        });
        Self { child, address, log }
    }

    pub(crate) fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for the end of the process; returns its exit status, `None` if it was killed.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        wait_until("the end", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.status("VmRSS:") * 1024
    }

    /// Peak resident memory in bytes.
    pub(crate) fn peak(&self) -> usize {
        self.status("VmHWM:") * 1024
    }

    /// A number in `/proc/PID/status`.
    pub(crate) fn status(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    }

    /// Number of open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(&post(path, headers, body))
    }

    /// Posts JSON; returns the status and the JSON of the response.
    pub(crate) fn post_json(&self, path: &str, body: &Value) -> (u16, Value) {
        let headers = [("content-type", "application/json")];
        let reply = self.post(path, &headers, body.to_string().as_bytes());
        (reply.status, reply.json())
    }

    /// `/metrics`: each series with its value.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let text = String::from_utf8(self.get("/metrics").body).unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let parse = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        };
        series.map(parse).collect()
    }

    /// Sends raw bytes and reads to the end of the connection.
    pub(crate) fn send(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        // A server that has refused the request may have closed its end already.
        let _ = stream.write_all(bytes);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        Reply::parse(&reply)
    }

    /// The response of a server that may stop at any time.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> Option<Reply> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.write_all(bytes).ok()?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).ok()?;
        Some(Reply::parse(&reply))
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let head = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).to_string();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = end.map_or(Vec::new(), |end| bytes[end + 4..].to_vec());
        Self { status, head, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [request.as_bytes(), body].concat()
}

/// A multipart form with parts named `file`, given as (content type, bytes); returns its content type and body.
pub(crate) fn multipart(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (number, (kind, bytes)) in parts.iter().enumerate() {
        let head = format!(
            "--XyZ\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{number}.jpg\"\r\n\
             content-type: {kind}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XyZ--\r\n");
    ("multipart/form-data; boundary=XyZ".into(), body)
}

/// A drawn image of 200 x 150 pixels.
pub(crate) fn test_image(format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(200, 150, |x, y| {
        Rgb([(x * 3 % 251) as u8, (y * 5 % 241) as u8, ((x + y) % 200) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A drawn PNG by its number, of about 96 x 96 pixels; brightness and aspect ratio vary as those of camera images do.
pub(crate) fn drawn_image(number: u32, brightness: f32) -> Vec<u8> {
    let spread = |salt: u32| {
        let mixed = number.wrapping_mul(2_654_435_761).rotate_left(salt);
        (mixed >> 8) as f32 / (1 << 24) as f32
    };
    let (width, height) = [(96, 72), (72, 96), (90, 90), (120, 72)][number as usize % 4];
    let (base, swing) = (90.0 + 60.0 * spread(3), 30.0 + 60.0 * spread(9));
    let period = 4.0 + 20.0 * spread(17);
    let image = RgbImage::from_fn(width, height, |x, y| {
        let wave = ((x as f32 / period).sin() + (y as f32 / period).cos()) / 2.0;
        let value = (brightness * (base + swing * wave)).clamp(0.0, 255.0);
        Rgb([value as u8, (value * 0.9) as u8, (value * 0.7) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The bundled model with another drift reference, and so another digest of its file.
pub(crate) fn variant(number: f32) -> petnet::Checkpoint {
    let confidence = serde_json::json!({ "edges": [number], "counts": [1, 1] });
    let reference = serde_json::json!({ "confidence": confidence });
    let reference = serde_json::from_value(reference).unwrap();
    petnet::Checkpoint::pretrained().unwrap().with_reference(Some(reference))
}

/// The bundled model with the statistics of `images` drawn images as its drift reference.
pub(crate) fn drawn_model(folder: &std::path::Path, images: u32) -> std::path::PathBuf {
    use petnet::drift::{DriftSample, Reference};
    let checkpoint = petnet::Checkpoint::pretrained().unwrap();
    let classifier = petnet::Classifier::pretrained().unwrap();
    let samples: Vec<DriftSample> = (0..images)
        .map(|number| {
            let (pixels, statistics) = classifier.inspect(&drawn_image(number, 1.0)).unwrap();
            DriftSample::of(&classifier.classify_pixels(&[pixels]).unwrap()[0], &statistics)
        })
        .collect();
    let path = folder.join("drawn.safetensors");
    let model = checkpoint.with_reference(Some(Reference::learn(&samples)));
    model.save(&path, petnet::Precision::F16).unwrap();
    path
}

/// Waits until a condition holds, for a minute at most.
pub(crate) fn wait_until(condition: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{condition}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
