//! The entry point for inference: bytes, a path or a batch -> [`Prediction`].

use std::path::Path;

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::device::Device;
use crate::drift::ImageStatistics;
use crate::engine::Outputs;
use crate::error::{Error, Result};
use crate::metrics::argmax;
use crate::ood::Detector;
use crate::prediction::{Decision, Prediction};
use crate::preprocess::{Limits, Pixels};
use crate::runner::Runner;
use crate::task::Task;

/// A trained network with its preprocessing and its decisions. It can be shared between threads.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
#[doc = include_str!("doc_image.txt")]
/// let classifier = petnet::Classifier::pretrained()?;
/// let prediction = classifier.classify_bytes(&image)?;
/// println!("{} {:.2}", prediction.label(), prediction.confidence());
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    info: ModelInfo,
    detector: Option<Detector>,
    runner: Runner,
    limits: Limits,
    parameters: usize,
    mirrors: bool,
}

impl Classifier {
    /// The cat-or-dog network that ships inside the crate, on the CPU.
    ///
    /// # Errors
    /// None, unless the build is damaged: [`Error::Checkpoint`].
    #[cfg(feature = "pretrained")]
    pub fn pretrained() -> Result<Self> {
        Self::new(Checkpoint::pretrained()?, Device::Cpu)
    }

