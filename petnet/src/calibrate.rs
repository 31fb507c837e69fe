//! After training: temperature, confidence threshold and out-of-distribution score, each chosen apart.

use rayon::prelude::*;

use crate::augment::Augment;
use crate::checkpoint::Checkpoint;
use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::device::Device;
use crate::drift::{DriftSample, Reference};
use crate::engine::Outputs;
use crate::error::Result;
use crate::metrics::{confidence_for, temperature_for};
use crate::ood::{ClassSet, OodScore, OutOfDistribution, embedding, prototypes};
use crate::prediction::softmax;
use crate::weights::Weight;

/// Share of the answers above the confidence threshold that must be right on validation images.
const RIGHT: f64 = 0.99;
/// Share of validation images that are in distribution.
const IN_DISTRIBUTION: f64 = 0.98;
/// Training images that are enough to know where features lie.
const ENOUGH: usize = 4000;
/// Images that are enough to know the statistics of images, for drift.
const MEASURED: usize = 2000;
/// Images a pass.
const BATCH: usize = 32;

/// Settings of [`Checkpoint::calibrated`].
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    /// The device that runs the network.
    pub device: Device,
    /// The source head's classes that contain the model's, for [`OodScore::SourceClasses`]. `None` keeps those of the
    /// model, or else takes [`OodScore::Prototypes`].
    pub source_classes: Option<ClassSet>,
}

impl Checkpoint {
    /// Chooses by validation images the temperature (Guo et al., "On calibration of modern neural networks", 2017), the
    /// confidence threshold above which 99 % of answers are right, and the out-of-distribution threshold below which
    /// 98 % of them are; and measures their statistics, for [`drift`](crate::drift).
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
        let plain = self.with_calibration((1.0, 0.0), None, None)?;
        let classifier = Classifier::new(plain.clone(), calibration.device)?;
        let held_out = Images::of(&classifier, valid)?;
        let probabilities =
            |temperature| held_out.outputs.iter().map(move |o| softmax(&o.logits, temperature));
        let temperature = temperature_for(&probabilities(1.0).collect::<Vec<_>>(), &held_out.truth);
        let rows: Vec<Vec<f32>> = probabilities(temperature).collect();
        let threshold = confidence_for(RIGHT, &rows, &held_out.truth).unwrap_or(1.0);
        let (score, values) = match classes {
            Some(classes) => (OodScore::SourceClasses { classes }, None),
            None => {
                let (score, values) = learned(&classifier, train)?;
                (score, Some(values))
            }
        };
        let open = OutOfDistribution { score, threshold: f32::MAX };
        let model =
            plain.with_calibration((temperature, threshold), Some(open.clone()), values.clone())?;
        let threshold_of = model.detector()?.map_or(f32::MAX, |detector| {
            let scores = held_out.outputs.iter().map(|outputs| detector.score(outputs));
            quantile(scores.collect(), IN_DISTRIBUTION)
        });
        let ood = OutOfDistribution { threshold: threshold_of, ..open };
        let model = model.with_calibration((temperature, threshold), Some(ood), values)?;
        let reference = statistics(&Classifier::new(model.clone(), calibration.device)?, valid)?;
        Ok(model.with_reference(Some(reference)))
    }
}

impl Checkpoint {
    /// The source head's classes that its out-of-distribution score knows.
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
    truth: Vec<usize>,
}

impl Images {
    fn of(classifier: &Classifier, dataset: &Dataset) -> Result<Self> {
        let dataset = dataset.clone().with_labels(classifier.labels())?;
        let mut images = Self { outputs: Vec::new(), truth: Vec::new() };
        classifier.each_output(&dataset, Augment::none(), |outputs, class| {
            images.outputs.push(outputs);
            images.truth.push(class);
        })?;
        Ok(images)
    }
}

/// A score by prototypes of training images, and the prototypes.
fn learned(classifier: &Classifier, train: &Dataset) -> Result<(OodScore, (String, Weight))> {
    let known = Images::of(classifier, &train.every(train.len().div_ceil(ENOUGH)))?;
    let rows: Vec<&[f32]> = known.outputs.iter().map(embedding).collect();
    Ok(prototypes(&rows, &known.truth, classifier.labels().len()))
}

/// The value that a share of some values does not exceed.
fn quantile(mut values: Vec<f32>, share: f64) -> f32 {
    values.sort_by(f32::total_cmp);
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.saturating_sub(1)).copied().unwrap_or(f32::MAX)
}

/// Statistics of images as they are taken in service.
fn statistics(classifier: &Classifier, images: &Dataset) -> Result<Reference> {
    let images = images.every(images.len().div_ceil(MEASURED));
    let places: Vec<usize> = (0..images.len()).collect();
    let mut samples = Vec::with_capacity(places.len());
    for batch in places.chunks(BATCH) {
        let inspected = batch.par_iter().map(|&place| {
            let (pixels, statistics) = classifier.inspect(&images.read(place)?)?;
            // A prepared image is smaller than those that come in.
            let own = images.samples()[place].size;
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
