//! Label errors among drawn images are found, and corrections are applied.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(all(feature = "train", feature = "pretrained"))]

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{draw_folder, drawn};
use petnet::dataset::{LabelOptions, Labels, Reading};
use petnet::files::LeftOut;
use petnet::review::Review;
use petnet::{Classifier, Dataset};
use tempfile::tempdir;

#[test]
fn planted_faults_come_first_and_corrections_mend_them() {
    let root = tempdir().unwrap();
    let photos = root.path().join("photos");
    draw_folder(&photos, &["across", "down"], 40);
    let wrong: BTreeSet<String> =
        [3, 17, 29].map(|number| format!("down/wrong{number}.png")).into();
    for name in &wrong {
        let number: usize = name.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        drawn(0, 50 + number).save(photos.join(name)).unwrap();
    }
    let dark = drawn(1, 90);
    let dark =
        image::RgbImage::from_fn(48, 48, |x, y| image::Rgb(dark.get_pixel(x, y).0.map(|v| v / 12)));
    dark.save(photos.join("down/dark.png")).unwrap();
    image::imageops::blur(&drawn(0, 91), 6.0).save(photos.join("across/blurred.png")).unwrap();
    let tiny = image::imageops::thumbnail(&drawn(0, 92), 12, 9);
    tiny.save(photos.join("across/tiny.png")).unwrap();

    let dataset = Dataset::open(&photos).unwrap();
    let mut looked = 0;
    let review =
        Review::run(&dataset, &Classifier::pretrained().unwrap(), |done| looked = done).unwrap();
    assert_eq!(looked, dataset.len());
    let path = |photo: usize| dataset.samples()[photo].path.to_str().unwrap().to_string();
    let first: BTreeSet<String> = review.labels.iter().take(3).map(|s| path(s.image)).collect();
    assert_eq!(first, wrong, "{:?}", review.labels);
    assert!(review.labels[0].confident && review.labels[0].likely == 0);
    assert!(review.agreement > 0.9, "{}", review.agreement);
    assert_eq!(path(review.dark[0].image), "down/dark.png");
    assert_eq!(path(review.tiny[0].image), "across/tiny.png");
    let blurred: Vec<String> = review.blurred.iter().take(2).map(|s| path(s.image)).collect();
    assert!(blurred.contains(&"across/blurred.png".into()), "{blurred:?}");
    assert_eq!(review.outliers.len(), dataset.len());

    // One is relabelled, one is dropped.
    let mut table = String::from("sha256,path,label,action\n");
    for (suspect, action) in review.labels.iter().zip(["relabel", "drop"]) {
        let sample = &dataset.samples()[suspect.image];
        table += &format!("{},{},across,{action}\n", sample.sha256, path(suspect.image));
    }
    let file = root.path().join("corrections.csv");
    fs::write(&file, table).unwrap();
    let labels = Labels::read(&file, LabelOptions::default()).unwrap();
    let mended = Reading { labels, ..Reading::default() }.open(&photos).unwrap();
    assert_eq!(mended.counts(), [dataset.counts()[0] + 1, dataset.counts()[1] - 2]);
    assert_eq!(mended.left_out().get(LeftOut::Dropped), 1);
}
