//! Training on drawn images: it learns, is reproducible, and fails with a reason.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "train")]

mod common;
#[path = "common/training.rs"]
mod training;

use common::{draw_folder, drawn};
use petnet::arch::{Architecture, PetNetConfig, SimpleCnnConfig};
use petnet::augment::{Augment, Key};
use petnet::loader::{Loader, LoaderSettings};
use petnet::preprocess::{Pixels, Preprocess, Resize};
use petnet::train::{
    Distillation, Freeze, InitialWeights, Observer, Optimizer, Resizing, Schedule, StepReport,
};
use petnet::{Calibration, Checkpoint, Classifier, Dataset, Device, Error, Prediction, Trainer};
use tempfile::tempdir;
use training::{alone, tiny};

#[test]
fn it_starts_near_ln_classes_and_overfits_a_few_pictures() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["horizontal", "vertical", "diagonal"], 8);
    let dataset = Dataset::open(root.path()).unwrap();
    let fitted = Trainer { epochs: 40, ..tiny() }.fit(&dataset, &dataset).unwrap();
    let first = &fitted.history[0];
    assert!((first.train_loss - 3f64.ln()).abs() < 0.35, "{}", first.train_loss);
    let last = fitted.history.last().unwrap();
    assert_eq!(last.val_accuracy, 1.0, "{last:?}");
    let path = root.path().join("mine.safetensors");
    fitted.save(&path).unwrap();
    let classifier = Classifier::load(&path).unwrap();
    let guess = classifier.classify_path(root.path().join("vertical/3.png")).unwrap();
    assert_eq!(guess.label(), "vertical");
    assert!((guess.probabilities().iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let photos = [std::fs::read(root.path().join("diagonal/1.png")).unwrap(), b"junk".to_vec()];
    let answers = classifier.classify_batch(&photos);
    assert_eq!(answers[0].as_ref().unwrap().label(), "diagonal");
    assert!(matches!(answers[1], Err(Error::Image(_))));
}

#[test]
fn every_optimiser_and_schedule_lowers_the_loss() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    let plateau = Schedule::ReduceLrOnPlateau { factor: 0.5, patience: 1 };
    let choices = [
        (Optimizer::Adam, plateau, 5e-3),
        (Optimizer::AdamW, Schedule::OneCycle, 1e-2),
        (Optimizer::Sgd, Schedule::Cosine, 5e-2),
    ];
    for (optimizer, schedule, learning_rate) in choices {
        let trainer = Trainer {
            optimizer,
            schedule,
            learning_rate,
            label_smoothing: 0.05,
            grad_clip: 1.0,
            ema_decay: 0.5,
            ..tiny()
        };
        let history = trainer.fit(&dataset, &dataset).unwrap().history;
        let (first, last) = (&history[0], &history[history.len() - 1]);
        assert!(last.val_loss < first.val_loss, "{optimizer:?} {first:?} {last:?}");
    }
}

/// The learning rate of the last step of each epoch.
#[derive(Default)]
struct LastRates(Vec<f64>);

impl Observer for LastRates {
    fn step(&mut self, report: &StepReport) {
        self.0.resize(report.epoch, 0.0);
        self.0[report.epoch - 1] = report.learning_rate;
    }
}

#[test]
fn the_history_has_the_learning_rate_of_each_epochs_last_step() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    for schedule in [Schedule::Cosine, Schedule::OneCycle] {
        let trainer = Trainer { schedule, epochs: 3, warmup_epochs: 1.0, ..tiny() };
        let mut rates = LastRates::default();
        let history = trainer.fit_observed(&dataset, &dataset, &mut rates).unwrap().history;
        let reported: Vec<f64> = history.iter().map(|epoch| epoch.learning_rate).collect();
        assert_eq!(reported, rates.0, "{schedule:?}");
        assert!(reported[2] > 0.0, "{reported:?}");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_with_a_reason() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    let wild = Trainer {
        optimizer: Optimizer::Sgd,
        learning_rate: 10.0,
        momentum: 0.99,
        epochs: 60,
        ..tiny()
    };
    let wild = Trainer { weight_decay: 0.99, ..wild };
    let outcome = wild.fit(&dataset, &dataset);
    assert!(matches!(outcome, Err(Error::Diverged { .. })), "{outcome:?}");
}

