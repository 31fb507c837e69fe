//! How right the model was, over sliding windows.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use metrics::gauge;
use petnet::metrics::{class_metrics, ece, reliability};
use uuid::Uuid;

use super::Labelled;
use crate::models::{CLASSES, Model};
use crate::telemetry::names;

/// Names of the windows and their milliseconds, the longest last.
const WINDOWS: [(&str, u64); 3] = [("1h", 3_600_000), ("24h", 86_400_000), ("7d", 604_800_000)];

/// A name as a number: the texts of labels may be as many as the subsets of the classes, and are not kept.
fn number(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// A label that was given, names as numbers.
#[derive(Debug, Clone, Copy)]
struct Judged {
    at: u64,
    model: u64,
    predicted: u64,
    actual: u64,
    confidence: f32,
}

/// Labels of the longest window.
#[derive(Default)]
pub(super) struct Judgements {
    given: HashMap<Uuid, Judged>,
}

impl Judgements {
    /// A second label takes the place of the first.
    pub(super) fn insert(&mut self, id: Uuid, labelled: &Labelled) {
        let judged = Judged {
            at: labelled.at,
            model: number(&labelled.predicted.model),
            predicted: number(&labelled.predicted.label),
            actual: number(&labelled.actual),
            confidence: labelled.predicted.confidence,
        };
        self.given.insert(id, judged);
    }

    /// Drops what no window reaches.
    pub(super) fn forget(&mut self, now: u64) {
        self.given.retain(|_, judged| now.saturating_sub(judged.at) < WINDOWS[2].1);
    }

    /// Sets the gauges of one model; what was not counted is left out.
    pub(super) fn observe(&self, model: &Model, now: u64) {
        let version = number(&model.version);
        let labels = model.classifier.labels();
        let single = model.classifier.info().task.is_single_label();
        let places = labels.iter().take(CLASSES).enumerate();
        let places: HashMap<u64, usize> =
            places.map(|(place, label)| (number(label), place)).collect();
        for (window, length) in WINDOWS {
            let recent = |judged: &&Judged| now.saturating_sub(judged.at) < length;
            let given = self.given.values().filter(|judged| judged.model == version).filter(recent);
            let figures = Figures::of(given, &places);
            if figures.answers.is_empty() {
                continue;
            }
            let of = (model.name.as_str(), window);
            figures.observe(of);
            // Of several labels an image, only whether all of them were right is known here.
            if single {
                figures.observe_classes(of, labels);
            }
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
    fn of<'a>(given: impl Iterator<Item = &'a Judged>, places: &HashMap<u64, usize>) -> Self {
        let mut confusion = vec![vec![0; CLASSES + 1]; CLASSES + 1];
        let place = |name: u64| places.get(&name).copied().unwrap_or(CLASSES);
        let answers = given.map(|judged| {
            confusion[place(judged.actual)][place(judged.predicted)] += 1;
            (judged.confidence, judged.actual == judged.predicted)
        });
        let answers = answers.collect();
        Self { confusion, answers }
    }

    fn observe(&self, (model, window): (&str, &'static str)) {
        let photos = self.answers.len();
        let right = self.answers.iter().filter(|(_, right)| *right).count();
        let set = |name: &'static str, value: f64| {
            gauge!(name, "model" => model.to_string(), "window" => window).set(value);
        };
        set(names::FEEDBACK_PHOTOS, photos as f64);
        set(names::MODEL_ACCURACY, right as f64 / photos as f64);
    }

    fn observe_classes(&self, of: (&str, &'static str), labels: &[String]) {
        let (model, window) = of;
        let error = ece(&reliability(self.answers.iter().copied()));
        let name = model.to_string();
        gauge!(names::MODEL_CALIBRATION_ERROR, "model" => name, "window" => window).set(error);
        for (class, label) in labels.iter().enumerate().take(CLASSES) {
            let figures = class_metrics(&self.confusion, class);
            let called: usize = self.confusion.iter().map(|row| row[class]).sum();
            let set = |name: &'static str, value: f64, counted: usize| {
                if counted > 0 {
                    let (class, model) = (label.clone(), model.to_string());
                    gauge!(name, "class" => class, "model" => model, "window" => window).set(value);
                }
            };
            set(names::MODEL_PRECISION, figures.precision, called);
            set(names::MODEL_RECALL, figures.recall, figures.support);
            set(names::MODEL_F1_SCORE, figures.f1_score, called + figures.support);
            if figures.support > 0 {
                self.observe_row(class, of, labels);
            }
        }
    }

    fn observe_row(&self, actual: usize, (model, window): (&str, &'static str), labels: &[String]) {
        for (predicted, count) in labels.iter().zip(&self.confusion[actual]).take(CLASSES) {
            let (actual, predicted) = (labels[actual].clone(), predicted.clone());
            gauge!(
                names::MODEL_CONFUSION_PHOTOS,
                "actual" => actual,
                "model" => model.to_string(),
                "predicted" => predicted,
                "window" => window
            )
            .set(*count as f64);
        }
    }
}
