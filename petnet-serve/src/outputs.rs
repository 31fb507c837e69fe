//! Outputs of the network for an image, and the time that each stage took.

use std::time::{Duration, Instant};

use petnet::Prediction;
use petnet::drift::ImageStatistics;

/// The time that a photo spent in each stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timings {
    pub(crate) decode: Stage,
    pub(crate) queue: Stage,
    /// From the batch's beginning to this answer.
    pub(crate) batch: Stage,
    pub(crate) model: Stage,
    /// Photos in the batch.
    pub(crate) photos: usize,
}

/// A part of a photo's way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

impl Stage {
    pub(crate) fn since(began: Instant) -> Self {
        Self { began, took: began.elapsed() }
    }
}

/// An output of the network, and its photo.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    /// `None` of an answer that was known.
    pub(crate) timings: Option<Timings>,
    pub(crate) photo: Photo,
}

/// Outputs of one pass through the network.
#[derive(Clone)]
pub(crate) struct Classified {
    pub(crate) prediction: Prediction,
    /// The features, of norm 1: a by-product of the prediction.
    pub(crate) embedding: Vec<f32>,
}

/// The facts of a photo that outlast its pixels.
#[derive(Clone)]
pub(crate) struct Photo {
    pub(crate) statistics: ImageStatistics,
    /// Of its bytes, in hex; where it is kept.
    pub(crate) sha256: Option<String>,
}
