//! How right the model was, over sliding windows.

use std::collections::HashMap;

use metrics::gauge;
use petnet::metrics::{class_metrics, ece, reliability};
use uuid::Uuid;

use super::{Labelled, Names};
use crate::model::CLASSES;

/// Names of the windows and their milliseconds, the longest last.
const WINDOWS: [(&str, u64); 3] = [("1h", 3_600_000), ("24h", 86_400_000), ("7d", 604_800_000)];

/// A label that was given, names as numbers.
#[derive(Debug, Clone, Copy)]
struct Judged {
    at: u64,
    model: u32,
    predicted: u32,
    actual: u32,
    confidence: f32,
}

/// Labels of the longest window.
#[derive(Default)]
pub(super) struct Judgements {
    names: Names,
    given: HashMap<Uuid, Judged>,
}

impl Judgements {
    /// A second label takes the place of the first.
    pub(super) fn insert(&mut self, id: Uuid, labelled: &Labelled) {
        let judged = Judged {
            at: labelled.at,
            model: self.names.number(&labelled.predicted.model),
            predicted: self.names.number(&labelled.predicted.label),
            actual: self.names.number(&labelled.actual),
            confidence: labelled.predicted.confidence,
        };
        self.given.insert(id, judged);
    }

    /// Drops what no window reaches.
    pub(super) fn forget(&mut self, now: u64) {
        self.given.retain(|_, judged| now.saturating_sub(judged.at) < WINDOWS[2].1);
    }

    /// Sets the gauges of one model; what was not counted is left out.
    pub(super) fn observe(&self, model: &str, labels: &[String], now: u64) {
        let Some(model) = self.names.find(model) else { return };
        let places = labels.iter().take(CLASSES).enumerate();
        let places: HashMap<u32, usize> =
            places.filter_map(|(place, label)| Some((self.names.find(label)?, place))).collect();
        for (window, length) in WINDOWS {
            let recent = |judged: &&Judged| now.saturating_sub(judged.at) < length;
            let given = self.given.values().filter(|judged| judged.model == model).filter(recent);
            Figures::of(given, &places).observe(window, labels);
        }
    }
}

/// Counts of one window.
struct Figures {
    /// `[actual][predicted]`; what lies beyond the classes that are told apart comes last.
    confusion: Vec<Vec<usize>>,
    answers: Vec<(f32, bool)>,
}

impl Figures {
    fn of<'a>(given: impl Iterator<Item = &'a Judged>, places: &HashMap<u32, usize>) -> Self {
        let mut confusion = vec![vec![0; CLASSES + 1]; CLASSES + 1];
        let place = |name: u32| places.get(&name).copied().unwrap_or(CLASSES);
        let answers = given.map(|judged| {
            confusion[place(judged.actual)][place(judged.predicted)] += 1;
            (judged.confidence, judged.actual == judged.predicted)
        });
        let answers = answers.collect();
        Self { confusion, answers }
    }

    fn observe(&self, window: &'static str, labels: &[String]) {
        let photos = self.answers.len();
        if photos == 0 {
            return;
        }
        let right = self.answers.iter().filter(|(_, right)| *right).count();
        gauge!("feedback_photos", "window" => window).set(photos as f64);
        gauge!("model_accuracy", "window" => window).set(right as f64 / photos as f64);
        let error = ece(&reliability(self.answers.iter().copied()));
        gauge!("model_calibration_error", "window" => window).set(error);
        for (class, label) in labels.iter().enumerate().take(CLASSES) {
            let figures = class_metrics(&self.confusion, class);
            let called: usize = self.confusion.iter().map(|row| row[class]).sum();
            let set = |name: &'static str, value: f64, counted: usize| {
                if counted > 0 {
                    gauge!(name, "class" => label.clone(), "window" => window).set(value);
                }
            };
            set("model_precision", figures.precision, called);
            set("model_recall", figures.recall, figures.support);
            set("model_f1_score", figures.f1_score, called + figures.support);
            if figures.support > 0 {
                self.observe_row(class, window, labels);
            }
        }
    }

    fn observe_row(&self, actual: usize, window: &'static str, labels: &[String]) {
        for (predicted, count) in labels.iter().zip(&self.confusion[actual]).take(CLASSES) {
            let (actual, predicted) = (labels[actual].clone(), predicted.clone());
            gauge!(
                "model_confusion_photos",
                "actual" => actual, "predicted" => predicted, "window" => window
            )
            .set(*count as f64);
        }
    }
}
