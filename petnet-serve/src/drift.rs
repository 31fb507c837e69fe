//! Drift of recent images against those that the model was calibrated on.

use std::sync::{Mutex, PoisonError};

use metrics::gauge;
use petnet::drift::{DriftSample, Reference, Window};

use crate::telemetry::names;

/// Photos below which an index is mostly chance.
const ENOUGH: usize = 200;

/// The window of the model that serves.
pub(crate) struct Drift {
    size: usize,
    /// With the version of the model whose reference it is.
    window: Mutex<Option<(String, Window)>>,
}

impl Drift {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, window: Mutex::default() }
    }

    /// Adds an image of the model of that version, if it has a reference; another version begins anew.
    pub(crate) fn push(&self, version: &str, reference: Option<&Reference>, sample: DriftSample) {
        let Some(reference) = reference else { return };
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.as_ref().is_none_or(|(of, _)| of != version) {
            *window = Some((version.to_string(), Window::new(reference.clone(), self.size)));
        }
        if let Some((_, window)) = &mut *window {
            window.push(sample);
        }
    }

    /// Sets the gauges of the model of that name.
    pub(crate) fn observe(&self, name: &str) {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, window)) = &*window else { return };
        gauge!(names::DRIFT_WINDOW_PHOTOS, "model" => name.to_string()).set(window.len() as f64);
        if window.len() >= ENOUGH.min(self.size) {
            for (statistic, psi) in window.stability() {
                let name = name.to_string();
                gauge!(names::DRIFT_PSI, "model" => name, "statistic" => statistic.name()).set(psi);
            }
        }
    }
}
