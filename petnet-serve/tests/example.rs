//! The example `examples/service.rs`, which `cargo test` builds together with the tests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use common::{Reply, post, test_image};
use image::ImageFormat;

#[test]
fn the_example_service_classifies_images() {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/service");
    let mut service =
        Command::new(program).arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(service.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let address = first.trim().strip_prefix("listening on ").unwrap();
    let ask = |body: &[u8]| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(&post("/", &[], body)).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        Reply::parse(&reply)
    };
    let answer = ask(&test_image(ImageFormat::Png));
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8(answer.body).unwrap().contains(" %)"));
    assert_eq!(ask(b"no image").status, 400);
    service.kill().unwrap();
    service.wait().unwrap();
}
