//! Unusual inputs and outputs, through the real binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use common::{fail, petnet, raw_images, run, succeed};
use serde_json::Value;

#[test]
fn a_closed_output_ends_a_listing_but_not_a_training() {
    let root = raw_images();
    let folder = root.path();
    let fit = ["fit", "--config", "settings.yaml", "--data", "raw"];
    for arguments in [&["predict", "--batch-size", "1", "raw"][..], &fit] {
        let mut command = petnet(folder, arguments);
        command.env("MLFLOW_TRACKING_URI", "off").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        // As `head -1` does.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !printed.contains("panicked"),
            "{arguments:?}: {printed}"
        );
    }
    assert!(folder.join("models/best.safetensors").is_file(), "the training went on");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_an_error_of_the_output() {
    let root = raw_images();
    let prepare = ["prepare", "--raw", "raw", "--out", "data"];
    for arguments in [&prepare[..], &["predict", "raw"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = petnet(root.path(), arguments);
        let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains("error: standard output:"), "{printed}");
    }
    assert!(root.path().join("data/manifest.json").is_file());
}

#[test]
fn predict_recognises_images_by_content_and_counts_other_files() {
    let root = raw_images();
    let folder = root.path();
    let odd = folder.join("odd");
    fs::create_dir_all(odd.join(".hidden")).unwrap();
    let image = fs::read(folder.join("raw/Dog/1.png")).unwrap();
    for name in ["a.jfif", "b", ".hidden/c.png"] {
        fs::write(odd.join(name), &image).unwrap();
    }
    fs::write(odd.join("notes.txt"), "no image").unwrap();
    fs::write(odd.join("phone.HEIC"), b"\0\0\0\x18ftypheic\0\0\0\0").unwrap();
    let mut zip = zip::ZipWriter::new(File::create(odd.join("x.zip")).unwrap());
    for name in ["./cat/1.png", "cat\\2.png", "cat/readme"] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(if name.ends_with("png") { &image } else { b"text" }).unwrap();
    }
    zip.finish().unwrap();
    // One entry has an unsupported compression method: its row has the error, and the others are classified.
    let mut bytes = fs::read(odd.join("x.zip")).unwrap();
    let header = bytes.windows(4).rposition(|mark| mark == b"PK\x03\x04").unwrap();
    let header = bytes[..header].windows(4).rposition(|mark| mark == b"PK\x03\x04").unwrap();
    bytes[header + 8] = 9;
    let central = bytes.windows(4).position(|mark| mark == b"PK\x01\x02").unwrap();
    let second =
        central + 4 + bytes[central + 4..].windows(4).position(|m| m == b"PK\x01\x02").unwrap();
    bytes[second + 10] = 9;
    fs::write(folder.join("x.zip"), bytes).unwrap();
    fs::remove_file(odd.join("x.zip")).unwrap();
    let output = run(folder, &["predict", "--format", "jsonl", "odd", "x.zip"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<&str> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(
        paths,
        ["odd/a.jfif", "odd/b", "odd/phone.HEIC", "x.zip/cat/1.png", "x.zip/cat/2.png"]
    );
    assert!(rows[2]["error"].as_str().unwrap().contains("HEIC is not read"), "{printed}");
    assert!(rows[4]["error"].as_str().unwrap().contains("not supported"), "{printed}");
    assert!(rows[3]["decision"].is_string() && rows[3]["model"].is_string(), "{printed}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("3 files left out: 2 no image, 1 hidden"), "{log}");
    assert!(!log.contains('\u{1b}'), "colour codes where the output is no terminal: {log}");
    fs::remove_file(odd.join("phone.HEIC")).unwrap();
    fs::remove_file(odd.join("a.jfif")).unwrap();
    fs::remove_file(odd.join("b")).unwrap();
    let (status, message) = fail(folder, &["predict", "odd"]);
    assert_eq!(status, 1);
    assert!(message.contains("no image among 2 files"), "{message}");
}

#[test]
fn labels_from_tables_and_file_names_and_byte_order_marks() {
    let root = raw_images();
    let folder = root.path();
    fs::create_dir(folder.join("flat")).unwrap();
    let mut table = String::from("\u{feff}file_name,category\n");
    for (class, name) in [("Cat", "cat"), ("Dog", "dog")] {
        for number in 0..6 {
            let from = folder.join(format!("raw/{class}/{number}.png"));
            fs::copy(from, folder.join(format!("flat/{name}.{number}.png"))).unwrap();
            table += &format!("{name}.{number}.png,{name}\n");
        }
    }
    let pattern = ["prepare", "--raw", "flat", "--out", "a", "--label-pattern", r"(cat|dog)\.\d+"];
    let by_name = succeed(folder, &[&pattern[..], &["--json"]].concat());
    let by_name: Value = serde_json::from_str(&by_name).unwrap();
    fs::write(folder.join("table.csv"), &table).unwrap();
    let given = ["prepare", "--raw", "flat", "--out", "b", "--labels", "table.csv", "--json"];
    let given: Value = serde_json::from_str(&succeed(folder, &given)).unwrap();
    fs::write(folder.join("flat/metadata.csv"), &table).unwrap();
    let beside = ["prepare", "--raw", "flat", "--out", "c", "--json"];
    let beside: Value = serde_json::from_str(&succeed(folder, &beside)).unwrap();
    assert_eq!((&by_name["digests"], &by_name["readable"]), (&given["digests"], &Value::from(12)));
    assert_eq!(beside["digests"], given["digests"]);
    assert_eq!(beside["left_out"], serde_json::json!({ "no_image": 1 }));

    let settings = fs::read_to_string(folder.join("settings.yaml")).unwrap();
    fs::write(folder.join("marked.yaml"), format!("\u{feff}{settings}")).unwrap();
    let marked = ["lr-find", "--config", "marked.yaml", "--data", "raw", "--out", "curve.png"];
    succeed(folder, &marked);
}

#[cfg(target_os = "linux")]
#[test]
fn the_name_of_a_model_file_may_be_invalid_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let root = raw_images();
    let folder = root.path();
    let name = OsStr::from_bytes(b"caf\xe9.safetensors");
    fs::write(folder.join(name), petnet::Checkpoint::pretrained_bytes()).unwrap();
    let mut command = petnet(folder, &["evaluate", "--data", "raw", "--json", "--model"]);
    let output = command.arg(name).env("MLFLOW_TRACKING_URI", "off").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["num_samples"], 60);
}
