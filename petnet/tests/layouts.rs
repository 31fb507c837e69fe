//! Layouts of folders and labels as users have them; each test draws its own images.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "train")]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use common::{draw_folder, drawn};
use petnet::Dataset;
use petnet::dataset::{LabelOptions, Labels, Layout, Prepare, Reading, Split};
use petnet::files::LeftOut;
use tempfile::tempdir;
use zip::write::SimpleFileOptions;

fn small() -> Prepare {
    Prepare { size: 32, ..Prepare::default() }
}

fn counts(dataset: &Dataset, split: Split) -> Vec<usize> {
    dataset.part(split).map_or(vec![0; dataset.classes().len()], |part| part.counts())
}

/// All files below a folder into a zip, and a tar archive of the same.
fn pack(root: &Path, zip_path: &Path, name: impl Fn(&str) -> String) {
    let dataset = walk(root);
    let mut zip = zip::ZipWriter::new(fs::File::create(zip_path).unwrap());
    let mut tar = tar::Builder::new(fs::File::create(zip_path.with_extension("tar")).unwrap());
    for path in dataset {
        let inside = path.strip_prefix(root).unwrap().to_str().unwrap();
        let bytes = fs::read(&path).unwrap();
        zip.start_file(name(inside), SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if name(inside).contains("..") {
            // The builder refuses to write such a name.
            continue;
        }
        tar.append_data(&mut header, name(inside).replace('\\', "/"), &bytes[..]).unwrap();
    }
    zip.finish().unwrap();
    tar.finish().unwrap();
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { found.extend(walk(&entry)) } else { found.push(entry) }
    }
    found.sort();
    found
}

#[test]
fn splits_above_and_below_classes_are_kept_from_folders_and_archives() {
    let root = tempdir().unwrap();
    let (above, below) = (root.path().join("above"), root.path().join("below"));
    for (number, split) in ["training", "Valid", "test"].iter().enumerate() {
        for (class, name) in ["cat", "dog"].iter().enumerate() {
            for (tree, folder) in
                [(&above, format!("{split}/{name}")), (&below, format!("{name}/{split}"))]
            {
                fs::create_dir_all(tree.join(&folder)).unwrap();
                for photo in 0..4 - number {
                    let picture = drawn(class, 10 * number + photo);
                    picture.save(tree.join(format!("{folder}/{photo}.png"))).unwrap();
                }
            }
        }
    }
    pack(&above, &root.path().join("above.zip"), |name| format!("./data/{name}"));
    pack(&below, &root.path().join("below.zip"), |name| name.replace('/', "\\"));
    for name in ["above", "below", "above.zip", "below.zip", "above.tar", "below.tar"] {
        let out = root.path().join(format!("{name}-out"));
        let manifest = small().run(&root.path().join(name), &out, || ()).unwrap();
        assert_eq!(manifest.classes, ["cat", "dog"], "{name}");
        let prepared = Dataset::open(&out).unwrap();
        let found = Split::ALL.map(|split| counts(&prepared, split));
        assert_eq!(found, [vec![4, 4], vec![3, 3], vec![2, 2]], "{name}");
        assert!(manifest.notes.iter().any(|note| note.contains("splits are those")), "{name}");
        // A prepared folder as raw data keeps its splits, too.
        let again = root.path().join(format!("{name}-again"));
        assert_eq!(small().run(&out, &again, || ()).unwrap().counts, manifest.counts);
    }
    // Duplicates across given splits are reported and left where they are; a test split is not made up.
    fs::remove_dir_all(above.join("test")).unwrap();
    fs::copy(above.join("training/cat/0.png"), above.join("Valid/cat/9.png")).unwrap();
    let manifest = small().run(&above, &root.path().join("out"), || ()).unwrap();
    assert!(manifest.duplicates.iter().any(|group| group.across_splits && group.exact));
    assert!(manifest.notes.iter().any(|note| note.contains("without test images")));
    assert_eq!(manifest.counts["test"].values().sum::<usize>(), 0);
}

