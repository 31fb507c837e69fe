//! A network over a whole data set: probabilities, truth and the figures that follow.

use serde::Serialize;

use crate::augment::Augment;
use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::engine::Outputs;
use crate::error::Result;
use crate::loader::{Loader, LoaderSettings};
use crate::metrics::{Metrics, argmax};
use crate::prediction::softmax;

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
    /// Whether the model would answer, and not say that it is unsure.
    pub sure: Vec<bool>,
    classes: usize,
}

/// What a model that may be unsure answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coverage {
    /// Share of the photos that get an answer.
    pub share: f64,
    /// Share of those answers that are right.
    pub accuracy: f64,
}

impl Evaluation {
    /// All figures.
    pub fn metrics(&self) -> Metrics {
        Metrics::compute(&self.probabilities, &self.truth, self.classes)
    }

    /// Figures of the answers that are not "unsure".
    pub fn coverage(&self) -> Coverage {
        let rows = self.probabilities.iter().zip(&self.truth).zip(&self.sure);
        let given: Vec<bool> = rows
            .filter(|(_, sure)| **sure)
            .map(|((row, truth), _)| argmax(row) == *truth)
            .collect();
        let right = given.iter().filter(|right| **right).count();
        Coverage {
            share: given.len() as f64 / self.truth.len().max(1) as f64,
            accuracy: right as f64 / given.len().max(1) as f64,
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
        let settings = LoaderSettings {
            batch_size: BATCH,
            workers: 1,
            cache_bytes: 0,
            preprocess: self.info().preprocess,
            augment: Augment::none(),
            seed: 0,
            shuffle: false,
        };
        let loader = Loader::new(&dataset, settings);
        let run = |pixels| self.runner().run(pixels);
        let mut evaluation =
            run_over(&loader, self.labels().len(), (&run, self.info().temperature), &progress)?;
        let answers = evaluation.features.iter().zip(&evaluation.probabilities);
        evaluation.sure =
            answers.map(|(features, row)| self.judged(features, row.clone()).is_sure()).collect();
        Ok(evaluation)
    }
}

/// Pictures, `[count, size, size, 3]`, to what a network says of each.
type Run<'a> = dyn Fn(Vec<u8>) -> Result<Vec<Outputs>> + 'a;

pub(crate) fn run_over(
    loader: &Loader,
    classes: usize,
    (run, temperature): (&Run<'_>, f32),
    progress: &dyn Fn(usize),
) -> Result<Evaluation> {
    let mut evaluation = Evaluation { classes, ..Evaluation::default() };
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let photos = batch.targets.len();
        for Outputs { logits, features } in run(batch.images)? {
            evaluation.probabilities.push(softmax(&logits, temperature));
            evaluation.features.push(features);
        }
        evaluation.truth.extend(batch.targets);
        evaluation.sure.resize(evaluation.truth.len(), true);
        progress(photos);
    }
    Ok(evaluation)
}
