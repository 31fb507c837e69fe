//! Embeddings and `similar` through the real binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{fail, petnet, raw_images, succeed};
use petnet::Classifier;
use petnet::similar::Index;
use serde_json::Value;

/// Number of readable images of `raw_images`.
const IMAGES: usize = 60;

/// Runs `similar --json` and parses its output.
fn json(folder: &Path, arguments: &[&str]) -> Value {
    let text = succeed(
        folder,
        &[&["similar", "--json", "--quiet", "--index", "index"], arguments].concat(),
    );
    serde_json::from_str(&text).unwrap()
}

/// Draws an image unlike those of `raw_images`.
fn rings(to: &Path) {
    let image = image::RgbImage::from_fn(120, 90, |x, y| {
        let [x, y] = [(x, 30), (y, 40)].map(|(at, centre)| f32::from(at as u8) - centre as f32);
        let value = (120.0 + 90.0 * (x.hypot(y) / 4.0).sin()) as u8;
        image::Rgb([value, 200 - value / 2, 90])
    });
    image.save(to).unwrap();
}

/// Saves a copy of an image, rotated by 180 degrees, at another size and as a JPEG.
fn rotated_copy(folder: &Path, from: &str, to: &str) {
    let image = image::open(folder.join(from)).unwrap().rotate180();
    let larger = image.resize_exact(48, 36, image::imageops::FilterType::Triangle);
    larger.save(folder.join(to)).unwrap();
}

fn nearest(report: &Value, query: usize) -> Vec<String> {
    let neighbours = report["queries"][query]["neighbours"].as_array().unwrap();
    neighbours.iter().map(|near| near["path"].as_str().unwrap().to_string()).collect()
}