#[test]
fn early_stopping_ends_before_the_last_epoch() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 8);
    let dataset = Dataset::open(root.path()).unwrap();
    let trainer = Trainer { epochs: 60, early_stopping: 3, ..tiny() };
    let history = trainer.fit(&dataset, &dataset).unwrap().history;
    assert!(history.len() < 60, "{}", history.len());
    assert!(history[history.len() - 3..].iter().all(|report| !report.best));
}

#[test]
fn batch_norm_statistics_are_estimated_on_whole_images_and_no_weight_changes() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    let trained_at_less = vec![Resizing { size: 16, share: 1.0 }];
    let trainer = Trainer { epochs: 2, progressive: trained_at_less, ..tiny() };
    let [plain, re_estimated, again] = [0, 32, 32].map(|precise_bn_images| {
        let last =
            Trainer { precise_bn_images, ..trainer.clone() }.fit(&dataset, &dataset).unwrap().last;
        let path = root.path().join("last.safetensors");
        last.save(&path, petnet::Precision::F32).unwrap();
        std::fs::read(path).unwrap()
    });
    let files = [&plain, &re_estimated, &again];
    let [plain, re_estimated, again] =
        files.map(|b| safetensors::SafeTensors::deserialize(b).unwrap());
    for (name, before) in plain.tensors() {
        let after = re_estimated.tensor(&name).unwrap();
        assert_eq!(before.data() == after.data(), !name.contains("running"), "{name}");
        assert!(after.data() == again.tensor(&name).unwrap().data(), "{name}");
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 2);
    let dataset = Dataset::open(root.path()).unwrap();
    let progressive = |size, share| vec![Resizing { size, share }];
    let distillation = |temperature, weight, features| {
        Some(Distillation { teacher: "none".into(), temperature, weight, features })
    };
    let plateau = |factor| Schedule::ReduceLrOnPlateau { factor, patience: 1 };
    let frozen = |blocks, precise_bn_images| Trainer {
        freeze: Some(Freeze::Blocks(blocks)),
        precise_bn_images,
        ..tiny()
    };
    let wrong = [
        (Trainer { epochs: 0, ..tiny() }, "num_epochs is 0"),
        (Trainer { batch_size: 1, ..tiny() }, "batch_size is 1"),
        (Trainer { image_size: 7, ..tiny() }, "image_size is 7"),
        (Trainer { image_size: 100_000, ..tiny() }, "image_size is 100000"),
        (Trainer { progressive: progressive(7, 0.5), ..tiny() }, "image_size is 7"),
        (Trainer { progressive: progressive(24, 1.5), ..tiny() }, "shares of progressive"),
        (Trainer { progressive: progressive(24, -0.5), ..tiny() }, "shares of progressive"),
        (Trainer { learning_rate: f64::NAN, ..tiny() }, "learning_rate is NaN"),
        (Trainer { learning_rate: 20.0, ..tiny() }, "learning_rate is 20"),
        (Trainer { label_smoothing: 1.0, ..tiny() }, "label_smoothing is 1"),
        (Trainer { ema_decay: 1.0, ..tiny() }, "ema_decay is 1"),
        (Trainer { momentum: -0.5, ..tiny() }, "momentum is -0.5"),
        (Trainer { weight_decay: f64::NAN, ..tiny() }, "weight_decay is NaN"),
        (Trainer { ema_decay: 0.5, precise_bn_images: 8, ..tiny() }, "0 where ema_decay is not"),
        (frozen(99, 0), "freeze is 99"),
        (frozen(1, 8), "precise_bn_images is 8, must be 0 with freeze"),
        (Trainer { grad_clip: -1.0, ..tiny() }, "grad_clip is -1, must be at least 0"),
        (Trainer { warmup_epochs: -0.5, ..tiny() }, "warmup_epochs is -0.5, must be at least 0"),
        (Trainer { warmup_epochs: f64::NAN, ..tiny() }, "warmup_epochs is NaN"),
        (Trainer { distillation: distillation(2.0, 1.5, 0.0), ..tiny() }, "weight is 1.5"),
        (Trainer { distillation: distillation(0.0, 0.9, 0.0), ..tiny() }, "temperature must be"),
        (Trainer { distillation: distillation(2.0, 0.9, -1.0), ..tiny() }, "features at least 0"),
        (Trainer { schedule: plateau(0.0), ..tiny() }, "scheduler.factor is 0, must be"),
        (Trainer { schedule: plateau(1.5), ..tiny() }, "scheduler.factor is 1.5, must be"),
        (Trainer { augment: Augment { hue: -1.0, ..Augment::none() }, ..tiny() }, "hue is -1"),
        (Trainer { augment: Augment { blur: 2.0, ..Augment::none() }, ..tiny() }, "blur is 2"),
    ];
    for (trainer, key) in wrong {
        let error = trainer.fit(&dataset, &dataset).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(key)), "{error}");
    }
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 15);
    let dataset = Dataset::open(root.path()).unwrap();
    let batches = |workers, cache_bytes, skip| {
        let settings = LoaderSettings {
            batch_size: 4,
            workers,
            cache_bytes,
            preprocess: Preprocess { size: 24, resize: Resize::Squeeze },
            augment: Augment { erasing: 0.5, noise: 0.5, ..Augment::default() },
            seed: 5,
            shuffle: true,
        };
        let loader = Loader::new(&dataset, settings);
        assert_eq!(loader.steps(), 8);
        loader.epoch(3, skip).map(Result::unwrap).collect::<Vec<_>>()
    };
    let one = batches(1, 0, 0);
    assert_eq!(one.len(), 8);
    assert_eq!(one, batches(3, 20_000, 0));
    assert_eq!(one[5..], batches(2, 1 << 20, 5), "a resumed epoch");
}

