//! Counts and durations of inference requests, in the format of Triton's statistics extension.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::telemetry::RequestDetails;

/// Sums since the start of the process, by the model's name.
#[derive(Default)]
pub(crate) struct Stats(Mutex<HashMap<String, ModelSums>>);

/// Sums of one model.
#[derive(Default, Clone)]
struct ModelSums {
    /// Time since 1970.
    last_inference: Duration,
    images: u64,
    success: DurationSum,
    fail: DurationSum,
    queue: DurationSum,
    decode: DurationSum,
    model: DurationSum,
}

#[derive(Default, Clone)]
struct DurationSum {
    count: u64,
    time: Duration,
}

impl DurationSum {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }

    fn json(&self) -> Value {
        json!({ "count": self.count, "ns": self.time.as_nanos() as u64 })
    }
}

impl Stats {
    /// Adds a request; `details` is `None` for one that failed. Images found in the prediction cache have no timings.
    pub(crate) fn add(&self, model: &str, duration: Duration, details: Option<&RequestDetails>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = all.entry(model.into()).or_default();
        let Some(details) = details else { return sums.fail.add(duration) };
        sums.success.add(duration);
        sums.last_inference = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        sums.images += details.images as u64;
        for timings in &details.timings {
            sums.queue.add(timings.queue.duration);
            sums.decode.add(timings.decode.duration);
            sums.model.add(timings.model.duration);
        }
    }

    pub(crate) fn json(&self, model: &str, version: &str) -> Value {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = all.get(model).cloned().unwrap_or_default();
        json!({
            "name": model,
            "version": version,
            "last_inference": sums.last_inference.as_millis() as u64,
            "inference_count": sums.images,
            "execution_count": sums.success.count,
            "inference_stats": {
                "success": sums.success.json(),
                "fail": sums.fail.json(),
                "queue": sums.queue.json(),
                "compute_input": sums.decode.json(),
                "compute_infer": sums.model.json(),
                "compute_output": DurationSum::default().json(),
            },
            "batch_stats": [],
        })
    }
}
