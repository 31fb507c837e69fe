//! After training: what makes a model's confidence honest, and lets it say that it does not know.

use rayon::prelude::*;

use crate::checkpoint::Checkpoint;
use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::device::Device;
use crate::drift::{Look, Reference};
use crate::error::Result;
use crate::metrics::{confidence_for, temperature_for};
use crate::novelty::Novelty;
use crate::prediction::softmax;

/// Share of the answers that a model calls sure that must be right on validation photos.
const SURE: f64 = 0.99;
/// Share of validation photos that are familiar.
const FAMILIAR: f64 = 0.98;
/// Training photos that are enough to know where features lie.
const ENOUGH: usize = 4000;

/// Photos that are enough to know what photos are like.
const LOOKED_AT: usize = 2000;
/// Photos a pass.
const BATCH: usize = 32;

impl Checkpoint {
    /// Chooses by validation photos the temperature (Guo et al., "On calibration of modern neural
    /// networks", 2017), the threshold above which 99 % of answers are right, and, from training
    /// photos, what is familiar; and notes what validation photos are like, for [`drift`](crate::drift).
    ///
    /// ```no_run
    /// use petnet::{Checkpoint, Dataset, Device, Precision};
    ///
    /// let (train, valid) = Dataset::open("photos")?.split(0.8)?;
    /// let model = Checkpoint::load("mine.safetensors")?.calibrated(&train, &valid, Device::Cpu)?;
    /// model.save("mine.safetensors", Precision::F32)?;
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::evaluate`].
    pub fn calibrated(self, train: &Dataset, valid: &Dataset, device: Device) -> Result<Self> {
        let plain = self.with_calibration(1.0, 0.0, None)?;
        let classifier = Classifier::new(plain.clone(), device)?;
        let known = classifier.evaluate(&train.every(train.len().div_ceil(ENOUGH)), |_| ())?;
        let held_out = classifier.evaluate(valid, |_| ())?;
        let temperature = temperature_for(&held_out.probabilities, &held_out.truth);
        let classes = plain.info().labels.len();
        let features = (known.features.as_slice(), known.truth.as_slice());
        let novelty = Novelty::learn(features, &held_out.features, classes, FAMILIAR);
        // Logarithms of probabilities are logits, but for a constant that softmax does not see.
        let logits = |row: &Vec<f32>| row.iter().map(|p| p.max(1e-30).ln()).collect::<Vec<f32>>();
        let warm = held_out.probabilities.iter().map(|row| softmax(&logits(row), temperature));
        let threshold = confidence_for(SURE, &warm.collect::<Vec<_>>(), &held_out.truth);
        let calibrated =
            plain.with_calibration(temperature, threshold.unwrap_or(1.0), Some(novelty))?;
        let reference = look(&Classifier::new(calibrated.clone(), device)?, valid)?;
        Ok(calibrated.with_reference(Some(reference)))
    }
}

/// What photos are like, by the way that they take in service.
fn look(classifier: &Classifier, photos: &Dataset) -> Result<Reference> {
    let photos = photos.every(photos.len().div_ceil(LOOKED_AT));
    let places: Vec<usize> = (0..photos.len()).collect();
    let mut looks = Vec::with_capacity(places.len());
    for batch in places.chunks(BATCH) {
        let inspected = batch.par_iter().map(|&place| {
            let (pixels, traits) = classifier.inspect(&photos.read(place)?)?;
            // A prepared photo is smaller than those that come in.
            let own = photos.samples()[place].size;
            Ok((pixels, own.map_or(traits, |size| traits.with_size(size))))
        });
        let (pixels, traits): (Vec<_>, Vec<_>) =
            inspected.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let predictions = classifier.classify_pixels(&pixels)?;
        looks.extend(predictions.iter().zip(&traits).map(|(p, traits)| Look::of(p, traits)));
    }
    Ok(Reference::learn(&looks))
}