#[test]
fn augmentation_is_a_function_of_its_key_and_each_change_changes() {
    let _alone = alone();
    let photo = Pixels::new(48, 48, common::drawn(0, 1).into_raw()).unwrap();
    let to = Preprocess { size: 32, resize: Resize::Squeeze };
    let key = Key { seed: 1, epoch: 2, index: 3 };
    let none = Augment::none();
    let plain = none.apply(&photo, to, key).unwrap();
    let single = [
        Augment { horizontal_flip: 1.0, ..none },
        Augment { crop_scale: 0.3, crop_ratio: 1.3, ..none },
        Augment { affine: 1.0, rotation: 20.0, ..none },
        Augment { affine: 1.0, shift: 0.3, ..none },
        Augment { affine: 1.0, scale: 0.3, ..none },
        Augment { brightness: 0.4, ..none },
        Augment { contrast: 0.4, ..none },
        Augment { saturation: 0.6, ..none },
        Augment { hue: 40.0, ..none },
        Augment { blur: 1.0, ..none },
        Augment { noise: 1.0, noise_std: 9.0, ..none },
        Augment { erasing: 1.0, ..none },
    ];
    for augment in single {
        let changed = augment.apply(&photo, to, key).unwrap();
        assert_ne!(changed, plain, "{augment:?}");
        assert_eq!(changed, augment.apply(&photo, to, key).unwrap());
        let other = augment.apply(&photo, to, Key { epoch: 9, ..key }).unwrap();
        let fixed = augment.horizontal_flip == 1.0 || augment.blur == 1.0;
        assert!(fixed || other != changed, "{augment:?}");
    }
}

