//! Data sets and models of any number of labels an image, on drawn images.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(all(feature = "train", feature = "pretrained"))]

mod common;
#[path = "common/training.rs"]
mod training;

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};
use petnet::dataset::{LabelOptions, Labels, Prepare, Reading, Split};
use petnet::review::Review;
use petnet::train::Distillation;
use petnet::{Calibration, Checkpoint, Classifier, Dataset, Device, Precision, Task, Trainer};
use tempfile::tempdir;
use training::{alone, tiny};

const CLASSES: [&str; 3] = ["bar", "disc", "frame"];

/// Grey noise with a white bar, a red disc and a blue frame, as the bits of `marks` say.
fn marked(marks: usize, number: usize) -> RgbImage {
    let mut noise = (number as u32 + 1).wrapping_mul(2_654_435_761);
    let shift = number as u32 % 9;
    RgbImage::from_fn(48, 48, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let away = x.abs_diff(20 + shift).pow(2) + y.abs_diff(26).pow(2);
        let grey = 60 + (noise >> 27) as u8;
        match marks {
            _ if marks & 4 > 0 && (x < 4 || y < 4 || x > 43 || y > 43) => Rgb([20, 40, 220]),
            _ if marks & 2 > 0 && away < 64 => Rgb([220, 30, 30]),
            _ if marks & 1 > 0 && (8 + shift..12 + shift).contains(&y) => Rgb([250; 3]),
            _ => Rgb([grey; 3]),
        }
    })
}

fn names(marks: usize) -> Vec<&'static str> {
    (0..3).filter(|bit| marks & (1 << bit) > 0).map(|bit| CLASSES[bit]).collect()
}

/// Images of all combinations, none among them, and a `labels.csv`.
fn draw(folder: &Path, count: usize) {
    fs::create_dir_all(folder.join("images")).unwrap();
    let mut table = String::from("path,labels\n");
    for number in 0..count {
        let marks = number % 8;
        marked(marks, number).save(folder.join(format!("images/{number}.png"))).unwrap();
        table += &format!("images/{number}.png,{}\n", names(marks).join("|"));
    }
    fs::write(folder.join("labels.csv"), table).unwrap();
}

fn reading() -> Reading {
    Reading { multi_label: true, ..Reading::default() }
}

fn small() -> Trainer {
    Trainer { epochs: 100, grad_clip: 0.0, ..tiny() }
}

#[test]
fn each_label_is_learned_calibrated_saved_and_answered() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw(root.path(), 64);
    let dataset = reading().open(root.path()).unwrap();
    assert_eq!(
        (dataset.classes(), dataset.counts()),
        (&CLASSES.map(String::from)[..], vec![32; 3])
    );
    assert!(dataset.notes().iter().any(|note| note.contains("8 images have none")));
    let fitted = small().fit(&dataset, &dataset).unwrap();
    let (first, last) = (&fitted.history[0], fitted.history.last().unwrap());
    assert!((first.train_loss - 2f64.ln()).abs() < 0.35, "{first:?}");
    assert!(last.val_map.unwrap() > 0.999 && last.val_accuracy > 0.9, "{last:?}");

    let calibrated = fitted.best.calibrated(&dataset, &dataset, &Calibration::default()).unwrap();
    let Task::MultiLabel { thresholds } = &calibrated.info().task else { panic!("multi-label") };
    assert!(thresholds.iter().all(|threshold| (0.01..0.99).contains(threshold)), "{thresholds:?}");
    let path = root.path().join("mine.safetensors");
    calibrated.save(&path, Precision::F16).unwrap();
    let classifier = Classifier::load(&path).unwrap();
    assert_eq!(classifier.info().task, calibrated.info().task);
    let guess = classifier.classify_path(root.path().join("images/5.png")).unwrap();
    let mut labels: Vec<&str> = guess.labels().unwrap().into_iter().map(|(name, _)| name).collect();
    labels.sort_unstable();
    assert_eq!(labels, ["bar", "frame"], "{guess}");
    assert!(guess.probabilities().iter().sum::<f32>() > 1.5, "each for itself: {guess:?}");
    let nothing = classifier.classify_path(root.path().join("images/8.png")).unwrap();
    assert_eq!(
        (nothing.labels(), nothing.to_string()),
        (Some(vec![]), "none of the classes".into())
    );

    let metrics = classifier.evaluate_labels(&dataset, |_| ()).unwrap().metrics();
    assert_eq!((metrics.exact_match, metrics.macro_f1, metrics.micro_f1), (1.0, 1.0, 1.0));
    let error = classifier.evaluate(&dataset, |_| ()).unwrap_err().to_string();
    assert!(error.contains("multi-label"), "{error}");
}

