//! Validation metrics of single-label and multi-label data.

use super::Monitor;
use crate::dataset::Target;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, MultiLabelMetrics};
use crate::task::Task;

/// Validation metrics.
pub(super) enum ValidationMetrics {
    SingleLabel(Metrics),
    MultiLabel(MultiLabelMetrics),
}

impl ValidationMetrics {
    /// Compares probabilities, one row per image, with the images' classes.
    pub(super) fn compute(task: &Task, probabilities: &[Vec<f32>], truth: &[Target]) -> Self {
        match task {
            Task::SingleLabel => {
                let classes = probabilities.first().map_or(0, Vec::len);
                let truth: Vec<usize> = truth.iter().filter_map(Target::class).collect();
                Self::SingleLabel(Metrics::compute(probabilities, &truth, classes))
            }
            Task::MultiLabel { thresholds } => {
                let truth: Vec<Vec<usize>> =
                    truth.iter().map(|target| target.classes().to_vec()).collect();
                Self::MultiLabel(MultiLabelMetrics::compute(probabilities, &truth, thresholds))
            }
        }
    }

    /// Accuracy; for multi-label data the share of images whose classes are all right.
    pub(super) fn accuracy(&self) -> f64 {
        match self {
            Self::SingleLabel(metrics) => metrics.accuracy,
            Self::MultiLabel(metrics) => metrics.exact_match,
        }
    }

    /// Mean average precision; `None` for single-label data.
    pub(super) fn mean_average_precision(&self) -> Option<f64> {
        match self {
            Self::SingleLabel(_) => None,
            Self::MultiLabel(metrics) => metrics.mean_average_precision,
        }
    }

    pub(super) fn log_loss(&self) -> f64 {
        match self {
            Self::SingleLabel(metrics) => metrics.log_loss,
            Self::MultiLabel(metrics) => metrics.log_loss,
        }
    }

    /// The value by which models are compared, higher for better ones.
    pub(super) fn score(&self, monitor: Monitor) -> f64 {
        match (monitor, self.mean_average_precision()) {
            (Monitor::ValLoss, _) => -self.log_loss(),
            (Monitor::ValAccuracy, Some(precision)) => precision,
            (Monitor::ValAccuracy, None) => self.accuracy(),
        }
    }

    /// The record of an epoch in a model file, see [`ModelInfo::metrics`](crate::ModelInfo::metrics).
    pub(super) fn record(&self, epoch: usize) -> Result<serde_json::Value> {
        let value = match self {
            Self::SingleLabel(metrics) => serde_json::to_value(metrics),
            Self::MultiLabel(metrics) => serde_json::to_value(metrics),
        };
        let value = value.map_err(|e| Error::Config(e.to_string()))?;
        Ok(serde_json::json!({ "epoch": epoch, "validation": value }))
    }
}
