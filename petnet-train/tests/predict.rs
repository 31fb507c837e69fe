//! `predict` on many images: from folders, globs and archives, in shards and in parts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{fail, petnet, raw_images, succeed};
use serde_json::Value;

/// Number of image files of `raw_images`, including the empty one.
const IMAGES: usize = 61;

/// All rows of a folder, by path; fails if a path occurs twice.
fn rows(folder: &Path) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            for line in fs::read_to_string(path).unwrap().lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                let name = row["path"].as_str().unwrap().to_string();
                assert!(rows.insert(name.clone(), row).is_none(), "{name} twice");
            }
        }
    }
    rows
}

fn score(folder: &Path, out: &str, more: &[&str]) -> BTreeMap<String, Value> {
    let printed = succeed(folder, &[&["predict", "--quiet", "--out", out], more].concat());
    assert!(printed.contains(" images in "), "{printed}");
    rows(&folder.join(out))
}

/// The row of each image without its path, by the image's name below `raw/`.
fn answers(rows: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let answer = |(path, row): (&String, &Value)| {
        let name = path.split_once("raw/").unwrap().1.to_string();
        let mut row = row.clone();
        row["path"] = Value::Null;
        (name, row)
    };
    rows.iter().map(answer).collect()
}

/// Packs the images of `raw` into a tar and a zip, with a file that is no image.
fn pack(folder: &Path) {
    let mut tar = tar::Builder::new(File::create(folder.join("part-0.tar")).unwrap());
    let mut zip = zip::ZipWriter::new(File::create(folder.join("part-0.zip")).unwrap());
    for class in ["Cat", "Dog"] {
        for entry in fs::read_dir(folder.join("raw").join(class)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_string();
            tar.append_path_with_name(&path, &name).unwrap();
            zip.start_file(&name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&fs::read(&path).unwrap()).unwrap();
        }
    }
    zip.start_file("raw/readme.txt", zip::write::SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    tar.append_path_with_name(folder.join("settings.yaml"), "raw/settings.yaml").unwrap();
    tar.finish().unwrap();
}

#[test]
fn folders_globs_and_archives_give_the_same_answers() {
    let root = raw_images();
    let folder = root.path();
    pack(folder);
    let plain = answers(&score(folder, "plain", &["raw"]));
    assert_eq!(plain.len(), IMAGES);
    assert_eq!(plain["Cat/666.jpg"]["error"], "the file is empty");
    let row = &plain["Dog/3.png"];
    assert!(row["probabilities"]["dog"].is_number());
    let decisions = ["answered", "low_confidence", "out_of_distribution"];
    assert!(decisions.contains(&row["decision"].as_str().unwrap()), "{row}");
    assert!(
        row.get("ood_score").is_some_and(|score| score.is_null() || score.is_number()),
        "{row}"
    );
    // As the service reports the version of the same model.
    let digest = petnet::disk::sha256(petnet::Checkpoint::pretrained_bytes());
    for row in plain.values() {
        assert_eq!(row["model"], digest[..12]);
    }
    for (out, input) in [("t", "part-*.tar"), ("z", "part-0.zip"), ("g", "raw/**/*.*g")] {
        let same = answers(&score(folder, out, &["--readers", "2", "--batch-size", "7", input]));
        assert!(same == plain, "{input}");
    }
    let cats = score(folder, "cats", &["raw/*/1?.png", "raw/Cat/1.png"]);
    assert_eq!(cats.len(), 21);
    // Without --out, all rows are printed, and the exit status reports the unreadable image.
    let printed = petnet(folder, &["predict", "--json", "--quiet", "part-0.zip"]).output().unwrap();
    assert_eq!(printed.status.code(), Some(1));
    assert_eq!(String::from_utf8(printed.stdout).unwrap().lines().count(), IMAGES);
    let (_, message) = fail(folder, &["predict", "--quiet", "raw"]);
    assert_eq!(message, "error: 1 of 61 images could not be classified");
}

#[test]
fn shards_cover_all_images_without_overlap() {
    let root = raw_images();
    let folder = root.path();
    let sizes = ["0/3", "1/3", "2/3"].map(|shard| {
        let before = rows_if_there(&folder.join("out")).len();
        score(folder, "out", &["--shard", shard, "--part-size", "10", "raw"]).len() - before
    });
    // `rows` fails on an image that two shards classified.
    assert_eq!(sizes.iter().sum::<usize>(), IMAGES);
    assert!(sizes.iter().all(|size| *size > 5), "{sizes:?}");
    for shard in 0..3 {
        assert!(folder.join(format!("out/_SUCCESS-0000{shard}")).is_file());
    }
    assert!(folder.join("out/part-00002-00000.jsonl").is_file());
}

fn rows_if_there(folder: &Path) -> BTreeMap<String, Value> {
    if folder.is_dir() { rows(folder) } else { BTreeMap::new() }
}

#[test]
fn a_killed_run_continues_and_classifies_every_image_once() {
    let root = raw_images();
    let folder = root.path();
    for copy in 1..8 {
        let into = folder.join(format!("raw/Copy{copy}"));
        fs::create_dir(&into).unwrap();
        for number in 0..30 {
            let name = format!("{number}.png");
            fs::copy(folder.join("raw/Dog").join(&name), into.join(&name)).unwrap();
        }
    }
    let all = IMAGES + 7 * 30;
    let whole = score(folder, "whole", &["raw"]);
    assert_eq!(whole.len(), all);
    let command = ["predict", "--quiet", "--out", "torn", "--part-size", "20", "--batch-size", "4"];
    let command = [&command[..], &["--format", "jsonl", "raw"]].concat();
    let part = |number: usize| folder.join(format!("torn/part-00000-{number:05}.jsonl"));
    let mut kills = 0;
    for _ in 0..3 {
        let Some(next) = (0..14).find(|number| !part(*number).is_file()) else { break };
        let mut child = petnet(folder, &command).stdout(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while !part(next).is_file() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
        // A fast machine may end a later run before it is killed.
        if fs::remove_file(folder.join("torn/_SUCCESS-00000")).is_ok() {
            break;
        }
    }
    assert!(kills > 0, "the first run ended before it was killed");
    let first = part(0);
    let written = fs::metadata(&first).unwrap().modified().unwrap();
    let printed = succeed(folder, &command);
    assert!(
        printed.starts_with(&format!("{all} images in 14 parts, 1 of them failed; ")),
        "{printed}"
    );
    assert!(rows(&folder.join("torn")) == whole);
    assert_eq!(
        fs::metadata(&first).unwrap().modified().unwrap(),
        written,
        "finished parts are not written again"
    );
    let hidden = |entry: fs::DirEntry| entry.file_name().to_str().unwrap().starts_with('.');
    assert!(!fs::read_dir(folder.join("torn")).unwrap().any(|entry| hidden(entry.unwrap())));
    assert!(succeed(folder, &command).contains("was complete"));
}

#[test]
fn a_folder_of_another_run_is_refused() {
    let root = raw_images();
    let folder = root.path();
    let predict = |more: &[&'static str]| -> Vec<&str> {
        [&["predict", "--quiet", "--out", "out", "--format", "csv"], more].concat()
    };
    succeed(folder, &predict(&["--shard", "0/2", "raw"]));
    let csv = fs::read_to_string(folder.join("out/part-00000-00000.csv")).unwrap();
    assert_eq!(
        csv.lines().next(),
        Some("path,label,confidence,decision,ood_score,cat,dog,model,error")
    );
    let fields = |line: &str| line.split(',').count();
    succeed(folder, &["predict", "--quiet", "--out", "all", "--format", "csv", "raw"]);
    let all = fs::read_to_string(folder.join("all/part-00000-00000.csv")).unwrap();
    assert_eq!(all.lines().count(), 1 + IMAGES);
    assert!(all.lines().all(|line| fields(line) == 9), "including the unreadable image: {all}");
    let checkpoint = petnet::Checkpoint::pretrained().unwrap();
    checkpoint.save(folder.join("other.safetensors"), petnet::Precision::F32).unwrap();
    let cases: [(&[&str], &str); 4] = [
        (&["--shard", "1/2", "--part-size", "7", "raw"], "part_size is 10000 there, 7 here"),
        (&["--shard", "1/2", "--model", "other.safetensors", "raw"], "model_sha256"),
        (&["--shard", "1/3", "raw"], "shards is 2 there, 3 here"),
        (&["--shard", "1/2", "raw/Cat"], "inputs"),
    ];
    for (more, part) in cases {
        let (status, message) = fail(folder, &predict(more));
        assert_eq!(status, 2, "{message}");
        assert!(message.contains("out was started with other settings"), "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert!(!folder.join("out/part-00001-00000.csv").exists());
}

#[test]
fn continuing_with_other_images_is_refused() {
    let root = raw_images();
    let folder = root.path();
    let command = ["predict", "--quiet", "--out", "out", "--part-size", "10", "raw"];
    score(folder, "out", &command[4..]);
    // The state of a run that was killed before its end.
    fs::remove_file(folder.join("out/_SUCCESS-00000")).unwrap();
    succeed(folder, &command);
    fs::remove_file(folder.join("out/_SUCCESS-00000")).unwrap();
    fs::rename(folder.join("raw/Cat/1.png"), folder.join("raw/Cat/1b.png")).unwrap();
    let (_, message) = fail(folder, &command);
    assert!(message.contains("the images are not those of the run"), "{message}");
    fs::rename(folder.join("raw/Cat/1b.png"), folder.join("raw/Cat/1.png")).unwrap();
    fs::remove_file(folder.join("out/part-00000-00002.jsonl")).unwrap();
    let (_, message) = fail(folder, &command);
    assert!(message.contains("part-00000-00002.jsonl: this finished part is missing"), "{message}");
}

#[test]
fn invalid_inputs_and_flags_are_refused() {
    let root = raw_images();
    let folder = root.path();
    fs::write(folder.join("broken.zip"), b"junk").unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    let whole = fs::read(folder.join("raw/Cat/1.png")).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(whole.len() as u64);
    tar.append_data(&mut header, "a.png", &whole[..]).unwrap();
    let torn = tar.into_inner().unwrap();
    fs::write(folder.join("torn.tar"), &torn[..600]).unwrap();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--out", "out", "nowhere"], 2, "nowhere: no such file or folder"),
        (&["--out", "out", "no-*.jpg"], 1, "no-*.jpg: no file matches"),
        (&["--out", "out", "empty"], 1, "no image found"),
        (&["--out", "o2", "broken.zip"], 1, "broken.zip"),
        (&["--out", "o3", "torn.tar"], 1, "torn.tar"),
        (&["--out", "out", "--format", "text", "raw"], 2, "takes jsonl, csv or parquet"),
        (&["--format", "parquet", "raw"], 2, "--format parquet needs --out"),
        (&["--shard", "2/2", "raw"], 2, ""),
    ];
    for (more, status, part) in cases {
        let (code, message) = fail(folder, &[&["predict", "--quiet"], more].concat());
        assert_eq!(code, status, "{more:?}: {message}");
        assert!(message.contains(part), "{more:?}: {message}");
        fs::remove_dir_all(folder.join("out")).ok();
    }
}

#[cfg(not(feature = "cloud"))]
#[test]
fn errors_name_the_missing_feature_cloud() {
    let root = raw_images();
    for more in [&["--format", "parquet", "raw"][..], &["s3://photos/inbox/"]] {
        let (status, message) =
            fail(root.path(), &[&["predict", "--quiet", "--out", "out"], more].concat());
        assert_eq!(status, 2, "{message}");
        assert!(message.contains("build with `--features cloud`"), "{message}");
    }
}
