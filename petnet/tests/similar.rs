//! Embeddings of drawn images, and an index of them on disk.
#![cfg(feature = "pretrained")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use image::{DynamicImage, Rgb, RgbImage};
use petnet::similar::{Added, ImageIndex, IndexError, IndexedImage};
use petnet::{Checkpoint, Classifier, Error};

/// An image of its number, no two alike.
fn drawn(number: u32) -> RgbImage {
    RgbImage::from_fn(120, 90, |x, y| {
        let wave = (x as f32 / (3.0 + number as f32)).sin() + (y as f32 / 7.0).cos() * 0.5;
        let value = (120.0 + 70.0 * wave) as u8;
        Rgb([value, value.wrapping_add((number * 40) as u8), 255 - value])
    })
}

fn model() -> (Classifier, String) {
    let digest = petnet::disk::sha256(Checkpoint::pretrained_bytes());
    (Classifier::pretrained().unwrap(), digest)
}

/// So many images in a folder.
fn images(folder: &Path, count: u32) -> Vec<PathBuf> {
    let paths = (0..count).map(|number| folder.join(format!("{number}.png")));
    let paths: Vec<PathBuf> = paths.collect();
    paths.iter().zip(0..).for_each(|(path, number)| drawn(number).save(path).unwrap());
    paths
}

fn refused(dir: &Path, digest: &str) -> IndexError {
    match ImageIndex::open(dir, digest).unwrap_err() {
        Error::IndexFile { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn an_embedding_is_of_norm_1_and_the_same_alone_in_a_batch_and_beside_a_prediction() {
    let (classifier, _) = model();
    let size = classifier.info().preprocess.size;
    let pixels: Vec<_> = (0..5)
        .map(|number| {
            let image = drawn(number);
            petnet::preprocess::Pixels::new(image.width(), image.height(), image.into_raw())
                .unwrap()
        })
        .map(|pixels| petnet::preprocess::resize(&pixels, size, Default::default()).unwrap())
        .collect();
    let all = classifier.embed(&pixels).unwrap();
    for (pixels, embedding) in pixels.iter().zip(&all) {
        assert_eq!(embedding.len(), classifier.embedding_len());
        let norm: f32 = embedding.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-4, "{norm}");
        let one = classifier.classify_and_embed(std::slice::from_ref(pixels)).unwrap();
        let prediction = classifier.classify_pixels(std::slice::from_ref(pixels)).unwrap();
        assert_eq!((&one[0].0, &one[0].1), (&prediction[0], embedding));
    }
    assert!(all[0] != all[1]);
    assert!(classifier.embed(&[]).unwrap().is_empty());
}

#[test]
fn an_index_finds_a_recompressed_and_a_turned_image() {
    let folder = tempfile::tempdir().unwrap();
    let (classifier, digest) = model();
    let mut index = ImageIndex::new(&digest, &classifier);
    index.add(&classifier, &images(folder.path(), 12)).unwrap();
    let image = DynamicImage::from(drawn(7));
    for changed in
        [image.clone(), image.rotate180(), image.resize_exact(90, 70, image::imageops::Triangle)]
    {
        let mut jpeg = std::io::Cursor::new(Vec::new());
        changed.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
        let query = classifier.embed_bytes(jpeg.get_ref()).unwrap();
        let nearest = index.index().nearest(&query, 3).unwrap();
        assert!(index.images()[nearest[0].row].path.ends_with("7.png"), "{nearest:?}");
    }
}

#[test]
fn only_new_and_changed_images_are_embedded_and_unreadable_ones_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("index");
    let (classifier, digest) = model();
    let mut paths = images(folder.path(), 4);
    fs::write(folder.path().join("broken.jpg"), b"\xff\xd8\xff junk").unwrap();
    paths.extend([folder.path().join("broken.jpg"), folder.path().join("gone.jpg")]);
    let mut index = ImageIndex::new(&digest, &classifier);
    let Added { unchanged, embedded, unreadable } = index.add(&classifier, &paths).unwrap();
    assert_eq!((unchanged, embedded), (0, 4));
    assert_eq!(
        unreadable.iter().map(|file| &file.path).collect::<Vec<_>>(),
        [&paths[4], &paths[5]]
    );
    assert!(!ImageIndex::is_at(&dir));
    index.save(&dir).unwrap();
    assert!(ImageIndex::is_at(&dir));

    let mut again = ImageIndex::open(&dir, &digest).unwrap();
    assert_eq!(again, index);
    drawn(40).save(&paths[1]).unwrap();
    fs::write(&paths[2], b"junk").unwrap();
    let added = again.add(&classifier, &paths[..4]).unwrap();
    assert_eq!((added.unchanged, added.embedded, added.unreadable.len()), (2, 1, 1));
    let lying: Vec<_> = again.images().iter().map(|image| image.path.as_str()).collect();
    assert_eq!(lying, [&paths[0], &paths[1], &paths[3]].map(|path| path.to_str().unwrap()));
    let query = classifier.embed_bytes(&fs::read(&paths[1]).unwrap()).unwrap();
    assert!(again.index().nearest(&query, 1).unwrap()[0].row == 1, "its new content");
    assert_eq!(again.retain(|image| !image.path.ends_with("0.png")), 1);
    again.save(&dir).unwrap();
    assert_eq!(ImageIndex::open(&dir, &digest).unwrap(), again);
    let files = fs::read_dir(&dir).unwrap().count();
    assert_eq!(files, 3, "the earlier embeddings are gone");
}

#[test]
fn an_update_does_not_overwrite_that_of_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("index");
    let (classifier, digest) = model();
    let paths = images(folder.path(), 3);
    let mut first = ImageIndex::new(&digest, &classifier);
    let mut other = first.clone();
    first.add(&classifier, &paths[..1]).unwrap();
    first.save(&dir).unwrap();
    let changed = |result: Result<(), Error>| match result.unwrap_err() {
        Error::IndexFile { reason, .. } => assert_eq!(reason, IndexError::Changed),
        other => panic!("{other}"),
    };
    changed(other.save(&dir));
    let mut other = ImageIndex::open(&dir, &digest).unwrap();
    other.add(&classifier, &paths[1..2]).unwrap();
    other.save(&dir).unwrap();
    other.save(&dir).unwrap();
    first.add(&classifier, &paths[2..]).unwrap();
    changed(first.save(&dir));
    assert_eq!(ImageIndex::open(&dir, &digest).unwrap(), other);
    first.save(folder.path().join("elsewhere")).unwrap();
}

