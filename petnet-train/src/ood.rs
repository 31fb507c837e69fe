//! Evaluation on out-of-distribution images: shares of the three decisions, AUROC and FPR95, and the most confident
//! answers.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use petnet::metrics::OodMetrics;
use petnet::{Classifier, Decision, Prediction};
use serde::Serialize;

use crate::encode::{data_url, thumbnail};
use crate::predict;

/// Most answered images in the gallery of an input.
const MAX_GALLERY_IMAGES: usize = 12;

/// Evaluation of a model on the images of one input, none of which shows one of its classes.
pub(crate) struct OodEvaluation {
    pub(crate) figures: OodFigures,
    /// Out-of-distribution score of each image; empty where the model has none.
    pub(crate) scores: Vec<f32>,
    /// The answered images with the highest confidence.
    pub(crate) gallery: Vec<AnsweredImage>,
}

/// Figures of [`OodEvaluation`]; shares are those of the readable images.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct OodFigures {
    /// The input as given on the command line.
    pub(crate) input: String,
    /// Number of readable images.
    pub(crate) images: usize,
    pub(crate) unreadable: usize,
    pub(crate) answered: f64,
    pub(crate) low_confidence: f64,
    pub(crate) out_of_distribution: f64,
    /// See [`OodMetrics`]; `None` for a model without an out-of-distribution score.
    pub(crate) auroc: Option<f64>,
    pub(crate) fpr95: Option<f64>,
}

/// An out-of-distribution image that the model answered.
#[derive(Serialize)]
pub(crate) struct AnsweredImage {
    path: String,
    label: String,
    confidence: f32,
    ood_score: Option<f32>,
    /// Thumbnail as JPEG.
    #[serde(serialize_with = "data_url")]
    thumbnail: Vec<u8>,
}

impl OodEvaluation {
    /// Classifies the images of an input of `predict` and compares their scores with `own_scores`, those of
    /// in-distribution images. `progress` is called after each image.
    /// Errors: when the input has no readable image, or cannot be listed.
    pub(crate) fn of(
        classifier: &Classifier,
        input: &Path,
        own_scores: &[f32],
        progress: impl Fn(),
    ) -> Result<Self> {
        let mut predictions: Vec<(String, Prediction)> = Vec::new();
        let mut unreadable = 0;
        predict::classify_all(classifier, input, |path, outcome| {
            match outcome {
                Ok(prediction) => predictions.push((path, prediction)),
                Err(reason) => {
                    tracing::warn!(path, reason, "an out-of-distribution image is unreadable");
                    unreadable += 1;
                }
            }
            progress();
        })?;
        anyhow::ensure!(!predictions.is_empty(), "{}: no readable image", input.display());
        let scores: Vec<f32> = predictions.iter().filter_map(|(_, p)| p.ood_score()).collect();
        let metrics = OodMetrics::compute(own_scores, &scores);
        let share = |decision| {
            let decisions = predictions.iter().filter(|(_, p)| p.decision() == decision);
            decisions.count() as f64 / predictions.len() as f64
        };
        let figures = OodFigures {
            input: input.display().to_string(),
            images: predictions.len(),
            unreadable,
            answered: share(Decision::Answered),
            low_confidence: share(Decision::LowConfidence),
            out_of_distribution: share(Decision::OutOfDistribution),
            auroc: metrics.map(|metrics| metrics.auroc),
            fpr95: metrics.map(|metrics| metrics.fpr95),
        };
        let gallery = gallery(input, predictions)?;
        Ok(Self { figures, scores, gallery })
    }
}

impl OodFigures {
    pub(crate) fn print(&self) {
        let percent = |figure: f64| format!("{:.2} %", figure * 100.0);
        say!("OOD        {}: {} images, {} unreadable", self.input, self.images, self.unreadable);
        let shares = [self.answered, self.low_confidence, self.out_of_distribution];
        let [answered, low, ood] = shares.map(percent);
        say!("           answered {answered}, low confidence {low}, out of distribution {ood}");
        match self.auroc.zip(self.fpr95) {
            Some((auroc, fpr95)) => {
                say!("           AUROC {auroc:.4}, FPR95 {}", percent(fpr95));
            }
            None => say!("           no AUROC: the model has no out-of-distribution score"),
        }
    }
}

/// The answered images with the highest confidence. Their bytes are read again, because the first pass keeps none.
fn gallery(input: &Path, mut found: Vec<(String, Prediction)>) -> Result<Vec<AnsweredImage>> {
    found.retain(|(_, prediction)| prediction.is_answered());
    found.sort_by(|(a, one), (b, other)| {
        other.confidence().total_cmp(&one.confidence()).then_with(|| a.cmp(b))
    });
    found.truncate(MAX_GALLERY_IMAGES);
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    let bytes: HashMap<String, Vec<u8>> =
        predict::read_images(input, &paths)?.into_iter().collect();
    let shown = found.into_iter().filter_map(|(path, prediction)| {
        let thumbnail = thumbnail(bytes.get(&path)?);
        Some(thumbnail.map(|thumbnail| AnsweredImage {
            path,
            label: prediction.label().to_string(),
            confidence: prediction.confidence(),
            ood_score: prediction.ood_score(),
            thumbnail,
        }))
    });
    shown.collect()
}
