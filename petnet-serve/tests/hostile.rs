//! Malformed and slow requests: each gets its status, memory does not grow, and valid requests are served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};

use common::{Reply, Server, multipart, post, test_image, wait_until};
use image::{ImageFormat, Rgb, RgbImage};

const JPEG: (&str, &str) = ("content-type", "image/jpeg");

/// A PNG whose header declares 50,000 x 50,000 pixels.
fn png_bomb() -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&50_000u32.to_be_bytes());
    header.extend_from_slice(&50_000u32.to_be_bytes());
    header.extend_from_slice(&[8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend_from_slice(&header);
    png.extend_from_slice(&crc32(&header).to_be_bytes());
    png.extend_from_slice(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// A GIF of a few bytes whose header declares 65,535 x 65,535 pixels.
fn gif_bomb() -> Vec<u8> {
    let mut gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    gif.extend_from_slice(b",\0\0\0\0\xff\xff\xff\xff\0\x02\x16");
    gif.extend_from_slice(&[0x8c; 22]);
    gif.extend_from_slice(b"\0;");
    gif
}

/// A malformed request, and the statuses that are correct for it.
fn malformed(number: usize, image: &[u8]) -> (Vec<u8>, &'static [u16]) {
    let cut = &image[..2 + number * 7 % (image.len() - 3)];
    let (kind, form) = multipart(&[("image/jpeg", cut)]);
    match number % 12 {
        0 => (post("/predict", &[JPEG], cut), &[400, 422]),
        1 => (post("/predict", &[("content-type", &kind)], &form), &[400, 422]),
        2 => (post("/predict", &[("content-type", &kind)], &form[..form.len() / 2]), &[400]),
        3 => (post("/predict", &[("content-type", "image/png")], &png_bomb()), &[413]),
        4 => (post("/predict", &[("content-type", "image/gif")], &gif_bomb()), &[413]),
        5 => (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03garbage\r\n\r\n".to_vec(), &[400]),
        6 => (post("/predict", &[JPEG, ("content-length", "-5")], b""), &[400]),
        7 => {
            (post("/predict", &[JPEG, ("transfer-encoding", "gzip")], b"x"), &[400, 411, 422, 501])
        }
        8 => (post("/predict", &[("x-long", &"y".repeat(40_000))], b""), &[400, 431]),
        9 => (
            format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "z".repeat(90_000)).into_bytes(),
            &[414, 431],
        ),
        10 => (
            post("/predict", &[("content-type", "application/json")], b"{\"image\":\"%%\"}"),
            &[400],
        ),
        _ => {
            let chunked = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n\
                transfer-encoding: chunked\r\nconnection: close\r\n\r\nzz\r\n";
            (chunked.to_vec(), &[400])
        }
    }
}

#[test]
fn a_thousand_malformed_requests_do_no_harm() {
    let server = Server::start(&["--max-body", "1000000"]);
    let image = test_image(ImageFormat::Jpeg);
    let good = || server.post("/predict", &[JPEG], &image).status;
    (0..20).for_each(|_| assert_eq!(good(), 200));
    let before = server.memory();
    for number in 0..1000 {
        let (bytes, right) = malformed(number, &image);
        let mut stream = server.connect();
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let reply = Reply::parse(&answer);
        let message = String::from_utf8_lossy(&answer);
        assert!(right.contains(&reply.status), "case {}: {}: {message}", number % 12, reply.status);
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 20_000_000, "{grown} bytes");
    assert_eq!(good(), 200);
}

#[test]
fn slow_requests_get_408_and_do_not_block_others() {
    let server = Server::start(&["--header-timeout", "300ms", "--transfer-timeout", "300ms"]);
    let image = test_image(ImageFormat::Jpeg);
    // Half of a method, of a header and of a body.
    let body = post("/predict", &[JPEG], &image);
    let starts: [&[u8]; 4] = [b"P", b"PO", b"POST /predict HTTP/1.1\r\nhost:", &body[..200]];
    let slow: Vec<_> = (0..100)
        .map(|number| {
            let mut stream = server.connect();
            stream.write_all(starts[number % starts.len()]).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.post("/predict", &[JPEG], &image).status, 200);
    for (number, mut stream) in slow.into_iter().enumerate() {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let reply = Reply::parse(&answer);
        assert_eq!(reply.status, 408, "start {}", number % starts.len());
        assert_eq!(reply.header("content-length").unwrap(), reply.body.len().to_string());
        assert_eq!(reply.json()["status"], 408);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_until_the_garbage() {
    let server = Server::start(&[]);
    let mut bytes = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5);
    bytes.extend_from_slice(b"\0\0 garbage\r\n\r\n");
    let mut stream = server.connect();
    stream.write_all(&bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 5, "{text}");
    assert_eq!(text.matches("HTTP/1.1 400 Bad Request").count(), 1, "{text}");
}

#[test]
fn requests_that_would_wait_too_long_are_refused_with_retry_after() {
    let settings = ["--queue", "1", "--max-batch", "1", "--queue-timeout", "3ms"];
    let server = Server::start(&settings);
    let request = post("/predict", &[JPEG], &test_image(ImageFormat::Jpeg));
    let statuses: Vec<(u16, Option<u64>)> = std::thread::scope(|scope| {
        let send = || {
            (0..4)
                .map(|_| {
                    let reply = server.send(&request);
                    let wait = reply.header("retry-after").map(|s| s.parse().unwrap());
                    (reply.status, wait)
                })
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(send)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let served = statuses.iter().filter(|(status, _)| *status == 200).count();
    let refused = statuses.iter().filter(|(status, _)| *status == 503).count();
    assert_eq!(served + refused, statuses.len(), "{statuses:?}");
    assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    let waits = statuses.iter().filter(|(status, _)| *status == 503).map(|(_, wait)| *wait);
    assert!(waits.into_iter().all(|wait| (1..=60).contains(&wait.unwrap_or(0))));
}

#[test]
fn the_network_does_not_run_for_clients_that_disconnected() {
    let room = ["--max-batch", "1", "--decode-threads", "1", "--queue", "4"];
    let server = Server::start(&room);
    // Takes tens of milliseconds to decode.
    let noise =
        RgbImage::from_fn(1700, 1700, |x, y| Rgb([((x * 31) ^ (y * 17)) as u8, (x * y) as u8, 9]));
    let mut image = std::io::Cursor::new(Vec::new());
    noise.write_to(&mut image, ImageFormat::Jpeg).unwrap();
    let request = post("/predict", &[JPEG], &image.into_inner());
    let clients: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(&request).unwrap();
            stream
        })
        .collect();
    let total = |name: &str| -> f64 {
        let metrics = server.metrics();
        metrics.iter().filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, n)| n).sum()
    };
    wait_until("images wait", || total("batch_queue_waiting") > 0.0);
    drop(clients);
    assert_eq!(server.post("/predict", &[JPEG], &test_image(ImageFormat::Jpeg)).status, 200);
    wait_until("images are dropped", || total("predictions_abandoned_total") > 0.0);
    assert!(total("predictions_abandoned_total") <= 30.0);
}
