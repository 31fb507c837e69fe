//! The process's metrics recorder, and counters that start at zero.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::names;
use crate::problem::KINDS;

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
    /// Errors: when another recorder is installed in this process.
    pub(crate) fn get() -> Result<Self> {
        static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| install().ok());
        handle.clone().map(Self).context("another metrics recorder is installed already")
    }

    /// Sets gauges by `set_gauges` and renders all metrics; a gauge that `set_gauges` has not set is absent.
    pub(crate) fn scrape(&self, set_gauges: impl FnOnce()) -> String {
        // One at a time: a concurrent scrape could remove gauges as idle before they are rendered.
        static SCRAPE: Mutex<()> = Mutex::new(());
        let _scrape = SCRAPE.lock().unwrap_or_else(PoisonError::into_inner);
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
    let mut builder = PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::GAUGE, Some(Duration::from_millis(1)));
    for (name, _, bounds) in names::HISTOGRAMS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).into()), bounds)?;
    }
    let handle = builder.install_recorder()?;
    names::COUNTERS.iter().for_each(|(name, help)| describe_counter!(*name, *help));
    names::HISTOGRAMS.iter().for_each(|(name, help, _)| describe_histogram!(*name, *help));
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
