//! The real binary in a folder of drawn images.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const SETTINGS: &str = "\
model: {name: simple_cnn, channels: [32, 64, 128, 256], hidden: 128, dropout: 0.5}
image_size: 16
learning_rate: 0.002
label_smoothing: 0.0
num_epochs: 6
batch_size: 4
num_workers: 2
ema_decay: 0.9
checkpoint: {every_n_steps: 3}
";

pub(crate) fn petnet(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_petnet-train"));
    command.current_dir(folder).args(arguments);
    // Variables of the environment must not affect the tests.
    command.env_remove("MLFLOW_TRACKING_URI").env_remove("MLFLOW_EXPERIMENT_NAME");
    command
}

pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    petnet(folder, arguments).output().unwrap()
}

pub(crate) fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail; returns the exit status and the last line of standard error.
pub(crate) fn fail(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!errors.contains("panicked"), "{errors}");
    (output.status.code().unwrap(), errors.lines().last().unwrap_or_default().to_string())
}

/// A folder `raw` with thirty different images per class, of vertical or horizontal stripes, and an empty file.
pub(crate) fn raw_images() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (class, along) in [("Cat", true), ("Dog", false)] {
        let folder = root.path().join("raw").join(class);
        fs::create_dir_all(&folder).unwrap();
        for number in 0..30u32 {
            let image = RgbImage::from_fn(40, 30, |x, y| {
                let stripe = (if along { x } else { y } + number % 5) / 4 % 2;
                let value = (stripe * 100 + number * 5 + x * y % 17) as u8;
                Rgb([value, value / 2 + number as u8, 255 - value])
            });
            image.save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
    fs::write(root.path().join("raw/Cat/666.jpg"), b"").unwrap();
    fs::write(root.path().join("settings.yaml"), SETTINGS).unwrap();
    root
}

pub(crate) fn prepared() -> TempDir {
    let root = raw_images();
    succeed(root.path(), &["prepare", "--raw", "raw", "--out", "data", "--size", "24", "--quiet"]);
    root
}
