//! Evaluation of a classifier on a data set.

use serde::Serialize;

use crate::augment::Augment;
use crate::classifier::Classifier;
use crate::dataset::{Dataset, Target};
use crate::engine::Outputs;
use crate::error::{Error, Result};
use crate::loader::{Loader, LoaderSettings};
use crate::metrics::{CalibrationBin, Metrics, MultiLabelMetrics, argmax, calibration_bins};
use crate::prediction::{Decision, Prediction};
use crate::task::Task;

const BATCH_SIZE: usize = 64;

/// Predictions of a single-label model on every image of a data set, with the true classes.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
#[doc = include_str!("doc_images.txt")]
/// use petnet::{Classifier, Dataset};
///
/// let evaluation = Classifier::pretrained()?.evaluate(&Dataset::open(images)?, |_| ())?;
/// let metrics = evaluation.metrics();
/// println!("{:.1} % right, {:?}", metrics.accuracy * 100.0, metrics.confusion_matrix);
/// assert_eq!(metrics.num_samples, 8);
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// One row per image, one column per class.
    pub probabilities: Vec<Vec<f32>>,
    /// One row per image: the means of the last feature maps.
    pub features: Vec<Vec<f32>>,
    /// True class of each image.
    pub truth: Vec<usize>,
    /// Decision for each image.
    pub decisions: Vec<Decision>,
    /// Out-of-distribution score of each image; empty where the model has none.
    pub ood_scores: Vec<f32>,
    classes: usize,
}

/// Predictions of a multi-label model on every image of a data set, with the true classes.
///
/// ```no_run
/// use petnet::{Classifier, dataset::Reading};
///
/// let reading = Reading { multi_label: true, ..Reading::default() };
/// let images = reading.open("photos")?; // with a labels.csv: path,label with labels like cat|dog
/// let metrics = Classifier::load("mine.safetensors")?.evaluate_labels(&images, |_| ())?.metrics();
/// println!("mean average precision {:?}", metrics.mean_average_precision);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabelEvaluation {
    /// One row per image, one column per class.
    pub probabilities: Vec<Vec<f32>>,
    /// True classes of each image.
    pub truth: Vec<Vec<usize>>,
    /// Decision for each image.
    pub decisions: Vec<Decision>,
    /// Out-of-distribution score of each image; empty where the model has none.
    pub ood_scores: Vec<f32>,
    thresholds: Vec<f32>,
}

impl LabelEvaluation {
    /// Metrics at the model's thresholds.
    pub fn metrics(&self) -> MultiLabelMetrics {
        MultiLabelMetrics::compute(&self.probabilities, &self.truth, &self.thresholds)
    }

    /// Share of the images that are out of distribution. They count in [`LabelEvaluation::metrics`] all the same.
    pub fn out_of_distribution(&self) -> f64 {
        share_of(Decision::OutOfDistribution, &self.decisions)
    }
}

/// Share of the images with a decision.
fn share_of(decision: Decision, decisions: &[Decision]) -> f64 {
    let count = decisions.iter().filter(|other| **other == decision).count();
    count as f64 / decisions.len().max(1) as f64
}

/// Coverage and accuracy of a model that abstains on some images (selective classification).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coverage {
    /// Share of the images that are answered.
    pub share: f64,
    /// Accuracy on these.
    pub accuracy: f64,
    /// Share of the images with low confidence.
    pub low_confidence: f64,
    /// Share of the images that are out of distribution.
    pub out_of_distribution: f64,
}

impl Evaluation {
    /// Metrics over all images, answered or not.
    pub fn metrics(&self) -> Metrics {
        Metrics::compute(&self.probabilities, &self.truth, self.classes)
    }

    /// Confidence and accuracy in bins of confidence, for a reliability diagram, see [`reliability`](crate::metrics::reliability).
    pub fn calibration_bins(&self) -> Vec<CalibrationBin> {
        calibration_bins(&self.probabilities, &self.truth)
    }

    /// Coverage, and accuracy on the answered images.
    pub fn coverage(&self) -> Coverage {
        let rows = self.probabilities.iter().zip(&self.truth).zip(&self.decisions);
        let answered: Vec<bool> = rows
            .filter(|(_, decision)| **decision == Decision::Answered)
            .map(|((row, truth), _)| argmax(row) == *truth)
            .collect();
        let right = answered.iter().filter(|right| **right).count();
        Coverage {
            share: share_of(Decision::Answered, &self.decisions),
            accuracy: right as f64 / answered.len().max(1) as f64,
            low_confidence: share_of(Decision::LowConfidence, &self.decisions),
            out_of_distribution: share_of(Decision::OutOfDistribution, &self.decisions),
        }
    }
}

