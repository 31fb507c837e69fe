//! The task of a model: single-label or multi-label classification.

use serde::{Deserialize, Serialize};

use crate::prediction::softmax;

/// Longest name of a class in bytes: each answer of a service repeats all of them.
pub(crate) const MAX_LABEL_BYTES: usize = 256;
/// Threshold of each class before thresholds are chosen in calibration.
#[cfg(any(test, feature = "train"))]
pub(crate) const DEFAULT_THRESHOLD: f32 = 0.5;

/// The task of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Exactly one class per image. Probabilities are the softmax of the logits: they sum to 1.
    #[default]
    SingleLabel,
    /// Any number of classes per image, or none. The probability of each class is the sigmoid of its logit.
    MultiLabel {
        /// The least probability of each class, 0 to 1, at which it is predicted.
        thresholds: Vec<f32>,
    },
}

impl Task {
    /// The multi-label task before thresholds are chosen.
    #[cfg(any(test, feature = "train"))]
    pub(crate) fn multi_label(classes: usize) -> Self {
        Self::MultiLabel { thresholds: vec![DEFAULT_THRESHOLD; classes] }
    }

    /// True where an image has exactly one class.
    pub fn is_single_label(&self) -> bool {
        matches!(self, Self::SingleLabel)
    }

    /// `single_label` or `multi_label`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SingleLabel => "single_label",
            Self::MultiLabel { .. } => "multi_label",
        }
    }

    /// The thresholds of a multi-label model, one per class.
    pub fn thresholds(&self) -> Option<&[f32]> {
        match self {
            Self::SingleLabel => None,
            Self::MultiLabel { thresholds } => Some(thresholds),
        }
    }

    /// One probability per class; the logits are divided by the temperature first.
    pub(crate) fn probabilities(&self, logits: &[f32], temperature: f32) -> Vec<f32> {
        match self {
            Self::SingleLabel => softmax(logits, temperature),
            Self::MultiLabel { .. } => sigmoids(logits, temperature),
        }
    }
}

/// `1 / (1 + exp(-logit / temperature))` of each logit.
pub(crate) fn sigmoids(logits: &[f32], temperature: f32) -> Vec<f32> {
    logits.iter().map(|logit| 1.0 / (1.0 + (-logit / temperature).exp())).collect()
}
