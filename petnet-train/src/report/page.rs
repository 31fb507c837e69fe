//! `report.html` of a single-label model, as one self-contained page.

use anyhow::Result;
use petnet::metrics::{self, Metrics};
use petnet::train::EpochReport;
use petnet::{Evaluation, ModelInfo};
use serde::Serialize;
use serde_json::{Value, json};

use super::charts::{self, Curve};
use super::evaluation::Subject;
use super::render;
use crate::encode::{data_url, thumbnail};

const TEMPLATE: &str = include_str!("page.html");
/// Style sheet of the reports.
pub(super) const STYLE: &str = include_str!("style.css");
/// Most images in the gallery of mistakes.
pub(super) const MAX_GALLERY_IMAGES: usize = 24;
/// With more classes, the page lists those with the lowest F1 and the pairs most often confused: a full confusion matrix
/// of a thousand classes would take 50 MB.
const MAX_LISTED_CLASSES: usize = 20;
/// Lower bounds of the rows of "Accuracy by confidence".
const CONFIDENCE_STEPS: [f32; 6] = [0.99, 0.95, 0.9, 0.8, 0.65, 0.0];

/// Contents of the page.
pub(super) struct Report<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) evaluation: &'a Evaluation,
    pub(super) metrics: &'a Metrics,
}

/// A wrong prediction.
#[derive(Serialize)]
pub(crate) struct Mistake {
    pub(crate) path: String,
    pub(crate) actual: String,
    pub(crate) predicted: String,
    pub(crate) confidence: f32,
    /// Thumbnail as JPEG.
    #[serde(serialize_with = "data_url")]
    pub(crate) thumbnail: Vec<u8>,
}