#[test]
fn labels_come_from_tables_and_names() {
    let root = tempdir().unwrap();
    let photos = root.path().join("photos");
    fs::create_dir_all(photos.join("images")).unwrap();
    let mut table = String::from("\u{feff}path,label,split\n");
    for number in 0..8 {
        let class = ["cat", "dog"][number % 2];
        drawn(number % 2, number)
            .save(photos.join(format!("images/{class}.{number}.png")))
            .unwrap();
        let split = ["train", "train", "train", "train", "valid", "valid", "test", "test"][number];
        table += &format!("{class}.{number}.png,{class},{split}\n");
    }
    drawn(0, 20).save(photos.join("images/nobody.png")).unwrap();
    let pattern = Some(r"(cat|dog)\.\d+".parse().unwrap());
    let by_name = Reading { pattern, ..Reading::default() }.open(&photos).unwrap();
    assert_eq!((by_name.classes().join(" "), by_name.counts()), ("cat dog".into(), vec![4, 4]));
    assert_eq!(by_name.left_out().get(LeftOut::NoLabel), 1);
    assert!("cat.*".parse::<petnet::dataset::Pattern>().is_err(), "no group");

    fs::write(root.path().join("elsewhere.csv"), &table).unwrap();
    let labels = Labels::read(&root.path().join("elsewhere.csv"), LabelOptions::default()).unwrap();
    let given = Reading { labels, ..Reading::default() }.open(&photos).unwrap();
    assert_eq!(given.counts(), [4, 4]);
    assert_eq!(Split::ALL.map(|split| counts(&given, split)), [vec![2, 2], vec![1, 1], vec![1, 1]]);

    fs::write(photos.join("labels.csv"), &table).unwrap();
    let beside = Dataset::open(&photos).unwrap();
    assert_eq!((beside.digest(), beside.left_out().get(LeftOut::NoLabel)), (given.digest(), 1));
    assert!(beside.notes()[0].contains("labels.csv"), "{:?}", beside.notes());
    // Folders that may be classes as well make it ambiguous.
    draw_folder(&photos, &["bird", "fish"], 1);
    let error = Dataset::open(&photos).unwrap_err().to_string();
    assert!(error.contains("set the layout to"), "{error}");
    let reading = Reading { layout: Layout::Table, ..Reading::default() };
    assert_eq!(reading.open(&photos).unwrap().counts(), [4, 4]);
}

#[test]
fn labels_elsewhere_keep_the_splits_of_folders() {
    let root = tempdir().unwrap();
    let photos = root.path().join("photos");
    let mut table = String::from("path,label\n");
    for (folder, numbers) in [("train", 0..6), ("valid", 6..8), ("test", 8..10)] {
        fs::create_dir_all(photos.join(folder)).unwrap();
        for number in numbers {
            let class = number % 2;
            drawn(class, number).save(photos.join(format!("{folder}/{number}.png"))).unwrap();
            table += &format!("{number}.png,{}\n", ["cat", "dog"][class]);
        }
    }
    let path = root.path().join("elsewhere.csv");
    fs::write(&path, table).unwrap();
    let labels = Labels::read(&path, LabelOptions::default()).unwrap();
    let dataset = Reading { labels, ..Reading::default() }.open(&photos).unwrap();
    let counts = Split::ALL.map(|split| counts(&dataset, split));
    assert_eq!(counts, [vec![3, 3], vec![1, 1], vec![1, 1]]);
    // One such folder alone says nothing.
    for folder in ["valid", "test"] {
        fs::remove_dir_all(photos.join(folder)).unwrap();
    }
    let labels = Labels::read(&path, LabelOptions::default()).unwrap();
    let dataset = Reading { labels, ..Reading::default() }.open(&photos).unwrap();
    assert!(dataset.samples().iter().all(|sample| sample.split.is_none()));
}

