//! A network over a whole data set: probabilities, truth and the figures that follow.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

use crate::augment::Augment;
use crate::classifier::{Classifier, numbers, to_tensor};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::loader::{Loader, LoaderSettings};
use crate::metrics::Metrics;
use crate::model::Network;

const BATCH: usize = 64;

/// What a network said about every photo of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// A row a photo, a column a class.
    pub probabilities: Vec<Vec<f32>>,
    /// True class of each photo.
    pub truth: Vec<usize>,
    classes: usize,
}

impl Evaluation {
    /// All figures.
    pub fn metrics(&self) -> Metrics {
        Metrics::compute(&self.probabilities, &self.truth, self.classes)
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
        run(self.network(), &loader, self.labels().len(), self.device(), &progress)
    }
}

pub(crate) fn run(
    network: &Network,
    loader: &Loader,
    classes: usize,
    device: &Device,
    progress: &dyn Fn(usize),
) -> Result<Evaluation> {
    let mut evaluation = Evaluation { probabilities: Vec::new(), truth: Vec::new(), classes };
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let photos = batch.targets.len();
        let images = to_tensor(batch.images, photos, loader.size(), device); // [n, 3, s, s]
        evaluation.probabilities.extend(rows(softmax(network.forward(images), 1))?);
        evaluation.truth.extend(batch.targets);
        progress(photos);
    }
    Ok(evaluation)
}

/// `[n, classes]` -> a vector a row.
pub(crate) fn rows(tensor: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, columns] = tensor.dims();
    Ok(numbers(tensor)?.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
}
