//! Properties of the public interface that users rely on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(feature = "train")]

use petnet::augment::Augment;
use petnet::burn::Network;
use petnet::drift::{Reference, Window};
use petnet::loader::{Batches, Loader};
use petnet::metrics::Metrics;
use petnet::train::{Fitted, Observer};
use petnet::{
    Checkpoint, Classifier, Dataset, Device, Error, Evaluation, Explanation, ModelInfo, Prediction,
    Trainer,
};

fn crosses_threads<T: Send>() {}

fn is_shared<T: Send + Sync + 'static>() {}

#[test]
fn what_is_public_is_shared_between_threads() {
    is_shared::<Classifier>();
    is_shared::<Checkpoint>();
    is_shared::<(Device, ModelInfo, Prediction, Explanation, Error)>();
    is_shared::<(Dataset, Trainer, Fitted, Evaluation, Metrics, Augment, Loader)>();
    is_shared::<(Reference, Window, Network)>();
    crosses_threads::<Batches>();
    // An observer may be passed by reference.
    fn watches(_: &mut dyn Observer) {}
    watches(&mut ());
}

#[test]
#[cfg(feature = "pretrained")]
fn a_classifier_answers_the_same_from_many_threads() {
    let Ok(classifier) = Classifier::pretrained() else { panic!("the bundled model") };
    let photo =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/waves.jpg")).unwrap();
    let alone = classifier.classify_bytes(&photo).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| classifier.classify_bytes(&photo).unwrap())).collect();
        for thread in threads {
            let Ok(together) = thread.join() else { panic!("a thread") };
            assert_eq!(together, alone);
        }
    });
}