#[test]
fn small_images_come_first_and_the_best_model_is_one_of_the_final_size() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["horizontal", "vertical"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    let stage = |size, share| Resizing { size, share };
    let trainer = Trainer {
        architecture: Architecture::new(PetNetConfig {
            stem: 8,
            widths: vec![8, 16],
            depths: vec![1, 2],
            dropout: 0.1,
        }),
        progressive: vec![stage(16, 0.4), stage(20, 0.4)],
        epochs: 10,
        optimizer: Optimizer::Sgd,
        learning_rate: 0.05,
        schedule: Schedule::Cosine,
        weight_decay: 5e-4,
        augment: Augment { mixup: 0.2, cutmix: 1.0, ..Augment::none() },
        ..tiny()
    };
    let fitted = trainer.fit(&dataset, &dataset).unwrap();
    let best = fitted.history.iter().rposition(|epoch| epoch.best).unwrap();
    assert!(best >= 8, "{:?}", fitted.history);
    assert_eq!(fitted.best.info().preprocess.size, 24);
    let epoch_of = |model: &Checkpoint| model.info().metrics["epoch"].as_u64();
    assert_eq!(epoch_of(&fitted.best), Some(best as u64 + 1));
    assert_eq!(epoch_of(&fitted.last), Some(10));
    let first = &fitted.history[0];
    assert!(fitted.history[9].train_loss < first.train_loss, "{:?}", fitted.history);
    // A rate so low that no epoch is better than the first: the final size is still reached.
    let stalled = Trainer { early_stopping: 1, learning_rate: 1e-30, ..trainer.clone() };
    let history = stalled.fit(&dataset, &dataset).unwrap().history;
    assert!((9..=10).contains(&history.len()), "{history:?}");
    let wrong = Trainer { progressive: vec![stage(16, 0.6), stage(16, 0.6)], ..trainer };
    assert!(matches!(wrong.fit(&dataset, &dataset), Err(Error::Config(_))));
}

#[test]
fn after_calibration_confidence_is_calibrated_and_training_images_are_in_distribution() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["horizontal", "vertical"], 40);
    let dataset = Dataset::open(root.path()).unwrap();
    let fitted = Trainer { label_smoothing: 0.2, ..tiny() }.fit(&dataset, &dataset).unwrap();
    let plain = Classifier::new(fitted.last.clone(), Device::Cpu).unwrap();
    let before = plain.evaluate(&dataset, |_| ()).unwrap().metrics();
    let checkpoint = fitted.last.calibrated(&dataset, &dataset, &Calibration::default()).unwrap();
    assert!(checkpoint.info().temperature < 1.0, "smoothed labels make a model too modest");
    let classifier = Classifier::new(checkpoint, Device::Cpu).unwrap();
    let evaluation = classifier.evaluate(&dataset, |_| ()).unwrap();
    let (after, coverage) = (evaluation.metrics(), evaluation.coverage());
    assert!(after.log_loss <= before.log_loss && after.accuracy == before.accuracy);
    assert!(coverage.share > 0.9 && coverage.accuracy >= 0.99, "{coverage:?}");
    let photo = std::fs::read(root.path().join("vertical/3.png")).unwrap();
    let guess = classifier.classify_bytes(&photo).unwrap();
    // The score of prototypes, as the network has no source head: one minus a cosine.
    assert!((-1e-6..=2.0).contains(&guess.ood_score().unwrap()), "{guess:?}");
    assert_eq!(evaluation.ood_scores.len(), dataset.len());
    assert!(coverage.out_of_distribution <= 0.02 + 1e-9, "{coverage:?}");
    let predictions = classifier.predict(&dataset, |_| ()).unwrap();
    let decisions: Vec<_> = predictions.iter().map(Prediction::decision).collect();
    assert_eq!(decisions, evaluation.decisions);
    let shares = coverage.share + coverage.low_confidence + coverage.out_of_distribution;
    assert!((shares - 1.0).abs() < 1e-9, "{coverage:?}");
}

