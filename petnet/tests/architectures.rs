//! Properties of every architecture: training resumes to the same bytes, whatever the number of threads; frozen
//! blocks stay as they were. A toy of its own file goes all the way without any other file knowing of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "train")]

mod common;
#[path = "common/networks.rs"]
mod networks;
#[path = "common/toy.rs"]
mod toy;
#[path = "common/training.rs"]
mod training;

use std::path::Path;

use common::draw_folder;
use petnet::arch::Architecture;
use petnet::augment::Augment;
use petnet::train::{Fitted, Freeze, InitialWeights, Observer, Optimizer, Schedule, StepReport};
use petnet::{Checkpoint, Classifier, Dataset, Device, Error, Precision, Trainer};
use tempfile::tempdir;
use toy::ToyConfig;
use training::{alone, weights};

/// Every architecture, and one that the table does not know.
fn small() -> Vec<Architecture> {
    let toy = Architecture::new(ToyConfig { width: 8 });
    networks::small(0.1).into_iter().chain([toy]).collect()
}

fn trainer(architecture: Architecture) -> Trainer {
    Trainer {
        architecture,
        image_size: 32,
        epochs: 2,
        batch_size: 8,
        learning_rate: 1e-2,
        schedule: Schedule::Cosine,
        optimizer: Optimizer::Sgd,
        label_smoothing: 0.0,
        warmup_epochs: 0.5,
        grad_clip: 5.0,
        ema_decay: 0.5,
        augment: Augment { horizontal_flip: 0.5, ..Augment::none() },
        ..Trainer::default()
    }
}

/// Ends a training after some steps.
struct Stop {
    after: usize,
    seen: usize,
}

impl Observer for Stop {
    fn step(&mut self, _: &StepReport) {
        self.seen += 1;
    }

    fn stop(&self) -> bool {
        self.seen >= self.after
    }
}

fn with_threads(threads: usize, trainer: &Trainer, data: &Dataset) -> Fitted {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| trainer.fit(data, data)).unwrap()
}

#[test]
fn a_training_that_was_stopped_ends_as_one_that_was_not_whatever_the_threads() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("photos"), &["a", "b"], 12);
    let data = Dataset::open(root.path().join("photos")).unwrap();
    for (number, architecture) in small().into_iter().enumerate() {
        let name = architecture.name().to_string();
        let whole = trainer(architecture);
        let expected = weights(&with_threads(1, &whole, &data).last);
        assert_eq!(
            weights(&with_threads(3, &whole, &data).last),
            expected,
            "{name}, three threads"
        );
        let out = root.path().join(number.to_string());
        let stopped = Trainer { out: Some(out), resume: true, ..whole };
        for after in [2, 2] {
            let outcome = stopped.fit_observed(&data, &data, &mut Stop { after, seen: 0 });
            assert!(matches!(outcome, Err(Error::Interrupted)), "{name}: {outcome:?}");
        }
        let resumed = stopped.fit(&data, &data).unwrap();
        assert_eq!(weights(&resumed.last), expected, "{name}, resumed");
    }
}

#[test]
fn frozen_blocks_stay_as_they_were_and_the_others_learn() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("photos"), &["a", "b"], 12);
    let data = Dataset::open(root.path().join("photos")).unwrap();
    for architecture in small() {
        let name = architecture.name().to_string();
        let graph = architecture.graph(2).unwrap();
        let start = trainer(architecture).fit(&data, &data).unwrap().last;
        let init = root.path().join("start.safetensors");
        start.save(&init, Precision::F32).unwrap();
        let before = weights(&start);
        let tuned = |freeze| Trainer {
            init: Some(InitialWeights::File(init.clone())),
            freeze: Some(freeze),
            ..trainer(Architecture::new(graph.clone()))
        };
        for freeze in [Freeze::Blocks(1), Freeze::Blocks(graph.blocks().len()), Freeze::Backbone] {
            let end = match freeze {
                Freeze::Blocks(blocks) => graph.blocks()[blocks - 1],
                _ => graph.global_pool(),
            };
            let (frozen, learning) = graph.nodes().split_at(end);
            let after = weights(&tuned(freeze).fit(&data, &data).unwrap().last);
            let moved = |nodes: &[petnet::graph::Node]| {
                let changed = before.iter().filter(|(name, values)| after[*name] != **values);
                let of = |name: &str| {
                    nodes.iter().any(|node| name.starts_with(&format!("{}.", node.name)))
                };
                changed.filter(|(name, _)| of(name)).count()
            };
            assert_eq!(moved(frozen), 0, "{name}, {freeze}");
            assert!(moved(learning) > 0, "{name}, {freeze}");
        }
        let more = graph.blocks().len() + 1;
        let error = tuned(Freeze::Blocks(more)).fit(&data, &data).unwrap_err().to_string();
        assert!(error.contains("freeze"), "{error}");
    }
}

fn explained(classifier: &Classifier, photo: &Path) -> (usize, usize) {
    let explanation = classifier.explain_bytes(&std::fs::read(photo).unwrap()).unwrap();
    assert!(explanation.heat().iter().all(|heat| (0.0..=1.0).contains(heat)));
    explanation.size()
}

#[test]
fn an_architecture_of_its_own_file_learns_explains_and_is_exported() {
    let _alone = alone();
    let root = tempdir().unwrap();
    draw_folder(&root.path().join("photos"), &["horizontal", "vertical"], 12);
    let data = Dataset::open(root.path().join("photos")).unwrap();
    let toy = Trainer {
        epochs: 20,
        ema_decay: 0.0,
        ..trainer(Architecture::new(ToyConfig { width: 8 }))
    };
    let fitted = toy.fit(&data, &data).unwrap();
    assert!(fitted.history.last().unwrap().val_accuracy > 0.9, "{:?}", fitted.history.last());
    let path = root.path().join("toy.safetensors");
    fitted.best.save(&path, Precision::Int8).unwrap();
    let photo = root.path().join("photos/vertical/3.png");
    let classifier = Classifier::load(&path).unwrap();
    assert_eq!(classifier.info().graph.name(), "toy");
    assert_eq!(classifier.classify_path(&photo).unwrap().label(), "vertical");
    assert_eq!(explained(&classifier, &photo), (8, 8));
    let on_burn = Classifier::new(Checkpoint::load(&path).unwrap(), Device::Flex).unwrap();
    assert_eq!(explained(&on_burn, &photo), (8, 8));
    let model = Checkpoint::load(&path).unwrap();
    model.save_burnpack(root.path().join("toy.bpk")).unwrap();
    #[cfg(feature = "onnx")]
    assert!(petnet::onnx::encode(&model).unwrap().len() > 1000);
    // It is a start for other classes, too.
    draw_folder(&root.path().join("three"), &["a", "b", "c"], 4);
    let three = Dataset::open(root.path().join("three")).unwrap();
    let tuned =
        Trainer { init: Some(InitialWeights::File(path)), freeze: Some(Freeze::Blocks(1)), ..toy };
    let tuned = Trainer { epochs: 1, ..tuned }.fit(&three, &three).unwrap().last;
    assert_eq!(tuned.info().labels, ["a", "b", "c"]);
}
