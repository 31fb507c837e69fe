//! Validation metrics of single-label and multi-label data.

use serde::Serialize;

use super::Monitor;
use crate::dataset::Target;
use crate::error::{Error, Result};
use crate::metrics::{Metrics, MultiLabelMetrics};
use crate::task::Task;

/// Validation metrics.
pub(super) struct ValidationMetrics {
    /// Accuracy; for multi-label data the share of images whose classes are all right.
    pub(super) accuracy: f64,
    pub(super) log_loss: f64,
    /// For multi-label data.
    pub(super) mean_average_precision: Option<f64>,
    json: serde_json::Value,
}

impl ValidationMetrics {
    /// Compares probabilities, one row per image, with the images' classes.
    pub(super) fn compute(
        task: &Task,
        probabilities: &[Vec<f32>],
        truth: &[Target],
    ) -> Result<Self> {
        match task {
            Task::SingleLabel => {
                let classes = probabilities.first().map_or(0, Vec::len);
                let truth: Vec<usize> = truth.iter().filter_map(Target::class).collect();
                Self::single_label(&Metrics::compute(probabilities, &truth, classes))
            }
            Task::MultiLabel { thresholds } => {
                let truth: Vec<Vec<usize>> =
                    truth.iter().map(|target| target.classes().to_vec()).collect();
                Self::multi_label(&MultiLabelMetrics::compute(probabilities, &truth, thresholds))
            }
        }
    }

    pub(super) fn single_label(metrics: &Metrics) -> Result<Self> {
        let Metrics { accuracy, log_loss, .. } = *metrics;
        Ok(Self { accuracy, log_loss, mean_average_precision: None, json: to_json(metrics)? })
    }

    pub(super) fn multi_label(metrics: &MultiLabelMetrics) -> Result<Self> {
        let MultiLabelMetrics { exact_match, log_loss, mean_average_precision, .. } = *metrics;
        let json = to_json(metrics)?;
        Ok(Self { accuracy: exact_match, log_loss, mean_average_precision, json })
    }

    /// The value by which models are compared, higher for better ones.
    pub(super) fn score(&self, monitor: Monitor) -> f64 {
        match monitor {
            Monitor::ValLoss => -self.log_loss,
            Monitor::ValAccuracy => self.mean_average_precision.unwrap_or(self.accuracy),
        }
    }

    /// The record of an epoch in a model file, see [`ModelInfo::metrics`](crate::ModelInfo::metrics).
    pub(super) fn record(&self, epoch: usize) -> serde_json::Value {
        serde_json::json!({ "epoch": epoch, "validation": self.json })
    }
}

fn to_json(metrics: &impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(metrics).map_err(|e| Error::Config(e.to_string()))
}
