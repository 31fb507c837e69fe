//! Drift of recent images compared with those that the model was calibrated on.

use std::sync::{Mutex, PoisonError};

use metrics::gauge;
use petnet::drift::{DriftSample, Reference, Window};

use crate::telemetry::names;

/// Minimum number of images for a population stability index; with fewer it is mostly sampling noise.
const MIN_IMAGES: usize = 200;

/// The window of recent images of the model in use.
pub(crate) struct Drift {
    size: usize,
    /// The window, and the version of the model that its reference belongs to.
    window: Mutex<Option<(String, Window)>>,
}

impl Drift {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, window: Mutex::default() }
    }

    /// Adds an image classified by the model of that version, if it has a reference; another version starts a new window.
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
    pub(crate) fn set_gauges(&self, name: &str) {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, window)) = &*window else { return };
        gauge!(names::DRIFT_WINDOW_PHOTOS, "model" => name.to_string()).set(window.len() as f64);
        if window.len() >= MIN_IMAGES.min(self.size) {
            for (statistic, psi) in window.stability() {
                let name = name.to_string();
                gauge!(names::DRIFT_PSI, "model" => name, "statistic" => statistic.name()).set(psi);
            }
        }
    }
}