#[test]
fn an_older_prepared_folder_says_what_to_do() {
    let root = tempdir().unwrap();
    fs::write(root.path().join("manifest.json"), r#"{"format": 2, "photos": [{"class": "cat"}]}"#)
        .unwrap();
    let error = Dataset::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("layout 2") && error.contains("prepare it again"), "{error}");
}

#[test]
fn content_decides_and_everything_left_out_is_counted() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 3);
    for (number, name) in ["a.jfif", "b.jpe", "c.JPG", "d", "e.jpeg.download"].iter().enumerate() {
        let path = root.path().join("cat").join(name);
        drawn(0, 10 + number).save_with_format(path, image::ImageFormat::Jpeg).unwrap();
    }
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    fs::write(root.path().join("dog/phone.HEIC"), heic).unwrap();
    fs::write(root.path().join("dog/notes.txt"), "no image").unwrap();
    drawn(0, 30).save(root.path().join("stray.png")).unwrap();
    for foreign in ["@eaDir", "#recycle", ".git", "lost+found"] {
        draw_folder(root.path(), &[foreign], 2);
    }
    let dataset = Dataset::open(root.path()).unwrap();
    assert_eq!((dataset.classes().join(" "), dataset.counts()), ("cat dog".into(), vec![8, 3]));
    let left_out: Vec<_> = dataset.left_out().iter().collect();
    let expected = [
        (LeftOut::NoImage, 1),
        (LeftOut::Hidden, 1),
        (LeftOut::System, 3),
        (LeftOut::NoClass, 1),
        (LeftOut::UnsupportedFormat, 1),
    ];
    assert_eq!(left_out, expected);
    assert!(dataset.rejects()[0].reason.starts_with("HEIC is not read: convert"));
    // A class whose images are all of such a format is an error that names both.
    fs::create_dir(root.path().join("bird")).unwrap();
    fs::write(root.path().join("bird/1.heic"), heic).unwrap();
    let error = Dataset::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("class `bird`") && error.contains("HEIC"), "{error}");
    // A folder without any image is no class, and said.
    fs::remove_file(root.path().join("bird/1.heic")).unwrap();
    let notes = Dataset::open(root.path()).unwrap().notes().join(" ");
    assert!(notes.contains("no image in `bird`"), "{notes}");
}

#[test]
fn own_output_is_not_read_back() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 4);
    let out = root.path().join("processed");
    let first = small().run(root.path(), &out, || ()).unwrap();
    let again = small().run(root.path(), &out, || ()).unwrap();
    assert_eq!(again.classes, ["cat", "dog"]);
    assert_eq!((again.images, again.left_out.get(LeftOut::EarlierOutput)), (first.images, 9));
}

#[test]
fn merged_classes_are_said() {
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["Apple", "caf\u{e9}"], 2);
    draw_folder(root.path(), &["apples", "cafe\u{301}"], 2);
    let dataset = Dataset::open(root.path()).unwrap();
    assert_eq!(dataset.classes().len(), 2);
    let notes = dataset.notes().join("\n");
    assert!(notes.contains("`Apple` and `apples` are one class, `apple`"), "{notes}");
    assert_eq!(notes.matches("are one class").count(), 2, "{notes}");
}

#[cfg(unix)]
#[test]
fn links_are_followed_rings_are_found_and_names_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt as _;
    let root = tempdir().unwrap();
    let (data, elsewhere) = (root.path().join("data"), root.path().join("elsewhere"));
    draw_folder(&data, &["cat"], 2);
    draw_folder(&elsewhere, &["x", "dogs"], 2);
    std::os::unix::fs::symlink(elsewhere.join("dogs"), data.join("dog")).unwrap();
    std::os::unix::fs::symlink(&data, data.join("cat/ring")).unwrap();
    std::os::unix::fs::symlink("nowhere", data.join("cat/gone.png")).unwrap();
    for byte in [0xe9, 0xe8] {
        let name = std::ffi::OsStr::from_bytes(&[b'c', byte, b'.', b'p', b'n', b'g']).to_owned();
        drawn(0, usize::from(byte)).save(data.join("cat").join(name)).unwrap();
    }
    let manifest = small().run(&data, &root.path().join("out"), || ()).unwrap();
    let prepared = Dataset::open(root.path().join("out")).unwrap();
    assert_eq!(prepared.counts(), [4, 2]);
    assert_eq!(manifest.left_out.get(LeftOut::SymlinkLoop), 1);
    assert_eq!(manifest.left_out.get(LeftOut::BrokenLink), 1);
}

