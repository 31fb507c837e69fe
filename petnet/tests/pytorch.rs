//! A checkpoint as the Python reference implementation writes it, written by `scripts/golden.py`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "pytorch")]

use std::collections::BTreeMap;
use std::path::Path;

use petnet::arch::{Architecture, SimpleCnnConfig};
use petnet::pytorch::Import;
use petnet::{Classifier, Device, Error};

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn import() -> Import {
    Import { image_size: Some(32), ..Default::default() }
}

#[test]
fn a_checkpoint_of_the_reference_system_predicts_the_same_within_1e_4() {
    let model = import().read(golden("best_model.pt")).unwrap();
    let expected = SimpleCnnConfig { channels: vec![4, 6, 8, 10], hidden: 8, dropout: 0.4 };
    assert_eq!(model.info().graph, Architecture::new(expected).graph(2).unwrap());
    assert_eq!(model.info().labels, ["cat", "dog"]);
    assert_eq!(model.info().settings["model_name"], "simple_cnn");
    let classifier = Classifier::new(model, Device::Cpu).unwrap();
    let answers: BTreeMap<String, Vec<f32>> =
        serde_json::from_slice(&std::fs::read(golden("best_model.json")).unwrap()).unwrap();
    for (photo, theirs) in answers {
        let ours = classifier.classify_path(golden(&photo)).unwrap();
        for (ours, theirs) in ours.probabilities().iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4, "{photo}: {ours} is not {theirs}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let three = Import { labels: ["a", "b", "c"].map(String::from).into(), ..import() };
    let error = three.read(golden("best_model.pt")).unwrap_err();
    assert!(
        matches!(&error, Error::Config(text) if text.contains("2 classes, 3 are named")),
        "{error}"
    );
    let error = import().read(golden("waves.png")).unwrap_err();
    assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    let error = import().read("nowhere.pt").unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_file_that_was_cut_or_altered_never_panics() {
    let bytes = std::fs::read(golden("best_model.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.pt");
    for length in (0..bytes.len()).step_by(997) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(import().read(&path).is_err(), "cut to {length}");
    }
    for place in (0..bytes.len()).step_by(211) {
        let mut altered = bytes.clone();
        altered[place] ^= 0x55;
        std::fs::write(&path, &altered).unwrap();
        // Some bytes are padding, others the optimiser's.
        let _ = import().read(&path);
    }
}