impl Classifier {
    /// Evaluates a single-label model on a data set of its classes, in the data set's order. `progress` is called with 1
    /// for each image.
    ///
    /// # Errors
    /// [`Error::Dataset`] when a class is unknown to the model, or when the model or the data is multi-label, see
    /// [`Classifier::evaluate_labels`]; the errors of reading images and of the device.
    pub fn evaluate(&self, dataset: &Dataset, progress: impl Fn(usize)) -> Result<Evaluation> {
        if dataset.is_multi_label() || !self.info().task.is_single_label() {
            let reason = "the model or the data is multi-label: use the multi-label evaluation";
            return Err(Error::Dataset(reason.into()));
        }
        let dataset = dataset.clone().with_labels(self.labels())?;
        let mut evaluation = Evaluation { classes: self.labels().len(), ..Evaluation::default() };
        self.each_output(&dataset, Augment::none(), |outputs, target| {
            let prediction = self.prediction(&outputs);
            evaluation.probabilities.push(prediction.probabilities);
            evaluation.decisions.push(prediction.decision);
            evaluation.ood_scores.extend(prediction.ood_score);
            evaluation.features.push(outputs.features);
            evaluation.truth.extend(target.class());
            progress(1);
        })?;
        Ok(evaluation)
    }

    /// Evaluates a multi-label model on a data set of its classes, in the data set's order. `progress` is called with 1 for
    /// each image. Images of a single-label data set are evaluated as having no other class.
    ///
    /// # Errors
    /// [`Error::Dataset`] when a class is unknown to the model, or the model is a single-label one; the errors of reading
    /// images and of the device.
    pub fn evaluate_labels(
        &self,
        dataset: &Dataset,
        progress: impl Fn(usize),
    ) -> Result<LabelEvaluation> {
        let Task::MultiLabel { thresholds } = &self.info().task else {
            return Err(Error::Dataset(
                "the model is a single-label one: use the single-label evaluation".into(),
            ));
        };
        let dataset = dataset.clone().with_labels(self.labels())?;
        let thresholds = thresholds.clone();
        let mut evaluation = LabelEvaluation { thresholds, ..LabelEvaluation::default() };
        self.each_output(&dataset, Augment::none(), |outputs, target| {
            let prediction = self.prediction(&outputs);
            evaluation.probabilities.push(prediction.probabilities);
            evaluation.decisions.push(prediction.decision);
            evaluation.ood_scores.extend(prediction.ood_score);
            evaluation.truth.push(target.classes().to_vec());
            progress(1);
        })?;
        Ok(evaluation)
    }

    /// Classifies every image of a data set of any classes, in the data set's order. `progress` is called with 1 for each
    /// image.
    ///
    /// # Errors
    /// [`Error::ImageFile`](crate::Error::ImageFile) for an image that cannot be read, [`Error::Device`](crate::Error::Device)
    /// when the device fails.
    pub fn predict(&self, dataset: &Dataset, progress: impl Fn(usize)) -> Result<Vec<Prediction>> {
        let mut predictions = Vec::with_capacity(dataset.len());
        self.each_output(dataset, Augment::none(), |outputs, _| {
            predictions.push(self.prediction(&outputs));
            progress(1);
        })?;
        Ok(predictions)
    }

    /// Runs the network on every image of a data set, in its order; `each` is called with the outputs and the classes.
    pub(crate) fn each_output(
        &self,
        dataset: &Dataset,
        augment: Augment,
        mut each: impl FnMut(Outputs, &Target),
    ) -> Result<()> {
        let settings = LoaderSettings {
            batch_size: BATCH_SIZE,
            workers: 1,
            cache_bytes: 0,
            preprocess: self.info().preprocess,
            augment,
            seed: 0,
            shuffle: false,
        };
        for batch in Loader::new(dataset, settings).epoch(0, 0) {
            let batch = batch?;
            let outputs = self.outputs(batch.images)?;
            let pairs = outputs.into_iter().zip(&batch.targets);
            pairs.for_each(|(outputs, target)| each(outputs, target));
        }
        Ok(())
    }
}
