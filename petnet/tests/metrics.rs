//! Figures against scikit-learn's, written by `scripts/golden.py`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use petnet::metrics::{Metrics, OodMetrics};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    truth: Vec<usize>,
    probabilities: Vec<Vec<f32>>,
    accuracy: f64,
    precision: f64,
    recall: f64,
    f1_score: f64,
    roc_auc: f64,
    log_loss: f64,
    ece: f64,
    confusion_matrix: Vec<Vec<usize>>,
}

#[test]
fn all_figures_agree_with_scikit_learn() {
    let text = include_str!("golden/metrics.json");
    let golden: std::collections::BTreeMap<String, Golden> = serde_json::from_str(text).unwrap();
    assert_eq!(golden.len(), 2);
    for (name, golden) in golden {
        let classes = golden.confusion_matrix.len();
        let ours = Metrics::compute(&golden.probabilities, &golden.truth, classes);
        assert_eq!(ours.confusion_matrix, golden.confusion_matrix, "{name}");
        let pairs = [
            ("accuracy", ours.accuracy, golden.accuracy),
            ("precision", ours.precision, golden.precision),
            ("recall", ours.recall, golden.recall),
            ("f1_score", ours.f1_score, golden.f1_score),
            ("roc_auc", ours.roc_auc.unwrap(), golden.roc_auc),
            ("log_loss", ours.log_loss, golden.log_loss),
            ("ece", ours.ece, golden.ece),
        ];
        for (figure, ours, theirs) in pairs {
            assert!((ours - theirs).abs() < 1e-6, "{name} {figure}: {ours} is not {theirs}");
        }
    }
}

#[test]
fn a_class_without_photos_has_no_roc_area_and_no_nan() {
    let metrics = Metrics::compute(&[vec![0.9, 0.1], vec![0.2, 0.8]], &[0, 0], 2);
    assert_eq!(metrics.roc_auc, None);
    assert_eq!(metrics.accuracy, 0.5);
    assert_eq!(metrics.recall, 0.0);
}

#[test]
fn out_of_distribution_figures_are_those_of_their_definition() {
    // A hundred of the model's own images with scores 0.00 to 0.99; 0.94 accepts 95 of them.
    let known: Vec<f32> = (0..100).map(|n| n as f32 / 100.0).collect();
    let other = [0.5, 0.94, 0.95, 2.0];
    let figures = OodMetrics::compute(&known, &other).unwrap();
    assert_eq!((figures.images, figures.fpr95), (4, 0.5));
    // Pairs in the right order, an equal pair counting one half.
    let wins = |score: f32| {
        let below = known.iter().filter(|known| **known < score).count() as f64;
        below + known.iter().filter(|known| **known == score).count() as f64 / 2.0
    };
    let expected = other.iter().map(|score| wins(*score)).sum::<f64>() / 400.0;
    assert!((figures.auroc - expected).abs() < 1e-9, "{figures:?} is not {expected}");
}

#[test]
fn out_of_distribution_figures_of_the_extremes() {
    let near = [0.0, 0.1];
    let apart = OodMetrics::compute(&near, &[1.0, 1.0, 1.0]).unwrap();
    assert_eq!((apart.auroc, apart.fpr95), (1.0, 0.0));
    let turned = OodMetrics::compute(&[1.0], &[0.0]).unwrap();
    assert_eq!((turned.auroc, turned.fpr95), (0.0, 1.0));
    let equal = OodMetrics::compute(&[1.0; 5], &[1.0; 7]).unwrap();
    assert_eq!((equal.auroc, equal.fpr95), (0.5, 1.0));
    assert_eq!(OodMetrics::compute(&near, &[]), None);
    assert_eq!(OodMetrics::compute(&[], &near), None);
}
