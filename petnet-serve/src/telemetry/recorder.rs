//! The process's metrics recorder: buckets of histograms, and counters that start at zero.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::names;
use crate::problem::KINDS;

const SECONDS_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const IMAGE_BUCKETS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
const CONFIDENCE_BUCKETS: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];
const DIFFERENCE_BUCKETS: [f64; 8] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0];
const SESSION_BUCKETS: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

/// Counters with one label of few values, which start at zero for each of them. Those with the label `model` are initialised
/// with the models.
const LABELS_FROM_ZERO: &[(&str, &str, &[&str])] = &[
    (names::PREDICTION_ERRORS_TOTAL, "error_type", KINDS),
    (names::PREPROCESSING_IMAGES_TOTAL, "result", &["ok", "refused"]),
    (names::FEEDBACK_TOTAL, "result", &["right", "wrong", "refused"]),
];

/// The recorder, from which metrics are rendered.
#[derive(Clone)]
pub(crate) struct Recorder(PrometheusHandle);

impl Recorder {
    /// The recorder of this process, which the first call installs.
    ///
    /// # Errors
    /// When another recorder is installed in this process.
    pub(crate) fn get() -> Result<Self> {
        static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| install().ok());
        handle.clone().map(Self).context("another metrics recorder is installed already")
    }

    /// Sets gauges by `set_gauges` and renders all metrics; a gauge that `set_gauges` has not set is absent.
    pub(crate) fn scrape(&self, set_gauges: impl FnOnce()) -> String {
        // One at a time: a concurrent scrape could remove gauges as idle before they are rendered.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_gauges();
        self.0.render()
    }

    /// Aggregates the samples of histograms, whose memory grows until then.
    pub(crate) fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Installs the recorder, with the help texts, buckets and initial values of all metrics.
fn install() -> Result<PrometheusHandle> {
    let buckets = |name: &str| Matcher::Full(name.into());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(buckets(names::BATCH_SIZE), &IMAGE_BUCKETS)?
        .set_buckets_for_metric(buckets(names::MODEL_PREDICTION_CONFIDENCE), &CONFIDENCE_BUCKETS)?
        .set_buckets_for_metric(buckets(names::SHADOW_DIFFERENCE), &DIFFERENCE_BUCKETS)?
        .set_buckets_for_metric(buckets(names::USER_SESSION_DURATION_SECONDS), &SESSION_BUCKETS)?
        .idle_timeout(MetricKindMask::GAUGE, Some(Duration::from_millis(1)))
        .install_recorder()?;
    names::COUNTERS.iter().for_each(|(name, help)| describe_counter!(*name, *help));
    names::HISTOGRAMS.iter().for_each(|(name, help)| describe_histogram!(*name, *help));
    names::GAUGES.iter().for_each(|(name, help)| describe_gauge!(*name, *help));
    for (name, help) in names::COUNTERS_FROM_ZERO {
        describe_counter!(*name, *help);
        counter!(*name).increment(0);
    }
    for (name, label, values) in LABELS_FROM_ZERO {
        values.iter().for_each(|value| counter!(*name, *label => *value).increment(0));
    }
    Ok(handle)
}
