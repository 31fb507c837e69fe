//! The real binary, as a user runs it, on drawn images.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::{fail, petnet, prepared, raw_images, succeed};

const FIT: [&str; 6] = ["fit", "--config", "settings.yaml", "--data", "data", "--quiet"];

fn fit(out: &str) -> Vec<&str> {
    [&FIT[..], &["--out", out]].concat()
}

#[test]
fn from_images_to_a_report() {
    let root = raw_images();
    let folder = root.path();
    let prepare =
        ["prepare", "--raw", "raw", "--out", "data", "--size", "24", "--preview", "sheet.png"];
    let printed = succeed(folder, &prepare);
    assert!(printed.contains("60 images, 1 files left out"), "{printed}");
    assert!(printed.contains("Cat/666.jpg: the file is empty"), "{printed}");
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
    let figures: Value = serde_json::from_str(&figures).unwrap();
    let saved = fs::read_to_string(folder.join("reports/metrics.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&saved).unwrap(), figures);
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
    // A plain folder with one folder per class.
    succeed(folder, &["evaluate", "--model", model, "--data", "raw", "--quiet"]);
    let csv =
        succeed(folder, &["predict", "--model", model, "--format", "csv", "--quiet", "raw/Dog"]);
    assert_eq!(csv.lines().count(), 31);
    assert_eq!(
        csv.lines().next(),
        Some("path,label,confidence,decision,ood_score,cat,dog,model,error")
    );
    let lines =
        succeed(folder, &["predict", "--model", model, "--json", "--quiet", "raw/Dog/3.png"]);
    let answer: Value = serde_json::from_str(&lines).unwrap();
    let sum: f64 =
        ["cat", "dog"].iter().map(|c| answer["probabilities"][c].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5);
}

/// Out-of-distribution images: a plain folder without classes, with a file that is no image.
fn ood_images(folder: &Path) {
    fs::create_dir(folder.join("other")).unwrap();
    for number in 0..9u32 {
        let noise = image::RgbImage::from_fn(40, 30, |x, y| {
            let mixed = (x * 30 + y + 1 + number * 1200).wrapping_mul(2_654_435_761);
            image::Rgb([(mixed >> 24) as u8, (mixed >> 13) as u8, (mixed >> 5) as u8])
        });
        noise.save(folder.join(format!("other/{number}.png"))).unwrap();
    }
    fs::write(folder.join("other/broken.jpg"), b"no image").unwrap();
}

#[test]
fn out_of_distribution_images_are_evaluated() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &fit("models"));
    ood_images(folder);
    let model = "models/best.safetensors";
    let evaluate = ["evaluate", "--model", model, "--data", "data", "--split", "train", "--quiet"];
    let ood = ["--ood", "other", "--ood", "raw/Dog/*.png"];
    let figures = succeed(folder, &[&evaluate[..], &ood, &["--json"]].concat());
    let figures: Value = serde_json::from_str(&figures).unwrap();
    let others = figures["ood"].as_array().unwrap();
    assert_eq!((others.len(), &others[0]["input"]), (2, &"other".into()));
    assert_eq!((&others[0]["images"], &others[0]["unreadable"]), (&9.into(), &1.into()));
    assert_eq!((&others[1]["images"], &others[1]["unreadable"]), (&30.into(), &0.into()));
    for other in others {
        let share = |name: &str| other[name].as_f64().unwrap();
        let sum = share("answered") + share("low_confidence") + share("out_of_distribution");
        assert!((sum - 1.0).abs() < 1e-9, "{other}");
        assert!((0.0..=1.0).contains(&share("auroc")) && (0.0..=1.0).contains(&share("fpr95")));
    }
    let page = fs::read_to_string(folder.join("reports/report.html")).unwrap();
    for part in
        ["Out-of-distribution images", "Out-of-distribution score", "raw/Dog/*.png", "FPR95"]
    {
        assert!(page.contains(part), "{part}");
    }
    let printed = succeed(folder, &[&evaluate[..], &ood[..2]].concat());
    assert!(printed.contains("OOD        other: 9 images, 1 unreadable"), "{printed}");
    assert!(printed.contains("           AUROC "), "{printed}");
    for (input, status, part) in
        [("nowhere", 2, "nowhere: no such file"), ("other/*.jpg", 1, "no readable image")]
    {
        let (code, message) = fail(folder, &[&evaluate[..], &["--ood", input]].concat());
        assert_eq!(code, status, "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_training_killed_anywhere_and_resumed_ends_with_the_same_weights() {
    let root = prepared();
    let folder = root.path();
    succeed(folder, &fit("whole"));
    let resume = [&fit("torn")[..], &["--resume"]].concat();
    let state = || fs::read(folder.join("torn/state.safetensors")).ok();
    let mut kills = 0;
    for _ in 0..5 {
        let before = state();
        let mut child = petnet(folder, &resume).stderr(Stdio::null()).spawn().unwrap();
        while state() == before && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        kills += i32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 1, "the training ended before it was killed after a resume");
    succeed(folder, &resume);
    assert_same_models(folder);
}

/// Asserts that weights are equal to the bit; only the seconds in the header may differ.
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
fn the_number_of_threads_changes_no_weight() {
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
    assert!(message.contains("`num_epochs` differs"), "{message}");
    // Threads and cache do not change the result.
    let faster = ["--resume", "--set", "num_workers=1", "--set", "cache_mb=100"];
    succeed(folder, &[&fit("models")[..], &faster].concat());
}

#[test]
fn bad_input_ends_with_one_line_and_the_right_status() {
    let root = raw_images();
    let folder = root.path();
    fs::create_dir_all(folder.join("one/cat")).unwrap();
    fs::copy(folder.join("raw/Cat/1.png"), folder.join("one/cat/1.png")).unwrap();
    fs::write(folder.join("bad.yaml"), "learning_rte: 1").unwrap();
    fs::write(folder.join("broken.yaml"), "a: [").unwrap();
    fs::write(folder.join("broken.safetensors"), b"junk").unwrap();
    fs::write(folder.join("tiny.yaml"), "model: {name: simple_cnn}\nimage_size: 8").unwrap();
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["fit", "--config", "tiny.yaml", "--data", "raw"],
            2,
            "image_size is 8, must be between 16",
        ),
        (&["prepare", "--raw", "nowhere", "--out", "x"], 1, "nowhere"),
        (&["prepare", "--raw", "one", "--out", "x"], 1, "at least 2 are needed"),
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

#[test]
fn labels_of_a_file_override_folders() {
    let root = raw_images();
    let folder = root.path();
    let digest = |path: &str| petnet::disk::sha256(&fs::read(folder.join(path)).unwrap());
    fs::create_dir(folder.join("raw/unlabelled")).unwrap();
    for number in 0..3 {
        let image = image::RgbImage::from_fn(40, 30, |x, y| {
            image::Rgb([(x * y * (number + 3) % 251) as u8, (x * 5) as u8, (y * 7) as u8])
        });
        image.save(folder.join(format!("raw/unlabelled/{number}.png"))).unwrap();
    }
    // An image in the wrong folder, and two uploads, one of them labelled twice: the last label counts.
    let given = [
        ("raw/Cat/0.png", "dog"),
        ("raw/unlabelled/0.png", "cat"),
        ("raw/unlabelled/1.png", "cat"),
        ("raw/unlabelled/1.png", "dog"),
    ];
    let lines = given.map(|(path, label)| {
        format!(
            "{{\"prediction_id\":\"x\",\"sha256\":\"{}\",\"label\":\"{label}\"}}\n",
            digest(path)
        )
    });
    fs::write(folder.join("feedback.jsonl"), lines.concat()).unwrap();
    let prepare = ["prepare", "--raw", "raw", "--out", "data", "--labels", "feedback.jsonl"];
    let printed = succeed(folder, &prepare);
    assert!(printed.contains("62 images, 2 files left out"), "{printed}");
    assert!(
        printed.contains("1  without a label") && printed.contains("1  unreadable"),
        "{printed}"
    );
    let manifest = fs::read_to_string(folder.join("data/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["classes"], serde_json::json!(["cat", "dog"]));
    let images = manifest["photos"].as_array().unwrap();
    let class = |path: &str| {
        let digest = digest(path);
        images.iter().find(|image| image["sha256"] == *digest).unwrap()["classes"][0].clone()
    };
    assert_eq!(class("raw/Cat/0.png"), "dog");
    assert_eq!(class("raw/Cat/1.png"), "cat");
    assert_eq!(class("raw/unlabelled/0.png"), "cat");
    assert_eq!(class("raw/unlabelled/1.png"), "dog");
    fs::write(folder.join("feedback.jsonl"), "{}\n").unwrap();
    let (status, message) = fail(folder, &prepare);
    assert_eq!(status, 1);
    assert!(message.contains("feedback.jsonl, line 1"), "{message}");
}

#[test]
fn metrics_are_served_during_a_training() {
    let root = prepared();
    let folder = root.path();
    let mut slow = fit("models");
    slow.retain(|argument| *argument != "--quiet");
    let slow =
        [&slow[..], &["--epochs", "400", "--set", "batch_size=5", "--metrics-addr", "127.0.0.1:0"]];
    let slow = slow.concat();
    let mut training =
        petnet(folder, &slow).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(training.stderr.take().unwrap()));
    let mut lines = lines.map_while(Result::ok);
    let line = lines.find(|line| line.contains("metrics") && line.contains("127.0.0.1:")).unwrap();
    let from = line.find("127.0.0.1:").unwrap();
    let address: String =
        line[from..].chars().take_while(|c| !c.is_whitespace() && *c != '\u{1b}').collect();
    std::thread::spawn(move || lines.for_each(drop));
    let scrape = || {
        ureq::get(format!("http://{address}/metrics"))
            .call()
            .unwrap()
            .body_mut()
            .read_to_string()
            .unwrap()
    };
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    let began = Instant::now();
    let text = loop {
        let text = scrape();
        if value(&text, "training_validation_accuracy").is_some()
            || began.elapsed() > Duration::from_secs(60)
        {
            break text;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let steps = value(&text, "training_steps_total").unwrap();
    assert!(steps >= 1.0);
    // Of the 48 images, the last of ten steps has three. A scrape may come between two updates of a step.
    let images = |steps: f64| (steps / 10.0).floor() * 48.0 + steps % 10.0 * 5.0;
    let near = [steps - 1.0, steps, steps + 1.0];
    let counted = value(&text, "training_images_total").unwrap();
    assert!(near.iter().any(|steps| images(*steps) == counted), "{counted} images, {steps} steps");
    assert!(near.contains(&value(&text, "training_loader_wait_seconds_count").unwrap()));
    assert_eq!(value(&text, "training_epochs"), Some(400.0));
    // docs/metrics.md lists exactly these metrics, apart from those of the process.
    let page = include_str!("../../docs/metrics.md").split_once("## Training").unwrap().1;
    let named = |name: &str| page.contains(&format!("`{name}`"));
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: Vec<&str> = families.filter(|name| !name.starts_with("process_")).collect();
    assert!(families.iter().all(|name| named(name)), "{families:?}");
    let rows = page.split('`').skip(1).step_by(2).filter(|name| name.starts_with("training_"));
    assert!(rows.clone().count() > 9);
    rows.for_each(|name| assert!(families.contains(&name), "{name} of {families:?}"));
    training.kill().unwrap();
    training.wait().unwrap();
}

#[test]
fn set_overrides_the_settings_file() {
    let root = prepared();
    let folder = root.path();
    let set = [
        "--set",
        "num_epochs=1",
        "--set",
        "scheduler.name=cosine",
        "--set",
        "augmentation.rotation=5",
    ];
    succeed(folder, &[&fit("models")[..], &set].concat());
    let history = fs::read_to_string(folder.join("models/history.json")).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&history).unwrap().len(), 1);
    for (set, part) in [
        ("learning_rat=1", "learning_rate"),
        ("num_epochs", "KEY=VALUE"),
        ("num_epochs=many", "--set num_epochs=many"),
        ("num_epochs.x=1", "plain value"),
    ] {
        let (status, message) = fail(folder, &[&fit("models")[..], &["--set", set]].concat());
        assert_eq!(status, 2, "{message}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn smoke_reports_an_unreachable_service() {
    let root = tempfile::tempdir().unwrap();
    let (status, message) = fail(root.path(), &["smoke", "http://127.0.0.1:9", "--wait", "0s"]);
    assert_eq!(status, 1);
    assert!(message.contains("http://127.0.0.1:9/readyz"), "{message}");
}

#[test]
fn a_pytorch_checkpoint_is_imported_and_exported() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../petnet/tests/golden");
    let given = golden.join("best_model.pt");
    let given = given.to_str().unwrap();
    let import = ["import", given, "--out", "mine.safetensors", "--image-size", "32", "--json"];
    let about: Value = serde_json::from_str(&succeed(folder, &import)).unwrap();
    assert_eq!(about["labels"], serde_json::json!(["cat", "dog"]));
    let answers: Value =
        serde_json::from_slice(&std::fs::read(golden.join("best_model.json")).unwrap()).unwrap();
    let image = golden.join("waves.png");
    let predict =
        |model| ["predict", "--model", model, image.to_str().unwrap(), "--format", "jsonl"];
    let answer: Value =
        serde_json::from_str(&succeed(folder, &predict("mine.safetensors"))).unwrap();
    let near = |class: &str, expected: &Value, limit: f64| {
        let found = answer["probabilities"][class].as_f64().unwrap();
        assert!((found - expected.as_f64().unwrap()).abs() < limit, "{class}: {found} {expected}");
    };
    near("cat", &answers["waves.png"][0], 1e-4);
    near("dog", &answers["waves.png"][1], 1e-4);

    for (out, extra) in
        [("m.onnx", &[][..]), ("m.bpk", &[]), ("m8.safetensors", &["--precision", "int8"])]
    {
        let export = ["export", "--model", "mine.safetensors", "--out", out];
        succeed(folder, &[&export[..], extra].concat());
        assert!(folder.join(out).metadata().unwrap().len() > 1000, "{out}");
    }
    let small: Value = serde_json::from_str(&succeed(folder, &predict("m8.safetensors"))).unwrap();
    near("cat", &small["probabilities"]["cat"], 0.02);
    let precise = ["export", "--model", "pretrained", "--out", "m.onnx", "--precision", "f16"];
    assert_eq!(fail(folder, &precise).0, 2);
    // Trailing empty lines and spaces around a name are ignored.
    std::fs::write(folder.join("labels.txt"), "\u{feff} cat\ndog \n\n").unwrap();
    for labels in [["--labels-file", "labels.txt"], ["--labels", " cat, dog"]] {
        let import = [&import[..], &labels].concat();
        let about: Value = serde_json::from_str(&succeed(folder, &import)).unwrap();
        assert_eq!(about["labels"], serde_json::json!(["cat", "dog"]), "{labels:?}");
    }
    let (code, printed) = fail(folder, &["import", given, "--labels", "a,b,c"]);
    assert!(code == 2 && printed.contains("2 classes, 3 are named"), "{code} {printed}");
}