#[test]
fn an_index_is_read_whole_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("index");
    let (classifier, digest) = model();
    let mut index = ImageIndex::new(&digest, &classifier);
    index.add(&classifier, &images(folder.path(), 12)).unwrap();
    index.save(&dir).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while index.images().len() > 1 {
                let last = index.images().last().unwrap().path.clone();
                index.retain(|image| image.path != last);
                index.save(&dir).unwrap();
            }
        });
        while !writer.is_finished() {
            assert!(ImageIndex::open(&dir, &digest).unwrap().images().len() <= 12);
        }
    });
}

#[test]
fn an_index_of_another_model_and_altered_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("index");
    let (classifier, digest) = model();
    let mut index = ImageIndex::new(&digest, &classifier);
    index.add(&classifier, &images(folder.path(), 3)).unwrap();
    index.save(&dir).unwrap();
    let other = ImageIndex::open(&dir, "0123").unwrap_err().to_string();
    assert!(
        other.contains("images.jsonl: the index was made by the model with SHA-256"),
        "{other}"
    );

    let list = dir.join("images.jsonl");
    let text = fs::read_to_string(&list).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |text: &str| {
        fs::write(&list, text).unwrap();
        refused(&dir, &digest)
    };
    for length in (0..text.len()).step_by(7) {
        // Cut between lines, the list is short of images; within one, it is no JSON.
        let error = with(&text[..length]);
        let known =
            matches!(error, IndexError::Line { .. } | IndexError::Rows { embeddings: 3, .. });
        assert!(known, "{length}: {error}");
    }
    let format = with(&text.replace("\"format\":1", "\"format\":2"));
    assert_eq!(format, IndexError::Format { found: 2, expected: 1 });
    assert!(matches!(with(&format!("{text}{}\n", lines[1])), IndexError::Rows { images: 4, .. }));
    let length = text.replace("\"embedding_len\":", "\"embedding_len\":9");
    assert!(matches!(with(&length), IndexError::Length { .. }));
    fs::write(&list, &text).unwrap();

    let rows = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let rows: Vec<_> = rows.filter(|path| path.extension().is_some_and(|e| e == "npy")).collect();
    let bytes = fs::read(&rows[0]).unwrap();
    let mut altered = bytes.clone();
    *altered.last_mut().unwrap() ^= 1;
    let mut swapped = bytes.clone();
    let len = classifier.embedding_len() * 4;
    swapped[128..128 + len].copy_from_slice(&bytes[128 + len..128 + 2 * len]);
    for (bytes, expected) in [
        (&swapped[..], IndexError::Checksum),
        (&bytes[..bytes.len() - 4], IndexError::Npy(String::new())),
        (&bytes[..0], IndexError::Npy(String::new())),
    ] {
        fs::write(&rows[0], bytes).unwrap();
        let error = refused(&dir, &digest);
        assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&expected), "{error}");
    }
    // A flipped bit is seen as well, be it by the norm or by the checksum.
    fs::write(&rows[0], &altered).unwrap();
    assert!(matches!(refused(&dir, &digest), IndexError::Checksum | IndexError::Norm(2)));
    fs::remove_file(&rows[0]).unwrap();
    assert!(matches!(ImageIndex::open(&dir, &digest), Err(Error::Io { .. })));
    let image: IndexedImage = serde_json::from_str(lines[1]).unwrap();
    assert!(image.path.ends_with("0.png") && image.bytes > 0 && image.modified > 0);
}