#[test]
fn the_range_test_ends_when_the_loss_is_lost_and_suggests_a_rate() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 16);
    let dataset = Dataset::open(root.path()).unwrap();
    let trainer = Trainer { optimizer: Optimizer::Sgd, grad_clip: 0.0, ..tiny() };
    let curve = trainer.find_rate(&dataset, 1e-4..1e3, 80, &mut ()).unwrap();
    assert!(curve.points.len() < 80, "{}", curve.points.len());
    assert!(curve.points.windows(2).all(|pair| pair[0].rate < pair[1].rate));
    let rate = curve.suggestion().unwrap();
    assert!((1e-4..10.0).contains(&rate), "{rate}");
    assert!(matches!(trainer.find_rate(&dataset, 1.0..0.1, 80, &mut ()), Err(Error::Config(_))));
    let (_, none) = dataset.split(1.0).unwrap();
    assert!(matches!(trainer.find_rate(&none, 1e-4..1e3, 80, &mut ()), Err(Error::Dataset(_))));
}

#[test]
fn resuming_with_another_initial_model_of_the_same_name_is_refused() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("photos"), &["a", "b"], 8);
    let dataset = Dataset::open(root.path().join("photos")).unwrap();
    let start = root.path().join("start.safetensors");
    let save_start = |seed| {
        let trainer = Trainer { epochs: 1, seed, ..tiny() };
        trainer.fit(&dataset, &dataset).unwrap().save(&start).unwrap();
    };
    save_start(1);
    let (init, freeze) = (Some(InitialWeights::File(start.clone())), Some(Freeze::Nothing));
    let out = Some(root.path().join("models"));
    let trainer = Trainer { init, freeze, out, epochs: 1, ..tiny() };
    trainer.fit(&dataset, &dataset).unwrap();
    let longer = Trainer { resume: true, ..trainer };
    longer.fit(&dataset, &dataset).unwrap();
    save_start(2);
    let error = longer.fit(&dataset, &dataset).unwrap_err().to_string();
    assert!(error.contains("`initial weights` differs"), "{error}");
}

#[test]
fn a_crop_keeps_the_aspect_ratio_where_a_square_is_cut_out() {
    let _alone = alone();
    let ramp = (0..50 * 200).flat_map(|i| [(i % 200) as u8; 3]).collect();
    let wide = Pixels::new(200, 50, ramp).unwrap();
    let augment = Augment { crop_scale: 0.9, crop_ratio: 1.0, ..Augment::none() };
    for (resize, columns) in [(Resize::Squeeze, 180..=200), (Resize::CenterCrop, 44..=50)] {
        let to = Preprocess { size: 32, resize };
        for index in 0..8 {
            let crop = augment.apply(&wide, to, Key { seed: 1, epoch: 0, index }).unwrap();
            let row = &crop.data()[..32 * 3];
            // The ends of the ramp are half a pixel of the output inside of the crop.
            let seen = usize::from(row[31 * 3] - row[0]) * 32 / 31;
            assert!(columns.contains(&seen), "{resize:?}: {seen}");
        }
    }
}

#[test]
fn the_files_of_a_training_are_the_models_that_it_returns() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["a", "b"], 8);
    let dataset = Dataset::open(root.path()).unwrap();
    let out = root.path().join("models");
    let trainer = Trainer { out: Some(out.clone()), quantize: true, ..tiny() };
    let fitted = trainer.fit(&dataset, &dataset).unwrap();
    assert!(fitted.best.info().quantization.is_some());
    for (file, model) in [(Trainer::BEST, &fitted.best), (Trainer::LAST, &fitted.last)] {
        let saved = Checkpoint::load(out.join(file)).unwrap();
        assert_eq!(saved.info(), model.info(), "{file}");
    }
}

#[test]
fn a_device_that_was_not_compiled_in_is_an_error_with_a_hint() {
    let _alone = alone();
    if cfg!(not(feature = "wgpu")) {
        let root = tempdir().unwrap();
        draw_folder(root.path(), &["a", "b"], 2);
        let dataset = Dataset::open(root.path()).unwrap();
        let trainer = Trainer { device: Device::Wgpu(None), ..tiny() };
        let error = trainer.fit(&dataset, &dataset).unwrap_err().to_string();
        assert!(error.contains("--features wgpu"), "{error}");
    }
    assert!("tpu".parse::<Device>().is_err());
    assert_eq!("wgpu:1".parse::<Device>().unwrap(), Device::Wgpu(Some(1)));
}

