//! The real binary, as a user runs it, on drawn pictures.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const SETTINGS: &str = "\
image_size: 16
num_epochs: 6
batch_size: 4
num_workers: 2
ema_decay: 0.9
checkpoint: {every_n_steps: 3}
";

fn petnet(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petnet-train"));
    command.current_dir(folder).args(arguments);
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    petnet(folder, arguments).output().unwrap()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail; returns the exit status and the last line of the message.
fn fail(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!errors.contains("panicked"), "{errors}");
    (output.status.code().unwrap(), errors.lines().last().unwrap_or_default().to_string())
}

/// Thirty pictures a class: stripes along or across, no two alike.
fn raw_pictures() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (class, along) in [("Cat", true), ("Dog", false)] {
        let folder = root.path().join("raw").join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..30u32 {
            let picture = RgbImage::from_fn(40, 30, |x, y| {
                let stripe = (if along { x } else { y } + number % 5) / 4 % 2;
                let value = (stripe * 100 + number * 5 + x * y % 17) as u8;
                Rgb([value, value / 2 + number as u8, 255 - value])
            });
            picture.save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
    fs::write(root.path().join("raw/Cat/666.jpg"), b"").unwrap();
    fs::write(root.path().join("settings.yaml"), SETTINGS).unwrap();
    root
}

fn prepared() -> TempDir {
    let root = raw_pictures();
    succeed(root.path(), &["prepare", "--raw", "raw", "--out", "data", "--size", "24", "--quiet"]);
    root
}

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
    let cases: [(&[&str], i32, &str); 9] = [
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
