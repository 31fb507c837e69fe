//! Calibration after training: temperature, confidence threshold and out-of-distribution score.

mod fit;

use rayon::prelude::*;

use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, Confidence};
use crate::classifier::Classifier;
use crate::dataset::{Dataset, Target};
use crate::device::Device;
use crate::drift::{DriftSample, Reference};
use crate::engine::Outputs;
use crate::error::{Error, Result};
use crate::ood::{ClassSet, OodScore, OutOfDistribution, embedding, prototypes};
use crate::task::{DEFAULT_THRESHOLD, Task};
use crate::weights::Weight;

/// Accuracy on validation images at or above the confidence threshold.
const ANSWER_ACCURACY: f64 = 0.99;
/// Share of validation images that are in distribution.
const IN_DISTRIBUTION_SHARE: f64 = 0.98;
/// Largest number of training images whose features the prototypes are computed from.
const MAX_PROTOTYPE_IMAGES: usize = 4000;
/// Largest number of images of the reference for drift.
const MAX_REFERENCE_IMAGES: usize = 2000;
/// Images per pass.
const BATCH_SIZE: usize = 32;

/// Settings of [`Checkpoint::calibrated`].
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    /// The device that runs the network.
    pub device: Device,
    /// The source head's classes that contain the model's, for [`OodScore::SourceClasses`]. `None` keeps those that the
    /// model already has; without any, [`OodScore::Prototypes`] is used.
    pub source_classes: Option<ClassSet>,
}

