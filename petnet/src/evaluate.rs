//! A network over a whole data set: probabilities, truth and the figures that follow.

use serde::Serialize;

use crate::augment::Augment;
use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::engine::Outputs;
use crate::error::Result;
use crate::loader::{Loader, LoaderSettings};
use crate::metrics::{Metrics, argmax};
use crate::prediction::{Decision, Prediction};

const BATCH: usize = 64;

/// What a network said about every photo of a data set.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// # let folder = tempfile::tempdir().unwrap();
/// # for class in ["cat", "dog"] {
/// #     std::fs::create_dir(folder.path().join(class)).unwrap();
/// #     for number in 0..4_u8 {
/// #         let colour = image::Rgb([number * 60, 90, class.as_bytes()[0]]);
/// #         let photo = image::RgbImage::from_pixel(16, 16, colour);
/// #         photo.save(folder.path().join(class).join(format!("{number}.png"))).unwrap();
/// #     }
/// # }
/// # let photos = folder.path();
/// use petnet::{Classifier, Dataset};
///
/// let evaluation = Classifier::pretrained()?.evaluate(&Dataset::open(photos)?, |_| ())?;
/// let metrics = evaluation.metrics();
/// println!("{:.1} % right, {:?}", metrics.accuracy * 100.0, metrics.confusion_matrix);
/// assert_eq!(metrics.num_samples, 8);
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    /// A row a photo, a column a class.
    pub probabilities: Vec<Vec<f32>>,
    /// A row a photo: what the network saw in it, the means of its last maps.
    pub features: Vec<Vec<f32>>,
    /// True class of each photo.
    pub truth: Vec<usize>,
    /// Answered or unsure, and why, of each image.
    pub decisions: Vec<Decision>,
    /// Out-of-distribution score of each image; empty where the model has none.
    pub ood_scores: Vec<f32>,
    classes: usize,
}

/// What a model that may be unsure answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coverage {
    /// Share of the photos that get an answer.
    pub share: f64,
    /// Share of those answers that are right.
    pub accuracy: f64,
    /// Share of the images that are unsure for their confidence.
    pub low_confidence: f64,
    /// Share of the images that are unsure because they are not like those of the training.
    pub out_of_distribution: f64,
}

impl Evaluation {
    /// All figures.
    pub fn metrics(&self) -> Metrics {
        Metrics::compute(&self.probabilities, &self.truth, self.classes)
    }

    /// Figures of the answers that are not "unsure".
    pub fn coverage(&self) -> Coverage {
        let rows = self.probabilities.iter().zip(&self.truth).zip(&self.decisions);
        let given: Vec<bool> = rows
            .filter(|(_, decision)| **decision == Decision::Answered)
            .map(|((row, truth), _)| argmax(row) == *truth)
            .collect();
        let right = given.iter().filter(|right| **right).count();
        let all = self.truth.len().max(1) as f64;
        let share = |wanted| {
            let decisions = self.decisions.iter().filter(|decision| **decision == wanted);
            decisions.count() as f64 / all
        };
        Coverage {
            share: given.len() as f64 / all,
            accuracy: right as f64 / given.len().max(1) as f64,
            low_confidence: share(Decision::LowConfidence),
            out_of_distribution: share(Decision::OutOfDistribution),
        }
    }
}

impl Classifier {
    /// Classifies every photo of a data set whose classes are the model's, in the data set's
    /// order. `progress` hears how many photos each batch had.
    ///
    /// # Errors
    /// [`Error::Dataset`](crate::Error::Dataset) when a class is unknown to the model; what photos and
    /// device refuse.
    pub fn evaluate(&self, dataset: &Dataset, progress: impl Fn(usize)) -> Result<Evaluation> {
        let dataset = dataset.clone().with_labels(self.labels())?;
        let mut evaluation = Evaluation { classes: self.labels().len(), ..Evaluation::default() };
        self.each_output(&dataset, Augment::none(), |outputs, class| {
            let prediction = self.prediction(&outputs);
            evaluation.probabilities.push(prediction.probabilities);
            evaluation.decisions.push(prediction.decision);
            evaluation.ood_scores.extend(prediction.ood_score);
            evaluation.features.push(outputs.features);
            evaluation.truth.push(class);
            progress(1);
        })?;
        Ok(evaluation)
    }

    /// Classifies every image of a data set whose classes may be any, in the data set's order. `progress` hears of
    /// each image.
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

    /// Runs the network on every image of a data set, in its order; `seen` takes its outputs and its class.
    pub(crate) fn each_output(
        &self,
        dataset: &Dataset,
        augment: Augment,
        mut seen: impl FnMut(Outputs, usize),
    ) -> Result<()> {
        let settings = LoaderSettings {
            batch_size: BATCH,
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
            outputs
                .into_iter()
                .zip(batch.targets)
                .for_each(|(outputs, class)| seen(outputs, class));
        }
        Ok(())
    }
}
