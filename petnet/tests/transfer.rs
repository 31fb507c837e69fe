//! Classes of one's own on the bundled backbone, source heads, and a teacher.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(all(feature = "pretrained", feature = "train"))]

mod common;
#[path = "common/training.rs"]
mod training;

use common::{draw_folder, drawn};
use petnet::arch::{Architecture, SimpleCnnConfig};
use petnet::augment::Augment;
use petnet::train::{Distillation, Freeze, InitialWeights};
use petnet::{
    Calibration, Checkpoint, Classifier, Dataset, Decision, Device, OodScore, Precision, Trainer,
};
use tempfile::tempdir;
use training::{alone, weights};

/// One epoch of the last block at a small size.
fn tuning() -> Trainer {
    Trainer {
        freeze: Some(Freeze::Blocks(15)),
        image_size: 64,
        epochs: 1,
        batch_size: 8,
        augment: Augment::none(),
        ..Trainer::default()
    }
}

#[test]
fn by_default_a_few_images_are_enough_for_classes_of_ones_own() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["diagonal", "horizontal", "vertical"], 16);
    let (train, valid) = Dataset::open(root.path()).unwrap().split(0.75).unwrap();
    let trainer = Trainer { image_size: 96, ..Trainer::default() };
    let wrong = Trainer { precise_bn_images: 8, ..trainer.clone() };
    let error = wrong.fit(&train, &valid).unwrap_err().to_string();
    assert!(error.contains("precise_bn_images is 8, must be 0 with freeze"), "{error}");
    let fitted = trainer.fit(&train, &valid).unwrap();
    assert!(fitted.history[0].val_accuracy > 0.9, "{:?}", fitted.history);
    assert!(fitted.best.info().source.is_none(), "nothing needs it");
    let again = trainer.fit(&train, &valid).unwrap();
    assert_eq!(weights(&fitted.best), weights(&again.best));
    let model = fitted.best.calibrated(&train, &valid, &Calibration::default()).unwrap();
    let ood = model.info().ood.clone().unwrap();
    assert!(matches!(ood.score, OodScore::Prototypes { count } if count <= 36), "{ood:?}");
    // A file at one byte a value keeps what was calibrated.
    let path = root.path().join("mine.safetensors");
    model.save(&path, Precision::Int8).unwrap();
    let classifier = Classifier::load(&path).unwrap();
    let known = classifier.predict(&valid, |_| ()).unwrap();
    let accepted = known.iter().filter(|p| p.decision() != Decision::OutOfDistribution).count();
    assert!(accepted * 10 >= known.len() * 9, "{accepted} of {}", known.len());
}

#[test]
fn a_source_head_is_kept_stored_at_half_a_byte_and_tells_images_of_other_things() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["cat", "dog"], 12);
    let data = Dataset::open(root.path()).unwrap();
    let pets = "151-268, 281-285";
    let trainer = Trainer { source_classes: Some(pets.parse().unwrap()), ..tuning() };
    let model = trainer.fit(&data, &data).unwrap().best;
    let source = model.info().source.as_ref().unwrap();
    assert_eq!(source.graph().classes(), 1000);
    assert_eq!(source.shared(), model.info().graph.blocks()[14]);
    let calibration = Calibration { source_classes: trainer.source_classes, ..Default::default() };
    let model = model.calibrated(&data, &data, &calibration).unwrap();
    assert!(matches!(model.info().ood.as_ref().unwrap().score, OodScore::SourceClasses { .. }));
    let whole = model.to_bytes(Precision::F32).unwrap().len();
    let small = model.to_bytes(Precision::Int8).unwrap();
    assert!(small.len() * 4 < whole, "{} of {whole}", small.len());
    // The same file on the engine and on burn.
    let read = || Checkpoint::from_bytes(&small).unwrap().with_quantization(None).unwrap();
    let on = |device| Classifier::new(read(), device).unwrap();
    let image = root.path().join("image.png");
    drawn(1, 5).save(&image).unwrap();
    let [engine, burn] =
        [Device::Cpu, Device::Flex].map(|device| on(device).classify_path(&image).unwrap());
    let [ours, theirs] = [&engine, &burn].map(|guess| guess.ood_score().unwrap());
    assert!((ours - theirs).abs() < 1e-2, "{ours} {theirs}");
    let mirrored = on(Device::Cpu).with_mirrors(true).classify_path(&image).unwrap();
    assert_ne!(mirrored.probabilities(), engine.probabilities());
    // Trained further, the same classes keep it; with its trunk trained, it no longer fits.
    let start = root.path().join("start.safetensors");
    std::fs::write(&start, &small).unwrap();
    let source_classes = Some(pets.parse().unwrap());
    let further = Trainer { init: Some(InitialWeights::File(start)), source_classes, ..tuning() };
    assert!(further.fit(&data, &data).unwrap().best.info().source.is_some());
    let last = Trainer { freeze: Some(Freeze::Backbone), ..further.clone() };
    let error = last.find_rate(&data, 1e-4..1.0, 20, &mut ()).unwrap_err().to_string();
    assert!(error.contains("set freeze"), "{error}");
    let source = last.fit(&data, &data).unwrap().best.info().source.clone().unwrap();
    assert_eq!(source.shared(), model.info().graph.blocks()[14], "not more than it shared before");
    let unfrozen = Trainer { freeze: Some(Freeze::Blocks(3)), ..further };
    let error = unfrozen.fit(&data, &data).unwrap_err().to_string();
    assert!(error.contains("source_classes"), "{error}");
}

#[test]
fn a_teacher_of_the_same_classes_changes_the_student() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("photos"), &["horizontal", "vertical"], 12);
    let data = Dataset::open(root.path().join("photos")).unwrap();
    let teacher = root.path().join("teacher.safetensors");
    let student = |distillation| Trainer {
        architecture: Architecture::new(SimpleCnnConfig {
            channels: vec![8, 16],
            hidden: 16,
            dropout: 0.0,
        }),
        image_size: 24,
        epochs: 30,
        batch_size: 8,
        learning_rate: 5e-3,
        label_smoothing: 0.0,
        augment: Augment::none(),
        distillation,
        ..Trainer::default()
    };
    let taught = student(None).fit(&data, &data).unwrap().last;
    taught.save(&teacher, Precision::F32).unwrap();
    let settings = Distillation { teacher, temperature: 2.0, weight: 1.0, features: 0.5 };
    // With labels turned round and no weight on them, only the teacher is right.
    let turned = root.path().join("turned");
    std::fs::create_dir(&turned).unwrap();
    for [from, to] in [["horizontal", "vertical"], ["vertical", "horizontal"]] {
        std::fs::rename(root.path().join("photos").join(from), turned.join(to)).unwrap();
    }
    let wrong = Dataset::open(&turned).unwrap();
    let fitted = student(Some(settings.clone())).fit(&wrong, &wrong).unwrap();
    let accuracy = fitted.history.last().unwrap().val_accuracy;
    assert!(accuracy < 0.2, "{accuracy} of labels that the teacher contradicts");
    draw_folder(&root.path().join("other"), &["a", "b"], 2);
    let other = Dataset::open(root.path().join("other")).unwrap();
    let error = student(Some(settings)).fit(&other, &other).unwrap_err().to_string();
    assert!(error.contains("other classes than the data"), "{error}");
}
