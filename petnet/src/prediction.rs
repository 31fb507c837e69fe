//! The answer for one image. Knows no network.

use std::fmt;

/// Probabilities that sum to 1.
pub(crate) fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    // Relative to the largest, no exponential overflows.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|z| ((z - largest) / temperature).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The answer for one photo. Displays as `dog (98 %)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    pub(crate) label: String,
    pub(crate) index: usize,
    pub(crate) probabilities: Vec<f32>,
    pub(crate) novelty: Option<f32>,
    pub(crate) familiar: bool,
    pub(crate) sure: bool,
}

impl Prediction {
    #[cfg(test)]
    pub(crate) fn new(label: String, index: usize, probabilities: Vec<f32>) -> Self {
        Self { label, index, probabilities, novelty: None, familiar: true, sure: true }
    }

    /// Name of the likeliest class.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its place among [`Classifier::labels`](crate::Classifier::labels).
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its probability, 0 to 1.
    pub fn confidence(&self) -> f32 {
        self.probabilities[self.index]
    }

    /// How far the photo is from those that the model knows, see [`Novelty::distance`]; absent
    /// where the model never learned it.
    ///
    /// [`Novelty::distance`]: crate::Novelty::distance
    pub fn novelty(&self) -> Option<f32> {
        self.novelty
    }

    /// Whether the photo is like those that the model knows.
    pub fn is_familiar(&self) -> bool {
        self.familiar
    }

    /// Whether the photo is familiar and the confidence reaches [`ModelInfo::threshold`](crate::ModelInfo::threshold).
    pub fn is_sure(&self) -> bool {
        self.sure
    }

    /// One probability a class; they sum to 1.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounding down keeps "100 %" for the certain.
        write!(f, "{} ({:.0} %)", self.label, (self.confidence() * 100.0).floor())
    }
}