    /// A model from a file, on the CPU.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Checkpoint::load(path)?, Device::Cpu)
    }

    /// A model on a device.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is not available, [`Error::Checkpoint`] when the weights do
    /// not fit the architecture.
    pub fn new(checkpoint: Checkpoint, device: Device) -> Result<Self> {
        let parameters = checkpoint.parameters();
        let detector = checkpoint.detector()?;
        let (info, runner) = Runner::new(checkpoint, device)?;
        Ok(Self { info, detector, runner, limits: Limits::default(), parameters, mirrors: false })
    }

    /// Sets the limits of decoding.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Test-time augmentation: with `mirrors`, each image's logits, features and scores are means over the image and
    /// its mirror image, which takes twice the network's time. Heat maps are those of the image alone.
    #[must_use]
    pub fn with_mirrors(self, mirrors: bool) -> Self {
        Self { mirrors, ..self }
    }

    /// The model's description.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Number of stored values, batch-norm statistics included.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Class names in the order of [`Prediction::probabilities`].
    pub fn labels(&self) -> &[String] {
        &self.info.labels
    }

    /// Classifies an image on disk.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::ImageFile`], both naming the path.
    pub fn classify_path(&self, path: impl AsRef<Path>) -> Result<Prediction> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let pixels = self.preprocess(&bytes).map_err(|e| match e {
            Error::Image(source) => Error::ImageFile { path: path.into(), source },
            other => other,
        })?;
        self.classify_one(pixels)
    }

    /// Classifies an encoded image (JPEG, PNG, WebP, GIF or BMP).
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn classify_bytes(&self, bytes: &[u8]) -> Result<Prediction> {
        self.classify_one(self.preprocess(bytes)?)
    }

    /// Classifies many images in one pass through the network. The results are in the order of the images; one that cannot
    /// be decoded does not affect the others.
    pub fn classify_batch<B: AsRef<[u8]>>(&self, images: &[B]) -> Vec<Result<Prediction>> {
        let mut pixels = Vec::new();
        let decoded = images.iter().map(|image| self.preprocess(image.as_ref()));
        let decoded: Vec<Result<()>> =
            decoded.map(|image| image.map(|image| pixels.push(image))).collect();
        let mut predictions = match self.classify_pixels(&pixels) {
            Ok(predictions) => predictions.into_iter(),
            Err(error) => {
                let reason = error.to_string();
                let failed = |()| Err(Error::Device(reason.clone()));
                return decoded.into_iter().map(|image| image.and_then(failed)).collect();
            }
        };
        let mut next = || predictions.next().ok_or_else(missing_output);
        decoded.into_iter().map(|image| image.and_then(|()| next())).collect()
    }

    /// Decodes an image and resizes it to the network's input, for [`Classifier::classify_pixels`].
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn preprocess(&self, bytes: &[u8]) -> Result<Pixels> {
        Ok(self.info.preprocess.run(bytes, &self.limits)?)
    }

    /// [`Classifier::preprocess`], and the image's statistics, for [`drift`](crate::drift).
    ///
    /// # Errors
    /// [`Error::Image`].
    pub fn inspect(&self, bytes: &[u8]) -> Result<(Pixels, ImageStatistics)> {
        let (pixels, original_size) = self.info.preprocess.run_measured(bytes, &self.limits)?;
        let statistics = ImageStatistics::of(&pixels, original_size);
        Ok((pixels, statistics))
    }

    /// Classifies images that [`Classifier::preprocess`] made.
    ///
    /// # Errors
    /// [`Error::Config`] when an image has another size than the model's,
    /// [`Error::Device`] when the device fails.
    pub fn classify_pixels(&self, images: &[Pixels]) -> Result<Vec<Prediction>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(images)?;
        let outputs = self.outputs(bytes)?;
        Ok(outputs.iter().map(|outputs| self.prediction(outputs)).collect())
    }

    /// Outputs of the network for images, `[n, size, size, 3]` bytes.
    pub(crate) fn outputs(&self, images: Vec<u8>) -> Result<Vec<Outputs>> {
        if !self.mirrors {
            return self.runner.run(images);
        }
        let mirrored = mirrored(&images, self.info.preprocess.size as usize);
        let outputs = self.runner.run(images)?;
        let mirrored = self.runner.run(mirrored)?;
        Ok(outputs.into_iter().zip(mirrored).map(|(own, other)| own.mean(&other)).collect())
    }

    /// The bytes of images, `[n, size, size, 3]`.
    pub(crate) fn bytes(&self, images: &[Pixels]) -> Result<Vec<u8>> {
        images.iter().try_for_each(|image| self.check_size(image))?;
        Ok(images.iter().map(Pixels::data).collect::<Vec<_>>().concat())
    }

    pub(crate) fn check_size(&self, image: &Pixels) -> Result<()> {
        let (size, width, height) = (self.info.preprocess.size, image.width(), image.height());
        if (width, height) == (size, size) {
            return Ok(());
        }
        Err(Error::Config(format!(
            "an image is {width} x {height}, the model takes {size} x {size}"
        )))
    }

    pub(crate) fn runner(&self) -> &Runner {
        &self.runner
    }

    fn classify_one(&self, pixels: Pixels) -> Result<Prediction> {
        let mut one = self.classify_pixels(std::slice::from_ref(&pixels))?;
        one.pop().ok_or_else(missing_output)
    }

    pub(crate) fn prediction(&self, outputs: &Outputs) -> Prediction {
        let probabilities = self.info.task.probabilities(&outputs.logits, self.info.temperature);
        let index = argmax(&probabilities);
        let detector = self.detector.as_ref();
        let ood_score = detector.map(|detector| detector.score(outputs));
        let accepted =
            detector.zip(ood_score).is_none_or(|(detector, score)| detector.accepts(score));
        let classes = match &self.info.task {
            Task::SingleLabel => None,
            Task::MultiLabel { thresholds } => Some(self.reached(&probabilities, thresholds)),
        };
        let decision = match (accepted, probabilities[index] >= self.info.threshold) {
            (false, _) => Decision::OutOfDistribution,
            (true, false) => Decision::LowConfidence,
            (true, true) => Decision::Answered,
        };
        let label = self.info.labels[index].clone();
        Prediction { label, index, probabilities, classes, ood_score, decision }
    }

    /// Indices and names of the classes whose probability reaches their threshold, likeliest first.
    fn reached(&self, probabilities: &[f32], thresholds: &[f32]) -> (Vec<usize>, Vec<String>) {
        let reached = |class: &usize| probabilities[*class] >= thresholds[*class];
        let mut classes: Vec<usize> = (0..probabilities.len()).filter(reached).collect();
        classes.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        let names = classes.iter().map(|class| self.info.labels[*class].clone()).collect();
        (classes, names)
    }
}

/// The error of a device that returned fewer outputs than there were images.
pub(crate) fn missing_output() -> Error {
    Error::Device("an output is missing".into())
}

/// Images mirrored left to right, `[n, size, size, 3]` bytes.
fn mirrored(images: &[u8], size: usize) -> Vec<u8> {
    let rows = images.chunks_exact(size * 3);
    rows.flat_map(|row| row.as_chunks::<3>().0.iter().rev().flatten()).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::mirrored;

    #[test]
    fn mirror_images_keep_their_rows_and_colours() {
        let images: Vec<u8> = (0..24).collect();
        let expected = [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8];
        assert_eq!(mirrored(&images, 2)[..12], expected);
        assert_eq!(mirrored(&mirrored(&images, 2), 2), images);
    }
}
