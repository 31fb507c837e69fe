//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

use super::Trainer;

/// Schedule of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Schedule {
    /// Constant at the peak.
    Constant,
    /// Multiplied by `factor` when the validation loss has not fallen for more than `patience`
    /// epochs (PyTorch's `ReduceLROnPlateau`, relative threshold 1e-4).
    ReduceLrOnPlateau {
        /// Factor, 0 to 1.
        factor: f64,
        /// Number of epochs.
        patience: usize,
    },
    /// Half a cosine from the peak to zero over all steps
    /// (Loshchilov and Hutter, "SGDR", 2016, without restarts).
    Cosine,
    /// Rises over the first 30 % of steps from a 25th of the peak, then falls to nearly zero,
    /// both by a cosine (Smith and Topin, "Super-convergence", 2017).
    OneCycle,
}

impl Schedule {
    /// The factor on the peak learning rate before step `step` (from 0) of `total`, for schedules
    /// that depend on steps alone.
    pub fn factor(self, step: usize, total: usize) -> f64 {
        let done = step as f64 / total.max(1) as f64;
        match self {
            Self::Constant | Self::ReduceLrOnPlateau { .. } => 1.0,
            Self::Cosine => cosine(1.0, 0.0, done),
            Self::OneCycle if done < 0.3 => cosine(1.0 / 25.0, 1.0, done / 0.3),
            Self::OneCycle => cosine(1.0, 1.0 / 250_000.0, (done - 0.3) / 0.7),
        }
    }
}

impl Trainer {
    /// Learning rate of the step that follows a number of completed ones, in epochs of `steps` steps: a linear warm-up, then
    /// the schedule without a reduction on a plateau.
    pub(super) fn scheduled_learning_rate(&self, updates: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_epochs * steps as f64).round() as usize;
        let total = (self.epochs * steps).saturating_sub(warmup);
        let factor = if updates < warmup {
            (updates + 1) as f64 / (warmup + 1) as f64
        } else {
            self.schedule.factor(updates - warmup, total)
        };
        self.learning_rate * factor
    }
}

/// Half a cosine from one value to another; `done` is the share of the way, 0 to 1.
fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) / 2.0
}

/// State of [`Schedule::ReduceLrOnPlateau`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Plateau {
    pub(super) factor: f64,
    best: Option<f64>,
    bad_epochs: usize,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { factor: 1.0, best: None, bad_epochs: 0 }
    }
}

impl Plateau {
    pub(super) fn update(&mut self, schedule: Schedule, loss: f64) {
        let Schedule::ReduceLrOnPlateau { factor, patience } = schedule else { return };
        if self.best.is_none_or(|best| loss < best * (1.0 - 1e-4)) {
            (self.best, self.bad_epochs) = (Some(loss), 0);
            return;
        }
        self.bad_epochs += 1;
        if self.bad_epochs > patience {
            (self.factor, self.bad_epochs) = (self.factor * factor, 0);
        }
    }
}