#[test]
fn embeddings_are_written_as_npy_in_the_same_pass() {
    let root = raw_images();
    let folder = root.path();
    let classifier = Classifier::pretrained().unwrap();
    let plain = petnet(folder, &["predict", "--json", "--quiet", "raw"]).output().unwrap();
    let command = ["predict", "--json", "--quiet", "--embeddings", "out/all.npy", "raw"];
    let output = petnet(folder, &command).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "one image is empty");
    assert_eq!(output.stdout, plain.stdout, "embeddings do not change the predictions");
    let index = Index::load_npy(folder.join("out/all.npy")).unwrap();
    assert_eq!((index.len(), index.embedding_len()), (IMAGES, classifier.embedding_len()));
    let paths = fs::read_to_string(folder.join("out/all.paths.txt")).unwrap();
    assert_eq!(paths.lines().count(), IMAGES);
    for (row, path) in paths.lines().enumerate().step_by(11) {
        let expected = classifier.embed_bytes(&fs::read(folder.join(path)).unwrap()).unwrap();
        assert_eq!(index.row(row), Some(&expected[..]), "{path}");
    }
    assert_eq!(fs::read_dir(folder.join("out")).unwrap().count(), 2, "no other file is left");
    for (file, part) in [("all.txt", "must end in .npy or .parquet"), ("npy", "must end in .npy")] {
        let (status, message) = fail(folder, &["predict", "--embeddings", file, "raw"]);
        assert_eq!(status, 2);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_killed_run_continues_the_embeddings_of_its_parts() {
    let root = raw_images();
    let folder = root.path();
    let command = |out: &'static str, form: &'static str| {
        ["predict", "--quiet", "--part-size", "8", "--batch-size", "4", "--out", out]
            .into_iter()
            .chain(["--embeddings", form, "raw"])
            .collect::<Vec<_>>()
    };
    succeed(folder, &command("whole", "npy"));
    let mut child = petnet(folder, &command("torn", "npy")).stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !folder.join("torn/part-00000-00000.jsonl").is_file() {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "the run ended before it was killed");
    succeed(folder, &command("torn", "npy"));
    let files = |out: &str| {
        let names = fs::read_dir(folder.join(out)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = names
            .filter(|path| !path.to_str().unwrap().contains("/_"))
            .map(|path| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (whole, torn) = (files("whole"), files("torn"));
    assert_eq!(whole.len(), 8 * 3, "rows, embeddings and paths of eight parts");
    assert!(whole == torn);
    let rows = |part: usize| {
        let path = format!("torn/embeddings-00000-0000{part}.npy");
        Index::load_npy(folder.join(path)).unwrap().len()
    };
    assert_eq!((0..8).map(rows).sum::<usize>(), IMAGES);

    let (status, message) = fail(folder, &command("whole", "all.npy"));
    assert!(status == 2 && message.contains("`npy` or `parquet`"), "{message}");
    let (status, message) = fail(
        folder,
        &command("whole", "npy")[..8].iter().copied().chain(["raw"]).collect::<Vec<_>>(),
    );
    assert!(status == 2 && message.contains("embeddings is \"npy\" there, null here"), "{message}");
    fs::remove_file(folder.join("whole/embeddings-00000-00002.npy")).unwrap();
    let (_, message) = fail(folder, &command("whole", "npy"));
    assert!(
        message.contains("embeddings-00000-00002.npy: this finished part is missing"),
        "{message}"
    );
}

#[cfg(not(feature = "cloud"))]
#[test]
fn errors_name_the_feature_that_parquet_needs() {
    let root = raw_images();
    for more in [&["--embeddings", "a.parquet"][..], &["--out", "out", "--embeddings", "parquet"]] {
        let (status, message) = fail(root.path(), &[&["predict", "raw"], more].concat());
        assert_eq!(status, 2, "{message}");
        assert!(message.contains("build with `--features cloud`"), "{message}");
    }
}

#[cfg(feature = "cloud")]
#[test]
fn embeddings_are_written_as_parquet() {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::Field;

    let root = raw_images();
    let folder = root.path();
    petnet(folder, &["predict", "--quiet", "--embeddings", "all.parquet", "raw"]).output().unwrap();
    let file = fs::File::open(folder.join("all.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    let classifier = Classifier::pretrained().unwrap();
    let (mut read, mut failed) = (0, 0);
    for row in rows {
        let row = row.unwrap();
        let columns: Vec<(&String, &Field)> = row.get_column_iter().collect();
        let [(_, Field::Str(path)), (_, embedding), (_, error)] = columns[..] else {
            panic!("{columns:?}")
        };
        match (embedding, error) {
            (Field::ListInternal(list), Field::Null) => {
                let bytes = fs::read(folder.join(path)).unwrap();
                let expected = classifier.embed_bytes(&bytes).unwrap();
                let values = list.elements().iter().map(|value| match value {
                    Field::Float(value) => *value,
                    other => panic!("{other}"),
                });
                assert_eq!(values.collect::<Vec<_>>(), expected, "{path}");
                read += 1;
            }
            (Field::Null, Field::Str(error)) => {
                assert_eq!(error, "the file is empty");
                failed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((read, failed), (IMAGES, 1));
}

#[test]
fn similar_images_are_found_and_an_index_is_updated() {
    let root = raw_images();
    let folder = root.path();
    rings(&folder.join("raw/Dog/rings.png"));
    let built = json(folder, &["--photos", "raw"]);
    let counts = |report: &Value| {
        ["embedded", "unchanged", "removed"].map(|key| report["updated"][key].as_u64().unwrap())
    };
    assert_eq!((counts(&built), built["images"].as_u64()), ([61, 0, 0], Some(61)));
    let unreadable = &built["updated"]["unreadable"];
    assert!(unreadable[0]["path"].as_str().unwrap().ends_with("raw/Cat/666.jpg"), "{unreadable}");
    assert_eq!(unreadable[0]["error"], "the file is empty");

    rotated_copy(folder, "raw/Dog/rings.png", "lost.jpg");
    let found =
        json(folder, &["-k", "3", "--html", "page/similar.html", "lost.jpg", "raw/Cat/9.png"]);
    assert!(nearest(&found, 0)[0].ends_with("raw/Dog/rings.png"), "{found}");
    assert_eq!(found["updated"], Value::Null);
    let others = nearest(&found, 1);
    assert_eq!(others.len(), 3);
    assert!(
        others.iter().all(|path| !path.ends_with("Cat/9.png")),
        "an image is not its own neighbour"
    );
    let page = fs::read_to_string(folder.join("page/similar.html")).unwrap();
    assert_eq!(page.matches("data:image/jpeg;base64,/9j/").count(), 2 + 2 * 3);
    assert!(page.contains("rings.png") && !page.contains("src=\"http"));

    let mirrored = image::open(folder.join("raw/Cat/9.png")).unwrap().rotate90().fliph();
    mirrored.save(folder.join("mirrored.png")).unwrap();
    let found = json(folder, &["-k", "1", "--turned", "mirrored.png"]);
    assert!(nearest(&found, 0)[0].ends_with("raw/Cat/9.png"), "{found}");
    assert!(found["queries"][0]["neighbours"][0]["cosine"].as_f64().unwrap() > 0.99, "{found}");

    fs::copy(folder.join("raw/Dog/7.png"), folder.join("raw/Dog/copy.png")).unwrap();
    fs::remove_file(folder.join("raw/Cat/3.png")).unwrap();
    let again = json(folder, &["--photos", "raw", "--duplicates", "--threshold", "0.9999999"]);
    assert_eq!(counts(&again), [1, 60, 1]);
    let pair = again["duplicates"].as_array().unwrap().iter().find(|pair| {
        let name = |at: usize| pair["paths"][at].as_str().unwrap();
        name(0).ends_with("Dog/7.png") && name(1).ends_with("Dog/copy.png")
    });
    assert!(pair.unwrap()["cosine"].as_f64().unwrap() > 0.999_999, "{again}");
    let overlapping = json(folder, &["--photos", "raw", "--photos", "raw/Dog"]);
    assert_eq!((counts(&overlapping), overlapping["images"].as_u64()), ([0, 61, 0], Some(61)));
    assert_eq!(overlapping["updated"]["unreadable"].as_array().unwrap().len(), 1);
    // The images of another folder are added; those of the first stay.
    fs::create_dir(folder.join("new")).unwrap();
    fs::rename(folder.join("lost.jpg"), folder.join("new/lost.jpg")).unwrap();
    let more = json(folder, &["--photos", "new"]);
    assert_eq!((counts(&more), more["images"].as_u64()), ([1, 0, 0], Some(62)));
    let text =
        succeed(folder, &["similar", "--quiet", "--index", "index", "-k", "1", "new/lost.jpg"]);
    let [first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert_eq!(first, "new/lost.jpg");
    assert!(second.ends_with("raw/Dog/rings.png"), "{second}");
}

#[test]
fn searches_that_cannot_run_are_refused() {
    let root = raw_images();
    let folder = root.path();
    let checkpoint = petnet::Checkpoint::pretrained().unwrap();
    checkpoint.save(folder.join("other.safetensors"), petnet::Precision::F32).unwrap();
    json(folder, &["--photos", "raw/Dog"]);
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--index", "index"], 2, "nothing to do"),
        (&["--index", "none", "raw/Cat/1.png"], 2, "none: no index found; --photos DIR builds one"),
        (&["--index", "none", "--photos", "nowhere"], 2, "nowhere: "),
        (&["--index", "index", "--threshold", "2", "--duplicates"], 2, ""),
        (
            &["--index", "index", "--model", "other.safetensors", "--duplicates"],
            1,
            "the index was made by the model",
        ),
        (
            &["--index", "index", "raw/Cat/666.jpg", "raw/Cat/1.png"],
            1,
            "1 of 2 images could not be read",
        ),
        (&["--index", "index", "raw/Cat/none.jpg"], 1, "1 of 1 images could not be read"),
    ];
    for (arguments, status, part) in cases {
        let (code, message) = fail(folder, &[&["similar", "--quiet"], arguments].concat());
        assert_eq!(code, status, "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
    let mut npy = fs::read_dir(folder.join("index")).unwrap().map(|entry| entry.unwrap().path());
    let npy = npy.find(|path| path.extension().is_some_and(|e| e == "npy")).unwrap();
    let bytes = fs::read(&npy).unwrap();
    fs::write(&npy, &bytes[..bytes.len() - 1]).unwrap();
    let (code, message) = fail(folder, &["similar", "--index", "index", "--duplicates"]);
    assert!(code == 1 && message.contains("not a complete .npy file"), "{message}");
}