impl Report<'_> {
    fn info(&self) -> &ModelInfo {
        self.subject.classifier.info()
    }

    /// The page, with the given [`Report::worst_mistakes`].
    pub(super) fn html(&self, mistakes: &[Mistake]) -> Result<String> {
        let history = history(self.info());
        let bins = self.evaluation.calibration_bins();
        let settings = serde_json::to_string_pretty(&self.info().settings)?;
        let values = json!({
            "style": STYLE,
            "info": self.info(),
            "settings": settings,
            "parameters": self.subject.classifier.parameters(),
            "source": self.subject.dataset_name,
            "metrics": self.metrics,
            "whole": self.info().labels.len() <= MAX_LISTED_CLASSES,
            "confused": self.most_confused(),
            "weakest": self.weakest(),
            "curves": charts::training(&history, charts::accuracy_curves)?,
            "roc": charts::roc(&self.roc_curves())?,
            "reliability": charts::reliability(&bins)?,
            "confidence": self.by_confidence(),
            "coverage": self.evaluation.coverage(),
            "ood_inputs": self.ood_inputs(),
            "scores": self.score_chart()?,
            "mistakes": mistakes,
            "seconds": history.last().map(|e| e.seconds),
            "epochs": history.len(),
        });
        render(TEMPLATE, values)
    }

    /// The figures of each out-of-distribution input, with its gallery.
    fn ood_inputs(&self) -> Vec<Value> {
        let ood_inputs = self.subject.ood_inputs.iter().map(|input| {
            let mut figures = json!(input.figures);
            figures["gallery"] = json!(input.gallery);
            figures
        });
        ood_inputs.collect()
    }

    /// Histograms of the scores; `None` without out-of-distribution images, or without a score.
    fn score_chart(&self) -> Result<Option<String>> {
        let Some(ood) = self.info().ood.as_ref().filter(|_| !self.subject.ood_inputs.is_empty())
        else {
            return Ok(None);
        };
        let own = [("in distribution", self.evaluation.ood_scores.as_slice())];
        let ood_inputs = self
            .subject
            .ood_inputs
            .iter()
            .map(|input| (ending(&input.figures.input), input.scores.as_slice()));
        let groups: Vec<_> = own.into_iter().chain(ood_inputs).collect();
        charts::ood_scores(&groups, ood.threshold).map(Some)
    }

    /// The pairs of classes that are confused most often, with the number of images.
    fn most_confused(&self) -> Vec<Value> {
        let labels = &self.info().labels;
        let rows = self.metrics.confusion_matrix.iter().enumerate();
        let cells = rows.flat_map(|(actual, row)| {
            row.iter().enumerate().map(move |(predicted, count)| (actual, predicted, *count))
        });
        let mut wrong: Vec<_> = cells.filter(|(a, p, count)| a != p && *count > 0).collect();
        wrong.sort_by_key(|(actual, predicted, count)| {
            (std::cmp::Reverse(*count), *actual, *predicted)
        });
        let shown = wrong.into_iter().take(MAX_LISTED_CLASSES).map(|(actual, predicted, count)| {
            json!({ "actual": labels[actual], "predicted": labels[predicted], "count": count })
        });
        shown.collect()
    }

    /// Indices of the classes with the lowest F1, among those with images.
    fn weakest(&self) -> Vec<usize> {
        let own = &self.metrics.per_class;
        let mut classes: Vec<usize> =
            (0..own.len()).filter(|class| own[*class].support > 0).collect();
        classes.sort_by(|a, b| own[*a].f1_score.total_cmp(&own[*b].f1_score));
        classes.truncate(MAX_LISTED_CLASSES);
        classes
    }

    fn roc_curves(&self) -> Vec<Curve> {
        let labels = &self.info().labels;
        // With two classes, the curve of the first is that of the second, rotated by 180 degrees.
        let shown = if labels.len() == 2 { 1..2 } else { 0..labels.len().min(8) };
        shown
            .map(|class| {
                let rows = &self.evaluation.probabilities;
                let scores: Vec<f32> = rows.iter().map(|row| row[class]).collect();
                let positive: Vec<bool> =
                    self.evaluation.truth.iter().map(|t| *t == class).collect();
                (labels[class].clone(), metrics::roc_curve(&scores, &positive))
            })
            .collect()
    }

    /// Number of images, their share and their accuracy in each range of confidence.
    fn by_confidence(&self) -> Vec<Value> {
        let Evaluation { probabilities, truth, .. } = self.evaluation;
        let predictions: Vec<(f32, bool)> = probabilities
            .iter()
            .zip(truth)
            .map(|(row, truth)| (row[metrics::argmax(row)], metrics::argmax(row) == *truth))
            .collect();
        let mut above = f32::INFINITY;
        let rows = CONFIDENCE_STEPS.map(|from| {
            let inside = |confidence: f32| confidence >= from && confidence < above;
            let rows: Vec<bool> = predictions.iter().filter(|p| inside(p.0)).map(|p| p.1).collect();
            above = from;
            let correct = rows.iter().filter(|correct| **correct).count();
            json!({
                "from": from,
                "count": rows.len(),
                "share": rows.len() as f64 / predictions.len().max(1) as f64,
                "accuracy": correct as f64 / rows.len().max(1) as f64,
            })
        });
        rows.to_vec()
    }

    /// The most confident wrong predictions, with thumbnails.
    pub(super) fn worst_mistakes(&self) -> Result<Vec<Mistake>> {
        let Evaluation { probabilities, truth, .. } = self.evaluation;
        let (dataset, labels) = (self.subject.dataset, &self.info().labels);
        let predicted: Vec<usize> = probabilities.iter().map(|row| metrics::argmax(row)).collect();
        let confidence = |image: usize| probabilities[image][predicted[image]];
        let is_wrong = |image: &usize| predicted[*image] != truth[*image];
        let mut wrong: Vec<usize> = (0..predicted.len()).filter(is_wrong).collect();
        wrong.sort_by(|a, b| confidence(*b).total_cmp(&confidence(*a)).then(a.cmp(b)));
        let mistake = |image: usize| {
            Ok(Mistake {
                path: dataset.samples()[image].path.display().to_string(),
                actual: labels[truth[image]].clone(),
                predicted: labels[predicted[image]].clone(),
                confidence: confidence(image),
                thumbnail: thumbnail(&dataset.read(image)?)?,
            })
        };
        wrong.into_iter().take(MAX_GALLERY_IMAGES).map(mistake).collect()
    }
}

/// The epochs of a model's training; empty where they are unknown.
pub(super) fn history(info: &ModelInfo) -> Vec<EpochReport> {
    serde_json::from_value(info.history.clone()).unwrap_or_default()
}

/// The last characters of an input's name, as many as fit into the legend of a chart.
fn ending(input: &str) -> &str {
    const MAX_LEGEND_CHARS: usize = 24;
    let skipped = input.chars().count().saturating_sub(MAX_LEGEND_CHARS);
    input.char_indices().nth(skipped).map_or(input, |(start, _)| &input[start..])
}
