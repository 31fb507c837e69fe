//! Accuracy, calibration and per-class metrics of the models from user feedback, over sliding windows.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use metrics::gauge;
use petnet::metrics::{class_metrics, ece, reliability};
use uuid::Uuid;

use super::LabelledPrediction;
use crate::models::{MAX_METRIC_CLASSES, Model};
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
struct EvaluatedPrediction {
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
    by_id: HashMap<Uuid, EvaluatedPrediction>,
}

impl Evaluations {
    /// Adds feedback; a second label of a prediction replaces the first.
    pub(super) fn insert(&mut self, id: Uuid, labelled: &LabelledPrediction) {
        let evaluated = EvaluatedPrediction {
            at: labelled.at,
            model: hash(&labelled.predicted.model_version),
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
    pub(super) fn set_gauges(&self, model: &Model, now: u64) {
        let version = hash(&model.version);
        let labels = model.classifier.labels();
        let single = model.classifier.info().task.is_single_label();
        let classes = labels.iter().take(MAX_METRIC_CLASSES).enumerate();
        let classes: HashMap<u64, usize> =
            classes.map(|(index, label)| (hash(label), index)).collect();
        for (window, length) in WINDOWS {
            let recent =
                |evaluated: &&EvaluatedPrediction| now.saturating_sub(evaluated.at) < length;
            let of_model = self.by_id.values().filter(|evaluated| evaluated.model == version);
            let window_metrics = WindowMetrics::of(of_model.filter(recent), &classes);
            if window_metrics.predictions.is_empty() {
                continue;
            }
            let model_and_window = (model.name.as_str(), window);
            window_metrics.set_gauges(model_and_window);
            // For a multi-label prediction, only the correctness of the whole set of labels is known here.
            if single {
                window_metrics.set_class_gauges(model_and_window, labels);
            }
        }
    }
}

/// Counts of one window.
struct WindowMetrics {
    /// Confusion matrix `[actual][predicted]`; the last row and column are for classes beyond [`MAX_METRIC_CLASSES`].
    confusion: Vec<Vec<usize>>,
    /// Confidence and correctness of each prediction.
    predictions: Vec<(f32, bool)>,
}

impl WindowMetrics {
    fn of<'a>(
        evaluated: impl Iterator<Item = &'a EvaluatedPrediction>,
        classes: &HashMap<u64, usize>,
    ) -> Self {
        let mut confusion = vec![vec![0; MAX_METRIC_CLASSES + 1]; MAX_METRIC_CLASSES + 1];
        let index = |name: u64| classes.get(&name).copied().unwrap_or(MAX_METRIC_CLASSES);
        let predictions = evaluated.map(|evaluated| {
            confusion[index(evaluated.actual)][index(evaluated.predicted)] += 1;
            (evaluated.confidence, evaluated.actual == evaluated.predicted)
        });
        let predictions = predictions.collect();
        Self { confusion, predictions }
    }

    fn set_gauges(&self, (model, window): (&str, &'static str)) {
        let images = self.predictions.len();
        let right = self.predictions.iter().filter(|(_, right)| *right).count();
        let set = |name: &'static str, value: f64| {
            gauge!(name, "model" => model.to_string(), "window" => window).set(value);
        };
        set(names::FEEDBACK_PHOTOS, images as f64);
        set(names::MODEL_ACCURACY, right as f64 / images as f64);
    }

    fn set_class_gauges(&self, model_and_window: (&str, &'static str), labels: &[String]) {
        let (model, window) = model_and_window;
        let error = ece(&reliability(self.predictions.iter().copied()));
        let name = model.to_string();
        gauge!(names::MODEL_CALIBRATION_ERROR, "model" => name, "window" => window).set(error);
        for (class, label) in labels.iter().enumerate().take(MAX_METRIC_CLASSES) {
            let scores = class_metrics(&self.confusion, class);
            let predicted: usize = self.confusion.iter().map(|row| row[class]).sum();
            let set = |name: &'static str, value: f64, count: usize| {
                if count > 0 {
                    let (class, model) = (label.clone(), model.to_string());
                    gauge!(name, "class" => class, "model" => model, "window" => window).set(value);
                }
            };
            set(names::MODEL_PRECISION, scores.precision, predicted);
            set(names::MODEL_RECALL, scores.recall, scores.support);
            set(names::MODEL_F1_SCORE, scores.f1_score, predicted + scores.support);
            if scores.support > 0 {
                self.set_confusion_gauges(class, model_and_window, labels);
            }
        }
    }

    fn set_confusion_gauges(
        &self,
        actual: usize,
        (model, window): (&str, &'static str),
        labels: &[String],
    ) {
        for (predicted, count) in
            labels.iter().zip(&self.confusion[actual]).take(MAX_METRIC_CLASSES)
        {
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