impl Checkpoint {
    /// Calibrates a model on validation images. Chooses the temperature (Guo et al., "On calibration of modern neural
    /// networks", 2017); the confidence threshold at which 99 % of the answers are right, or for a multi-label model the
    /// threshold of the highest F1 of each class; and the out-of-distribution threshold that accepts 98 % of the images.
    /// Stores the statistics of the images as the reference of [`drift`](crate::drift).
    ///
    /// ```no_run
    /// use petnet::{Calibration, Checkpoint, Dataset, Precision};
    ///
    /// let (train, valid) = Dataset::open("photos")?.split(0.8)?;
    /// let model = Checkpoint::load("mine.safetensors")?;
    /// let model = model.calibrated(&train, &valid, &Calibration::default())?;
    /// model.save("mine.safetensors", Precision::F32)?;
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::evaluate`]; [`Error::Checkpoint`](crate::Error::Checkpoint) for classes that the source head
    /// does not have.
    pub fn calibrated(
        self,
        train: &Dataset,
        valid: &Dataset,
        calibration: &Calibration,
    ) -> Result<Self> {
        let classes = calibration.source_classes.clone().or_else(|| self.source_classes());
        let uncalibrated =
            Confidence { task: self.info().task.clone(), temperature: 1.0, threshold: 0.0 };
        let model = self.with_calibration(uncalibrated, None, None)?;
        let classifier = Classifier::new(model.clone(), calibration.device)?;
        let held_out = Images::of(&classifier, valid)?;
        let confidence = held_out.confidence(&model.info().task);
        let (score, values) = match classes {
            Some(classes) => (OodScore::SourceClasses { classes }, None),
            None => {
                let (score, values) = prototype_score(&classifier, train)?;
                (score, Some(values))
            }
        };
        let accept_all = OutOfDistribution { score, threshold: f32::MAX };
        let model =
            model.with_calibration(confidence.clone(), Some(accept_all.clone()), values.clone())?;
        let threshold = model.detector()?.map_or(f32::MAX, |detector| {
            let scores = held_out.outputs.iter().map(|outputs| detector.score(outputs));
            quantile(scores.collect(), IN_DISTRIBUTION_SHARE)
        });
        let ood = OutOfDistribution { threshold, ..accept_all };
        let model = model.with_calibration(confidence, Some(ood), values)?;
        let reference = statistics(&Classifier::new(model.clone(), calibration.device)?, valid)?;
        Ok(model.with_reference(Some(reference)))
    }

    /// The source head's classes of the model's out-of-distribution score.
    fn source_classes(&self) -> Option<ClassSet> {
        match &self.info().ood.as_ref()?.score {
            OodScore::SourceClasses { classes } => Some(classes.clone()),
            OodScore::Prototypes { .. } => None,
        }
    }
}

/// Outputs and classes of some images.
struct Images {
    outputs: Vec<Outputs>,
    truth: Vec<Target>,
}

impl Images {
    fn of(classifier: &Classifier, dataset: &Dataset) -> Result<Self> {
        if dataset.is_multi_label() && classifier.info().task.is_single_label() {
            return Err(Error::Dataset("the data is multi-label, the model is not".into()));
        }
        let dataset = dataset.clone().with_labels(classifier.labels())?;
        let mut images = Self { outputs: Vec::new(), truth: Vec::new() };
        classifier.each_output(&dataset, Augment::none(), |outputs, target| {
            images.outputs.push(outputs);
            images.truth.push(target.clone());
        })?;
        Ok(images)
    }

    /// For single-label images, the temperature and the confidence threshold; for multi-label ones, the temperature and the
    /// thresholds that give each class its highest F1.
    fn confidence(&self, task: &Task) -> Confidence {
        let logits: Vec<&[f32]> = self.outputs.iter().map(|o| o.logits.as_slice()).collect();
        let probabilities = |temperature| -> Vec<Vec<f32>> {
            logits.iter().map(|logits| task.probabilities(logits, temperature)).collect()
        };
        match task {
            Task::SingleLabel => {
                let truth: Vec<usize> = self.truth.iter().filter_map(Target::class).collect();
                let temperature = fit::temperature(&probabilities(1.0), &truth);
                let threshold =
                    fit::confidence_threshold(ANSWER_ACCURACY, &probabilities(temperature), &truth);
                Confidence {
                    task: Task::SingleLabel,
                    temperature,
                    threshold: threshold.unwrap_or(1.0),
                }
            }
            Task::MultiLabel { thresholds } => {
                let truth: Vec<Vec<usize>> =
                    self.truth.iter().map(|target| target.classes().to_vec()).collect();
                let temperature = fit::sigmoid_temperature(&logits, &truth);
                let rows = probabilities(temperature);
                let thresholds =
                    fit::best_f1_thresholds(&rows, &truth, thresholds.len(), DEFAULT_THRESHOLD);
                Confidence { task: Task::MultiLabel { thresholds }, temperature, threshold: 0.0 }
            }
        }
    }

    /// The class of each image, the first one of several; `classes` for an image without any.
    fn first_classes(&self, classes: usize) -> Vec<usize> {
        let first = |target: &Target| target.classes().first().copied().unwrap_or(classes);
        self.truth.iter().map(first).collect()
    }
}

/// A score by prototypes of training images, and the prototypes.
fn prototype_score(
    classifier: &Classifier,
    train: &Dataset,
) -> Result<(OodScore, (String, Weight))> {
    let known = Images::of(classifier, &train.at_most(MAX_PROTOTYPE_IMAGES))?;
    let rows: Vec<&[f32]> = known.outputs.iter().map(embedding).collect();
    let classes = classifier.labels().len();
    let kinds = if train.is_multi_label() { classes + 1 } else { classes };
    Ok(prototypes(&rows, &known.first_classes(classes), kinds))
}

/// The quantile of some values: the smallest of them that a share of them does not exceed.
fn quantile(mut values: Vec<f32>, share: f64) -> f32 {
    values.sort_by(f32::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f32::MAX)
}

/// Statistics of images, measured as in the service.
fn statistics(classifier: &Classifier, images: &Dataset) -> Result<Reference> {
    let images = images.at_most(MAX_REFERENCE_IMAGES);
    let indices: Vec<usize> = (0..images.len()).collect();
    let mut samples = Vec::with_capacity(indices.len());
    for batch in indices.chunks(BATCH_SIZE) {
        let inspected = batch.par_iter().map(|&index| {
            let (pixels, statistics) = classifier.inspect(&images.read(index)?)?;
            // Prepared images are smaller than those that the service receives: the original size is taken.
            let own = images.samples()[index].size;
            Ok((pixels, own.map_or(statistics, |size| statistics.with_size(size))))
        });
        let (pixels, statistics): (Vec<_>, Vec<_>) =
            inspected.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let predictions = classifier.classify_pixels(&pixels)?;
        let pairs = predictions.iter().zip(&statistics);
        samples.extend(pairs.map(|(prediction, image)| DriftSample::of(prediction, image)));
    }
    Ok(Reference::learn(&samples))
}