#[test]
fn nothing_is_read_or_written_outside_of_its_folder() {
    let root = tempdir().unwrap();
    let photos = root.path().join("photos");
    draw_folder(&photos, &["unlabelled", "cat"], 2);
    let sha = petnet::disk::sha256(&fs::read(photos.join("unlabelled/0.png")).unwrap());
    let path = root.path().join("labels.jsonl");
    fs::write(&path, format!("{{\"sha256\":\"{sha}\",\"label\":\"../../escaped\"}}\n")).unwrap();
    let error = Labels::read(&path, LabelOptions::default()).unwrap_err().to_string();
    assert!(error.contains("is no name of a class"), "{error}");

    let out = root.path().join("out");
    draw_folder(&photos, &["dog"], 4);
    fs::remove_dir_all(photos.join("unlabelled")).unwrap();
    small().run(&photos, &out, || ()).unwrap();
    let manifest = out.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let inside = whole["photos"][0]["path"].as_str().unwrap();
    for outside in ["../outside.jpg", "/etc/hostname", "train/../../outside.jpg"] {
        fs::write(&manifest, text.replace(inside, outside)).unwrap();
        let error = Dataset::open(&out).unwrap_err().to_string();
        assert!(error.contains("leads out of the folder"), "{error}");
    }
    // Entries of archives that lead out are left out.
    let zip = root.path().join("up.zip");
    pack(
        &photos,
        &zip,
        |name| if name == "cat/0.png" { format!("../{name}") } else { name.into() },
    );
    let error = Dataset::open(&zip).unwrap();
    assert_eq!((error.counts(), error.left_out().get(LeftOut::OutsidePath)), (vec![1, 4], 1));
}

#[test]
fn the_real_reason_is_said() {
    let root = tempdir().unwrap();
    let photos = root.path().join("photos");
    draw_folder(&photos, &["cat", "dog"], 2);
    let zip = root.path().join("odd.zip");
    pack(&photos, &zip, str::to_string);
    // Every entry by a method that is not read.
    let mut bytes = fs::read(&zip).unwrap();
    for at in 0..bytes.len() - 12 {
        match &bytes[at..at + 4] {
            b"PK\x03\x04" => bytes[at + 8] = 99,
            b"PK\x01\x02" => bytes[at + 10] = 99,
            _ => {}
        }
    }
    fs::write(&zip, bytes).unwrap();
    let error = Dataset::open(&zip).unwrap_err().to_string();
    assert!(
        error.contains("class `cat` has no readable image") && error.contains("ompression"),
        "{error}"
    );
    for (file, reason) in [("x.tar.gz", &b"\x1f\x8b\x08\0"[..]), ("x.rar", b"Rar!")] {
        fs::write(root.path().join(file), reason).unwrap();
        let error = Dataset::open(root.path().join(file)).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
    }
    for shares in [[f64::NAN, 0.0, 0.0], [0.0, 0.5, 0.5], [1.1, -0.1, 0.0]] {
        let prepare = Prepare { shares, ..small() };
        assert!(prepare.run(&photos, &root.path().join("out"), || ()).is_err(), "{shares:?}");
    }
    // A full or forbidden disk is the disk's error.
    let error = small().run(&photos, Path::new("/proc/nothing/out"), || ()).unwrap_err();
    assert!(matches!(error, petnet::Error::Io { .. }), "{error}");
}
