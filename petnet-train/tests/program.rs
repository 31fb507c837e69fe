//! The real binary, as a user runs it, on drawn pictures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{fail, petnet, prepared, raw_pictures, succeed};

const FIT: [&str; 6] = ["fit", "--config", "settings.yaml", "--data", "data", "--quiet"];

fn fit(out: &str) -> Vec<&str> {
    [&FIT[..], &["--out", out]].concat()
}

#[test]
fn from_pictures_to_a_report() {
    let root = raw_pictures();
    let folder = root.path();
    let prepare =
        ["prepare", "--raw", "raw", "--out", "data", "--size", "24", "--preview", "sheet.png"];
    let said = succeed(folder, &prepare);
    assert!(said.contains("60 readable, 1 refused"), "{said}");
    assert!(said.contains("Cat/666.jpg: the file is empty"), "{said}");
    assert!(image::open(folder.join("sheet.png")).unwrap().width() > 300);
    succeed(folder, &fit("models"));
    let curves = image::open(folder.join("models/loss_curves.png")).unwrap();
    assert_eq!((curves.width(), curves.height()), (960, 340));
    for file in ["best.safetensors", "last.safetensors", "confusion_matrix.npy", "metrics.json"] {
        assert!(folder.join("models").join(file).is_file(), "{file}");
    }
    let model = "models/best.safetensors";
    let figures =
        succeed(folder, &["evaluate", "--model", model, "--data", "data", "--json", "--quiet"]);
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    let saved = fs::read_to_string(folder.join("reports/metrics.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&saved).unwrap(), figures);
    for key in [
        "accuracy",
        "precision",
        "recall",
        "f1_score",
        "roc_auc",
        "log_loss",
        "ece",
        "num_samples",
        "confusion_matrix",
        "classes",
        "model",
    ] {
        assert!(figures.get(key).is_some(), "{key}");
    }
    assert_eq!(figures["num_samples"], 6);
    let page = fs::read_to_string(folder.join("reports/report.html")).unwrap();
    assert!(page.matches("<svg").count() >= 5 && page.contains("Model card"));
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"), "works offline");
    // A plain folder per class, too.
    succeed(folder, &["evaluate", "--model", model, "--data", "raw", "--quiet"]);
    let csv =
        succeed(folder, &["predict", "--model", model, "--format", "csv", "--quiet", "raw/Dog"]);
    assert_eq!(csv.lines().count(), 31);
    assert_eq!(csv.lines().next(), Some("path,label,confidence,cat,dog,error"));
    let lines =
        succeed(folder, &["predict", "--model", model, "--json", "--quiet", "raw/Dog/3.png"]);
    let answer: serde_json::Value = serde_json::from_str(&lines).unwrap();
    let sum: f64 =
        ["cat", "dog"].iter().map(|c| answer["probabilities"][c].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);
}

#[test]
fn killed_anywhere_and_resumed_it_ends_with_the_same_bytes() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &fit("whole"));
    let resume = [&fit("torn")[..], &["--resume"]].concat();
    let mut kills = 0;
    for delay in [60, 90, 120, 150, 180] {
        let mut child = petnet(folder, &resume).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(delay) && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        kills += i32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "the training was too quick to be killed");
    succeed(folder, &resume);
    assert_same_models(folder);
}

/// Weights equal to the bit; only the seconds in the description may differ.
fn assert_same_models(folder: &Path) {
    for file in ["best.safetensors", "last.safetensors"] {
        let read = |out: &str| {
            let bytes = fs::read(folder.join(out).join(file)).unwrap();
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[header..].to_vec()
        };
        assert!(read("whole") == read("torn"), "{file} differs");
    }
}

#[test]
fn the_thread_count_changes_no_weight() {
    let root = prepared();
    let folder = root.path();
    for (out, threads) in [("whole", "1"), ("torn", "3")] {
        let status = petnet(folder, &fit(out)).env("RAYON_NUM_THREADS", threads).status().unwrap();
        assert!(status.success());
    }
    assert_same_models(folder);
}

#[test]
fn resuming_with_other_settings_is_refused() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &fit("models"));
    let longer = [&fit("models")[..], &["--resume", "--epochs", "9"]].concat();
    let (status, message) = fail(folder, &longer);
    assert_eq!(status, 2);
    assert!(message.contains("`epochs` differs"), "{message}");
}

#[test]
fn bad_input_ends_with_one_line_and_the_right_status() {
    let root = raw_pictures();
    let folder = root.path();
    fs::create_dir_all(folder.join("one/cat")).unwrap();
    fs::copy(folder.join("raw/Cat/1.png"), folder.join("one/cat/1.png")).unwrap();
    fs::write(folder.join("bad.yaml"), "learning_rte: 1").unwrap();
    fs::write(folder.join("broken.yaml"), "a: [").unwrap();
    fs::write(folder.join("broken.safetensors"), b"junk").unwrap();
    fs::write(folder.join("tiny.yaml"), "image_size: 8").unwrap();
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["fit", "--config", "tiny.yaml", "--data", "raw"],
            2,
            "image_size is 8, must be between 16",
        ),
        (&["prepare", "--raw", "nowhere", "--out", "x"], 1, "nowhere"),
        (&["prepare", "--raw", "one", "--out", "x"], 1, "at least two classes"),
        (&["prepare", "--raw", "raw", "--out", "x", "--split", "0.5,0.1,0.1"], 2, "sum to 1"),
        (&["fit", "--data", "nowhere"], 1, "nowhere"),
        (&["fit", "--config", "missing.yaml"], 2, "missing.yaml"),
        (&["fit", "--config", "bad.yaml"], 2, "did you mean `learning_rate`"),
        (&["fit", "--config", "broken.yaml"], 2, "broken.yaml"),
        (&["evaluate", "--model", "broken.safetensors", "--data", "raw"], 1, "broken.safetensors"),
        (&["predict", "--model", "nothing.safetensors", "raw/Cat/1.png"], 1, "nothing.safetensors"),
    ];
    for (arguments, status, part) in cases {
        let (code, message) = fail(folder, arguments);
        assert_eq!(code, status, "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
    assert!(!folder.join("x").exists(), "nothing half-written");
}