#[test]
fn a_rare_class_is_not_drowned_when_classes_are_balanced() {
    let _alone = alone();
    let root = tempdir().unwrap();
    // Images that differ only in their number: class frequencies are all that can be learned.
    draw_folder(root.path(), &["frequent"], 60);
    std::fs::create_dir(root.path().join("rare")).unwrap();
    for number in 60..64 {
        drawn(0, number).save(root.path().join(format!("rare/{number}.png"))).unwrap();
    }
    let dataset = Dataset::open(root.path()).unwrap();
    // The predictions for the four rare ones.
    let belief = |balanced| {
        let trainer = Trainer { epochs: 6, batch_size: 16, balanced, ..tiny() };
        let fitted = trainer.fit(&dataset, &dataset).unwrap();
        let evaluation =
            Classifier::new(fitted.last, Device::Cpu).unwrap().evaluate(&dataset, |_| ()).unwrap();
        let rows = evaluation.probabilities.iter().zip(&evaluation.truth);
        rows.filter(|(_, class)| **class == 1).map(|(row, _)| row[1]).sum::<f32>() / 4.0
    };
    let (plain, balanced) = (belief(false), belief(true));
    assert!(balanced > plain + 0.2, "{plain} plain, {balanced} balanced");
}

/// Every parameter of a model file but those of `without`, as bytes by name.
fn tensors(path: &std::path::Path, without: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter().filter(|(name, _)| !name.contains(without));
    all.map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn a_checkpoint_of_pytorch_is_tuned_whole_or_with_all_but_the_last_layer_frozen() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(root.path(), &["horizontal", "vertical", "diagonal"], 8);
    let dataset = Dataset::open(root.path()).unwrap();
    let init = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/best_model.pt");
    let trainer = Trainer {
        architecture: Architecture::new(SimpleCnnConfig {
            channels: vec![4, 6, 8, 10],
            hidden: 8,
            dropout: 0.0,
        }),
        image_size: 32,
        init: Some(InitialWeights::File(init.clone())),
        ema_decay: 0.9,
        ..tiny()
    };
    let labels = ["horizontal", "vertical"].map(String::from).into();
    let given = petnet::pytorch::Import { labels, ..Default::default() }.read(&init).unwrap();
    let [given_at, frozen_at, tuned_at] = ["given", "frozen", "tuned"]
        .map(|name| root.path().join(name).with_extension("safetensors"));
    given.save(&given_at, petnet::Precision::F32).unwrap();
    let frozen = Trainer { freeze: Some(Freeze::Backbone), ..trainer.clone() }
        .fit(&dataset, &dataset)
        .unwrap();
    frozen.last.save(&frozen_at, petnet::Precision::F32).unwrap();
    // `head` is the last layer of this network.
    let [given_body, frozen_body] = [&given_at, &frozen_at].map(|path| tensors(path, "head"));
    assert_eq!(given_body, frozen_body, "frozen layers moved");
    let last = frozen.history[0].train_loss;
    assert!(frozen.history.len() == 1 && last < 3f64.ln(), "{:?}", frozen.history);
    let whole = Trainer { freeze: Some(Freeze::Nothing), ..trainer.clone() };
    let tuned = whole.fit(&dataset, &dataset).unwrap();
    tuned.last.save(&tuned_at, petnet::Precision::F32).unwrap();
    assert_ne!(tensors(&tuned_at, "head"), given_body, "nothing was trained");
    let losses: Vec<f64> = tuned.history.iter().map(|epoch| epoch.train_loss).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
    let other =
        Trainer { architecture: Architecture::named("resnet18").unwrap(), ..trainer.clone() };
    let error = other.fit(&dataset, &dataset).unwrap_err().to_string();
    assert!(error.contains("holds a simple_cnn, the settings require a resnet18"), "{error}");
    let error = Trainer { init: None, freeze: Some(Freeze::Backbone), ..trainer }
        .fit(&dataset, &dataset)
        .unwrap_err();
    assert!(error.to_string().contains("freeze"), "{error}");
}
