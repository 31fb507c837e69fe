//! Each example runs with the arguments of its first lines, on drawn images. `cargo test` builds the examples.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(all(feature = "pretrained", feature = "train"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::draw_folder;

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// The example's standard output.
fn run(folder: &Path, name: &str, arguments: &[&str]) -> String {
    let output = Command::new(built(name)).args(arguments).current_dir(folder).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn every_example_does_what_it_says() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    draw_folder(&folder.join("photos"), &["cat", "dog"], 12);
    let photo = "photos/cat/1.png";
    std::fs::write(folder.join("photos/cat/broken.png"), b"no picture").unwrap();

    assert!(run(folder, "classify", &[photo]).starts_with(photo));
    let all = run(folder, "batch", &["photos/cat"]);
    assert_eq!(all.lines().count(), 13, "{all}");
    assert!(all.contains("broken.png: not a JPEG"), "{all}");
    std::fs::remove_file(folder.join("photos/cat/broken.png")).unwrap();

    run(folder, "explain", &[photo, "heat.png"]);
    assert_eq!(image::image_dimensions(folder.join("heat.png")).unwrap(), (48, 48));
    run(folder, "augment", &[photo, "sheet.png"]);
    assert_eq!(image::image_dimensions(folder.join("sheet.png")).unwrap(), (1024, 128));
    let shipped = run(folder, "export", &["shipped", photo]);
    let moves: Vec<&str> =
        shipped.lines().filter_map(|line| line.rsplit_once(' ')).map(|(_, moved)| moved).collect();
    assert!(moves[0].parse::<f32>().unwrap() < 0.005, "{shipped}");
    assert!(moves[1].parse::<f32>().unwrap() < 0.05, "{shipped}");
    assert!(folder.join("shipped/model.onnx").is_file());
    let judged = run(folder, "evaluate", &["photos", "metrics.json"]);
    assert!(
        judged.contains("% of 24 are right") && judged.ends_with("wrote metrics.json\n"),
        "{judged}"
    );
    let tuned = run(folder, "finetune", &["photos"]);
    assert!(tuned.ends_with("wrote mine.safetensors for [\"cat\", \"dog\"]\n"), "{tuned}");
    assert!(run(folder, "train", &["photos"]).ends_with("wrote mine.safetensors\n"));
    let first = run(folder, "resume", &["photos", "models"]);
    assert!(first.starts_with("4 epochs"), "{first}");
    assert_eq!(run(folder, "resume", &["photos", "models"]), first, "there was nothing left to do");
}