#[test]
fn the_last_layer_alone_learns_each_label_on_given_features() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw(root.path(), 64);
    let dataset = reading().open(root.path()).unwrap();
    let trainer = Trainer { image_size: 64, quantize: false, ..Trainer::default() };
    let fitted = trainer.fit(&dataset, &dataset).unwrap();
    let report = &fitted.history[0];
    assert!(report.val_map.unwrap() > 0.99, "{report:?}");
    assert!(!fitted.best.info().task.is_single_label());
}

#[test]
fn prepared_folders_keep_all_labels_and_spread_images_without_any() {
    let root = tempdir().unwrap();
    let (photos, out) = (root.path().join("photos"), root.path().join("out"));
    draw(&photos, 80);
    let prepare = Prepare { size: 32, reading: reading(), ..Prepare::default() };
    let manifest = prepare.run(&photos, &out, || ()).unwrap();
    assert!(manifest.multi_label);
    let photo = manifest.images.iter().find(|photo| photo.original == "images/7.png").unwrap();
    assert_eq!(photo.classes, CLASSES);
    assert!(photo.path.starts_with(photo.split.name()) && out.join(&photo.path).is_file());
    let dataset = Dataset::open(&out).unwrap();
    assert!(dataset.is_multi_label());
    assert_eq!(dataset.digest(), reading().open(&photos).unwrap().digest());
    let without = |split| {
        let part = dataset.part(split).unwrap();
        part.samples().iter().filter(|sample| sample.target.classes().is_empty()).count()
    };
    assert_eq!(Split::ALL.map(without), [8, 1, 1]);
}

#[test]
fn rare_labels_leave_validation_and_test_their_share() {
    let root = tempdir().unwrap();
    fs::create_dir_all(root.path().join("images")).unwrap();
    let mut table = String::from("path,labels\n");
    for number in 0..60 {
        marked(number % 8, number).save(root.path().join(format!("images/{number}.png"))).unwrap();
        // Each of twenty labels has three images, and all share one.
        table += &format!("images/{number}.png,all|rare{}\n", number / 3);
    }
    fs::write(root.path().join("labels.csv"), table).unwrap();
    let parts = reading().open(root.path()).unwrap().split_three([0.8, 0.1, 0.1], 1).unwrap();
    assert_eq!(parts.map(|part| part.len()), [48, 6, 6]);
}

#[test]
fn what_takes_one_label_an_image_says_so() {
    let root = tempdir().unwrap();
    draw(root.path(), 16);
    let error = Dataset::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("empty"), "{error}");
    let options = LabelOptions { multi_label: true, ..LabelOptions::default() };
    let labels = Labels::read(&root.path().join("labels.csv"), options).unwrap();
    let mixed = Reading { labels, ..Reading::default() }.open(root.path()).unwrap_err();
    assert!(mixed.to_string().contains("multi_label must be true"), "{mixed}");

    let dataset = reading().open(root.path()).unwrap();
    let pretrained = || Classifier::new(Checkpoint::pretrained().unwrap(), Device::Cpu).unwrap();
    let refused = Review::run(&dataset, &pretrained(), |_| ()).unwrap_err().to_string();
    assert!(refused.contains("one label per image"), "{refused}");
    let teacher =
        Distillation { teacher: "x".into(), temperature: 2.0, weight: 0.5, features: 0.0 };
    let taught = Trainer { distillation: Some(teacher), ..small() };
    let balanced = Trainer { balanced: true, ..small() };
    for (trainer, setting) in [(taught, "distillation"), (balanced, "balanced")] {
        for error in [
            trainer.fit(&dataset, &dataset).unwrap_err().to_string(),
            trainer.find_rate(&dataset, 1e-4..1.0, 20, &mut ()).unwrap_err().to_string(),
        ] {
            assert!(error.contains(&format!("{setting} is not for multi-label")), "{error}");
        }
    }
}
