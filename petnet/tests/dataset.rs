//! Folders and zips, bad files, duplicates, and splits that keep their promises.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "train")]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;

use common::{draw_folder, drawn};
use petnet::dataset::{Manifest, Prepare, Split};
use petnet::{Dataset, Error};
use tempfile::tempdir;

#[test]
fn spellings_of_a_class_are_one_class() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["Cat", "dogs"], 3);
    draw_folder(root.path(), &["cats"], 2);
    let dataset = Dataset::open(root.path()).unwrap();
    assert_eq!(dataset.classes(), ["cat", "dogs"]);
    assert_eq!(dataset.len(), 8);
    let labels = ["dog".to_string(), "cat".to_string()];
    let counts = dataset.with_labels(&labels).unwrap().counts();
    assert_eq!(counts, [3, 5]);
}

#[test]
fn bad_files_are_listed_and_never_fatal() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 3);
    fs::write(root.path().join("cat/empty.jpg"), b"").unwrap();
    fs::write(root.path().join("dog/text.png"), b"not a picture").unwrap();
    fs::write(root.path().join("dog/Thumbs.db"), b"x").unwrap();
    let dataset = Dataset::open(root.path()).unwrap();
    assert_eq!(dataset.len(), 6);
    assert_eq!(dataset.left_out().get(petnet::files::LeftOut::System), 1);
    let rejects: HashMap<_, _> =
        dataset.rejects().iter().map(|r| (r.path.as_str(), r.reason.as_str())).collect();
    assert_eq!(rejects["cat/empty.jpg"], "the file is empty");
    assert!(rejects["dog/text.png"].contains("not a JPEG"), "{rejects:?}");
}

#[test]
fn a_zip_gives_what_its_folder_gives() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 4);
    let folder = Dataset::open(root.path()).unwrap();
    let path = root.path().join("pictures.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for sample in folder.samples() {
        let name = format!("wrapped/deeper/{}", sample.path.display());
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&fs::read(root.path().join(&sample.path)).unwrap()).unwrap();
    }
    zip.finish().unwrap();
    let zipped = Dataset::open(&path).unwrap();
    assert_eq!(zipped.digest(), folder.digest());
    assert_eq!(zipped.read(0).unwrap(), folder.read(0).unwrap());
}

#[test]
fn twins_never_span_two_splits_and_conflicts_are_reported() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 40);
    for number in 0..10 {
        let original = root.path().join(format!("cat/{number}.png"));
        fs::copy(&original, root.path().join(format!("cat/copy{number}.png"))).unwrap();
        // The same image through a lossy encoder: another file, a near duplicate.
        let jpeg = root.path().join(format!("dog/lossy{number}.jpg"));
        drawn(1, number).save(jpeg).unwrap();
    }
    fs::copy(root.path().join("cat/3.png"), root.path().join("dog/mislabelled.png")).unwrap();
    let dataset = Dataset::open(root.path()).unwrap();
    assert!(dataset.duplicate_groups().len() >= 20, "{}", dataset.duplicate_groups().len());
    assert!(!dataset.conflicts().is_empty());
    let parts = dataset.split_three([0.6, 0.2, 0.2], 7).unwrap();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    for (part, dataset) in parts.iter().enumerate() {
        for sample in dataset.samples() {
            assert_eq!(
                *seen.entry(sample.group).or_insert(part),
                part,
                "{}",
                sample.path.display()
            );
        }
    }
    assert_eq!(parts.iter().map(Dataset::len).sum::<usize>(), dataset.len());
}

#[test]
fn a_split_follows_content_and_seed_not_names_or_order() {
    let (one, two) = (tempdir().unwrap(), tempdir().unwrap());
    draw_folder(one.path(), &["cat", "dog"], 30);
    for class in ["cat", "dog"] {
        fs::create_dir_all(two.path().join(class)).unwrap();
        for number in 0..30 {
            let renamed = two.path().join(format!("{class}/z{}.png", 29 - number));
            fs::copy(one.path().join(format!("{class}/{number}.png")), renamed).unwrap();
        }
    }
    let digests = |path, seed| {
        let parts = Dataset::open(path).unwrap().split_three([0.8, 0.1, 0.1], seed).unwrap();
        parts.map(|part| part.digest())
    };
    assert_eq!(digests(one.path(), 1), digests(two.path(), 1));
    assert_ne!(digests(one.path(), 1), digests(one.path(), 2));
    let parts = Dataset::open(one.path()).unwrap().split_three([0.8, 0.1, 0.1], 1).unwrap();
    assert_eq!(parts.map(|part| part.counts()), [vec![24, 24], vec![3, 3], vec![3, 3]]);
}

#[test]
fn a_prepared_folder_opens_as_it_was_written() {
    let root = tempdir().unwrap();
    let (raw, out) = (root.path().join("raw"), root.path().join("out"));
    draw_folder(&raw, &["cat", "dog"], 20);
    fs::write(raw.join("cat/broken.gif"), b"GIF89a").unwrap();
    let manifest = Prepare { size: 32, ..Prepare::default() }.run(&raw, &out, || ()).unwrap();
    assert_eq!(manifest.images.len(), 40);
    assert_eq!(manifest.rejects.len(), 1);
    let dataset = Dataset::open(&out).unwrap();
    for split in Split::ALL {
        assert_eq!(dataset.part(split).unwrap().digest(), manifest.digests[split.name()]);
    }
    let stored = image::load_from_memory(&dataset.read(0).unwrap()).unwrap();
    assert_eq!((stored.width(), stored.height()), (32, 32));
    let names: HashSet<String> = fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, HashSet::from(["raw".into(), "out".into()]), "nothing half-written");
    // A second run replaces what an earlier run wrote.
    let again = Prepare { size: 32, ..Prepare::default() }.run(&raw, &out, || ()).unwrap();
    assert_eq!(again, manifest);
}

#[test]
fn a_folder_of_something_else_is_not_replaced() {
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("raw"), &["cat", "dog"], 2);
    let out = root.path().join("precious");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.txt"), "years of work").unwrap();
    let refused = Prepare::default().run(&root.path().join("raw"), &out, || ());
    assert!(matches!(refused, Err(Error::Dataset(_))));
    assert!(out.join("thesis.txt").exists());
}

#[test]
fn one_class_or_an_empty_one_is_an_error_that_says_so() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat"], 2);
    let error = Dataset::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("at least 2 are needed"), "{error}");
    fs::create_dir(root.path().join("dog")).unwrap();
    fs::write(root.path().join("dog/1.jpg"), b"").unwrap();
    let error = Dataset::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("class `dog` has no readable image"), "{error}");
    let error = Dataset::open(root.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    assert!(!root.path().join(Manifest::FILE).exists());
}
