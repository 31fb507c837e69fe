//! Outputs of the network for an image, and the durations of the stages that led to them.

use std::time::{Duration, Instant};

use petnet::Prediction;
use petnet::drift::ImageStatistics;

/// Durations of the stages of one image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timings {
    pub(crate) decode: Stage,
    pub(crate) queue: Stage,
    /// From the start of the batch to this output.
    pub(crate) batch: Stage,
    pub(crate) model: Stage,
    /// Number of images in the pass through the network, as in the metric `batch_size`; 1 for an image to explain.
    pub(crate) batch_size: usize,
}

/// Start and duration of one stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) began: Instant,
    pub(crate) duration: Duration,
}

impl Stage {
    pub(crate) fn since(began: Instant) -> Self {
        Self { began, duration: began.elapsed() }
    }
}

/// An output of the network, and the image that it belongs to.
pub(crate) struct ModelOutput<T> {
    pub(crate) value: T,
    /// `None` for an output from the prediction cache.
    pub(crate) timings: Option<Timings>,
    pub(crate) metadata: ImageMetadata,
}

/// Outputs of one pass through the network.
#[derive(Clone)]
pub(crate) struct Classification {
    pub(crate) prediction: Prediction,
    /// The features, of norm 1: a by-product of the prediction.
    pub(crate) embedding: Vec<f32>,
}

/// The metadata of an image, which is kept after its pixels are dropped.
#[derive(Clone)]
pub(crate) struct ImageMetadata {
    pub(crate) statistics: ImageStatistics,
    /// SHA-256 of its bytes in hex; `None` where feedback is off.
    pub(crate) sha256: Option<String>,
}
