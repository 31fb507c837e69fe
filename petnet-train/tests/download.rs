//! `download` from servers that end responses early, stall, send wrong lengths and serve wrong bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{fail, succeed};
use tempfile::TempDir;

/// 300 kB of pseudo-random bytes.
fn content() -> Vec<u8> {
    let mut state = 1u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..300_000).map(byte).collect()
}

/// Behaviour of a server: answers its n-th request, for the bytes from an offset on.
type Behaviour = fn(usize, usize, &[u8], &mut TcpStream);

/// A server on a free port, and the offsets of the requests that it received.
fn serve(behaviour: Behaviour) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/photos.zip", listener.local_addr().unwrap());
    let offsets = Arc::new(Mutex::new(Vec::new()));
    let requested = Arc::clone(&offsets);
    std::thread::spawn(move || {
        let content = content();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut offset = 0;
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap().to_lowercase();
                if let Some(range) = line.strip_prefix("range: bytes=") {
                    offset = range.trim_end_matches('-').parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let number = {
                let mut requested = requested.lock().unwrap();
                requested.push(offset);
                requested.len()
            };
            behaviour(number, offset, &content, &mut stream);
        }
    });
    (address, offsets)
}

fn head(stream: &mut TcpStream, status: &str, length: usize) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\netag: \"1\"\r\n\r\n");
    // The client may have closed the connection.
    let _ = stream.write_all(head.as_bytes());
}

fn rest(offset: usize, content: &[u8], stream: &mut TcpStream) {
    let status = if offset > 0 { "206 Partial Content" } else { "200 OK" };
    head(stream, status, content.len() - offset);
    let _ = stream.write_all(&content[offset..]);
}

fn correct(_: usize, offset: usize, content: &[u8], stream: &mut TcpStream) {
    rest(offset, content, stream);
}

fn cutting(number: usize, offset: usize, content: &[u8], stream: &mut TcpStream) {
    if number > 2 {
        return rest(offset, content, stream);
    }
    let status = if offset > 0 { "206 Partial Content" } else { "200 OK" };
    head(stream, status, content.len() - offset);
    if offset == 0 {
        let _ = stream.write_all(&content[..100_000]);
    }
}

fn stalling(number: usize, offset: usize, content: &[u8], stream: &mut TcpStream) {
    if number > 1 {
        return rest(offset, content, stream);
    }
    head(stream, "200 OK", content.len());
    let _ = stream.write_all(&content[..50_000]);
    let open = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(20));
        drop(open);
    });
}

/// Announces fewer bytes than there are, then more.
fn wrong_length(number: usize, offset: usize, content: &[u8], stream: &mut TcpStream) {
    if number == 1 {
        head(stream, "200 OK", 1000);
        let _ = stream.write_all(&content[..1000]);
    } else {
        head(stream, "206 Partial Content", content.len() - offset + 77);
        let _ = stream.write_all(&content[offset..]);
    }
}

fn endless(_: usize, _: usize, content: &[u8], stream: &mut TcpStream) {
    head(stream, "200 OK", content.len() * 2);
    let _ = stream.write_all(&[content, content].concat());
}

fn wrong(_: usize, _: usize, content: &[u8], stream: &mut TcpStream) {
    let mut other = content.to_vec();
    other[1000] ^= 1;
    head(stream, "200 OK", other.len());
    let _ = stream.write_all(&other);
}

fn missing(_: usize, _: usize, _: &[u8], stream: &mut TcpStream) {
    head(stream, "404 Not Found", 0);
}

/// A folder with a description of a data set at `urls`.
fn described(urls: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let content = content();
    fs::write(root.path().join("content"), &content).unwrap();
    let digest = Command::new("sha256sum").arg(root.path().join("content")).output().unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    let digest = digest.split_whitespace().next().unwrap();
    let text = format!(
        "name: photos\nfile: photos.zip\nurls: {urls:?}\nsize: {}\nsha256: {digest}\n",
        content.len()
    );
    fs::write(root.path().join("photos.yaml"), text).unwrap();
    root
}

const DOWNLOAD: [&str; 6] = ["download", "--dataset", "photos.yaml", "--stall", "1", "--quiet"];

fn assert_complete(folder: &Path) {
    assert!(
        fs::read(folder.join("data/raw/photos.zip")).unwrap() == content(),
        "the content differs"
    );
    assert_eq!(fs::read_dir(folder.join("data/raw")).unwrap().count(), 1, "other files are left");
}

#[test]
fn an_interrupted_download_is_completed() {
    for (behaviour, offsets) in [
        (correct as Behaviour, &[0][..]),
        (cutting, &[0, 100_000, 100_000]),
        (stalling, &[0, 50_000]),
        (wrong_length, &[0, 1000]),
    ] {
        let (url, requested) = serve(behaviour);
        let root = described(&[&url]);
        succeed(root.path(), &DOWNLOAD);
        assert_complete(root.path());
        assert_eq!(*requested.lock().unwrap(), offsets, "only missing bytes are requested");
        succeed(root.path(), &DOWNLOAD);
        assert_eq!(requested.lock().unwrap().len(), offsets.len(), "a complete file is kept");
    }
}

#[test]
fn wrong_content_is_refused_and_the_next_address_is_used() {
    for (behaviour, reason) in [
        (wrong as Behaviour, "wrong content"),
        (endless, "more than the expected 300000 bytes"),
        (missing, "404"),
    ] {
        let (bad, _) = serve(behaviour);
        let root = described(&[&bad]);
        let (status, message) = fail(root.path(), &DOWNLOAD);
        assert_eq!(status, 1);
        assert!(message.contains(reason), "{message}");
        let left = fs::read_dir(root.path().join("data/raw")).unwrap();
        let left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".etag")), "{left:?}");
        let (good, _) = serve(correct);
        let root = described(&[&bad, &good]);
        succeed(root.path(), &DOWNLOAD);
        assert_complete(root.path());
    }
}

#[test]
fn a_local_file_is_accepted_if_its_digest_matches() {
    let root = described(&[]);
    let (status, message) = fail(root.path(), &DOWNLOAD);
    assert_eq!(status, 2);
    assert!(message.contains("--from"), "{message}");
    succeed(root.path(), &[&DOWNLOAD[..], &["--from", "content"]].concat());
    assert_complete(root.path());
    fs::write(root.path().join("data/raw/photos.zip"), b"short").unwrap();
    let (_, message) = fail(root.path(), &[&DOWNLOAD[..], &["--from", "photos.yaml"]].concat());
    assert!(message.contains("wrong content"), "{message}");
}
