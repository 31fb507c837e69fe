//! Accuracy, calibration and per-class metrics of the models from user feedback, over sliding windows.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use metrics::gauge;
use petnet::metrics::{class_metrics, ece, reliability};
use uuid::Uuid;

use super::Labelled;
use crate::models::{CLASSES, Model};
use crate::telemetry::names;

/// Names of the windows and their lengths in milliseconds, the longest last.
const WINDOWS: [(&str, u64); 3] = [("1h", 3_600_000), ("24h", 86_400_000), ("7d", 604_800_000)];

/// Hash of a name. Names are not kept in memory: a multi-label model has as many label texts as subsets of its classes.
fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// User feedback on a prediction, with hashes of names.
#[derive(Debug, Clone, Copy)]
struct Evaluated {
    /// Milliseconds since 1970.
    at: u64,
    model: u64,
    predicted: u64,
    actual: u64,
    confidence: f32,
}

/// User feedback of the longest window.
#[derive(Default)]
pub(super) struct Evaluations {
    by_id: HashMap<Uuid, Evaluated>,
}

impl Evaluations {
    /// Adds feedback; a second label of a prediction replaces the first.
    pub(super) fn insert(&mut self, id: Uuid, labelled: &Labelled) {
        let evaluated = Evaluated {
            at: labelled.at,
            model: hash(&labelled.predicted.model),
            predicted: hash(&labelled.predicted.label),
            actual: hash(&labelled.actual),
            confidence: labelled.predicted.confidence,
        };
        self.by_id.insert(id, evaluated);
    }

    /// Removes feedback that is older than the longest window.
    pub(super) fn expire(&mut self, now: u64) {
        self.by_id.retain(|_, evaluated| now.saturating_sub(evaluated.at) < WINDOWS[2].1);
    }

    /// Sets the gauges of one model, except those without feedback.
    pub(super) fn observe(&self, model: &Model, now: u64) {
        let version = hash(&model.version);
        let labels = model.classifier.labels();
        let single = model.classifier.info().task.is_single_label();
        let places = labels.iter().take(CLASSES).enumerate();
        let places: HashMap<u64, usize> =
            places.map(|(place, label)| (hash(label), place)).collect();
        for (window, length) in WINDOWS {
            let recent = |evaluated: &&Evaluated| now.saturating_sub(evaluated.at) < length;
            let of_model = self.by_id.values().filter(|evaluated| evaluated.model == version);
            let figures = Figures::of(of_model.filter(recent), &places);
            if figures.answers.is_empty() {
                continue;
            }
            let of = (model.name.as_str(), window);
            figures.observe(of);
            // For a multi-label prediction, only the correctness of the whole set of labels is known here.
            if single {
                figures.observe_classes(of, labels);
            }
        }
    }
}

/// Counts of one window.
struct Figures {
    /// Confusion matrix `[actual][predicted]`; the last row and column are for classes beyond [`CLASSES`].
    confusion: Vec<Vec<usize>>,
    /// Confidence and correctness of each prediction.
    answers: Vec<(f32, bool)>,
}

impl Figures {
    fn of<'a>(
        evaluated: impl Iterator<Item = &'a Evaluated>,
        places: &HashMap<u64, usize>,
    ) -> Self {
        let mut confusion = vec![vec![0; CLASSES + 1]; CLASSES + 1];
        let place = |name: u64| places.get(&name).copied().unwrap_or(CLASSES);
        let answers = evaluated.map(|evaluated| {
            confusion[place(evaluated.actual)][place(evaluated.predicted)] += 1;
            (evaluated.confidence, evaluated.actual == evaluated.predicted)
        });
        let answers = answers.collect();
        Self { confusion, answers }
    }

    fn observe(&self, (model, window): (&str, &'static str)) {
        let images = self.answers.len();
        let right = self.answers.iter().filter(|(_, right)| *right).count();
        let set = |name: &'static str, value: f64| {
            gauge!(name, "model" => model.to_string(), "window" => window).set(value);
        };
        set(names::FEEDBACK_PHOTOS, images as f64);
        set(names::MODEL_ACCURACY, right as f64 / images as f64);
    }

    fn observe_classes(&self, of: (&str, &'static str), labels: &[String]) {
        let (model, window) = of;
        let error = ece(&reliability(self.answers.iter().copied()));
        let name = model.to_string();
        gauge!(names::MODEL_CALIBRATION_ERROR, "model" => name, "window" => window).set(error);
        for (class, label) in labels.iter().enumerate().take(CLASSES) {
            let figures = class_metrics(&self.confusion, class);
            let predicted: usize = self.confusion.iter().map(|row| row[class]).sum();
            let set = |name: &'static str, value: f64, counted: usize| {
                if counted > 0 {
                    let (class, model) = (label.clone(), model.to_string());
                    gauge!(name, "class" => class, "model" => model, "window" => window).set(value);
                }
            };
            set(names::MODEL_PRECISION, figures.precision, predicted);
            set(names::MODEL_RECALL, figures.recall, figures.support);
            set(names::MODEL_F1_SCORE, figures.f1_score, predicted + figures.support);
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
