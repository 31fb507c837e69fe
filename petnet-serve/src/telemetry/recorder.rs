//! The process's metrics recorder, with the help text of each metric. A test compares the names in `docs/metrics.md` with it.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::names;
use crate::problem::KINDS;

const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const PHOTOS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
const CONFIDENCE: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];
const DIFFERENCE: [f64; 8] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0];
const SESSION: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

const COUNTERS: [(&str, &str); 30] = [
    (names::API_REQUESTS_TOTAL, "Requests, by endpoint, method and status"),
    (names::API_ERRORS_TOTAL, "Requests refused or failed, by endpoint and reason"),
    (names::API_KEY_REQUESTS_TOTAL, "Requests with an API key, by name of the key and result"),
    (names::API_PREDICTIONS_TOTAL, "Images classified, by predicted class"),
    (names::PREDICTION_REQUESTS_TOTAL, "Images classified, by predicted class"),
    (
        names::PREDICTION_DECISIONS_TOTAL,
        "Images classified, by decision: answered, or the reason for unsure",
    ),
    (names::PREDICTION_ERRORS_TOTAL, "Prediction requests refused or failed, by reason"),
    (names::HEALTH_CHECK_REQUESTS_TOTAL, "Requests to /health"),
    (names::INPUT_IMAGE_SIZE_TOTAL, "Bytes of encoded images received"),
    (names::PREPROCESSING_IMAGES_TOTAL, "Images decoded and resized, or refused"),
    (names::INFERENCE_PANICS_TOTAL, "Panics of the network that were caught"),
    (
        names::PREDICTIONS_ABANDONED_TOTAL,
        "Images whose client disconnected before they were classified",
    ),
    (names::MODEL_RELOADS_TOTAL, "Attempts to load a model, by result"),
    (names::MODEL_REGISTRY_ERRORS_TOTAL, "Failed lookups of a registered model's name"),
    (names::DVC_PULLS_TOTAL, "Models loaded whose file is listed in the DVC lock"),
    (names::FEEDBACK_TOTAL, "Labels given to earlier predictions, by result"),
    (names::FEEDBACK_STORE_ERRORS_TOTAL, "Failed operations of the feedback store"),
    (names::PET_ADOPTIONS_TOTAL, "Adoptions reported, by species"),
    (names::PREDICTION_CACHE_REQUESTS_TOTAL, "Lookups in the prediction cache, by result"),
    (names::SHADOW_PHOTOS_TOTAL, "Images sampled for the shadow model, by result"),
    (names::SHADOW_CLASSES_TOTAL, "Images classified by both models, by both predicted classes"),
    (names::SHADOW_DECISIONS_TOTAL, "Images classified by both models, by both decisions"),
    (
        names::SHADOW_FEEDBACK_TOTAL,
        "Labels given to images classified by both models, by model and result",
    ),
    (names::DECODE_TIMEOUTS_TOTAL, "Images refused because decoding took too long"),
    (names::CONNECTIONS_REFUSED_TOTAL, "Connections closed because their address has too many"),
    (names::LOG_LINES_DROPPED_TOTAL, "Log lines dropped because they were not read in time"),
    (names::OTLP_EXPORT_ERRORS_TOTAL, "Failed exports of metrics to the OpenTelemetry collector"),
    (
        names::FEEDBACK_STORES_SET_ASIDE_TOTAL,
        "Damaged feedback stores that were renamed and replaced",
    ),
    (names::FEEDBACK_LABELS_LOST_TOTAL, "Labels lost with damaged feedback stores"),
    (names::PROCESS_CPU_SECONDS_TOTAL, "User and system CPU time in whole seconds"),
];

const HISTOGRAMS: [(&str, &str); 9] = [
    (
        names::API_REQUEST_LATENCY_SECONDS,
        "Time from a request's headers to its response, by endpoint",
    ),
    (names::PREDICTION_LATENCY_SECONDS, "Time from a prediction request's headers to its response"),
    (names::VALIDATION_DURATION_SECONDS, "Time to parse and validate a request's body"),
    (names::PREPROCESSING_DURATION_SECONDS, "Time to decode and resize an image"),
    (names::INFERENCE_DURATION_SECONDS, "Time of a forward pass"),
    (names::BATCH_SIZE, "Images in a batch"),
    (names::MODEL_PREDICTION_CONFIDENCE, "Confidence of each prediction, by predicted class"),
    (names::SHADOW_DIFFERENCE, "Total variation distance of both models' predictions for an image"),
    (
        names::USER_SESSION_DURATION_SECONDS,
        "Time from the first to the last request of ended sessions",
    ),
];

const GAUGES: [(&str, &str); 48] = [
    (names::REQUESTS_PER_MINUTE, "Requests in the last 60 s"),
    (names::API_ERROR_RATE, "Share of responses with status 500 and above in the last 5 min"),
    (names::BATCH_QUEUE_DEPTH, "Images in flight"),
    (names::BATCH_QUEUE_CAPACITY, "Maximum number of images in flight"),
    (names::BATCH_QUEUE_WAITING, "Images that wait to be in flight"),
    (names::PREDICTION_CACHE_ENTRIES, "Entries of the prediction cache"),
    (names::PREDICTION_CACHE_BYTES, "Size of the prediction cache"),
    (names::PREDICTION_CACHE_CAPACITY_BYTES, "Maximum size of the prediction cache"),
    (names::OPEN_CONNECTIONS, "Open connections"),
    (names::MEMORY_LIMIT_BYTES, "Memory limit of the process"),
    (names::MEMORY_BUDGET_BYTES, "Memory budget of requests, by purpose"),
    (names::MEMORY_CLAIMED_BYTES, "Memory claimed by requests, by purpose"),
    (names::BATCH_SIZE_AVG, "Mean number of images in a batch in the last 5 min"),
    (
        names::BATCH_THROUGHPUT_IMAGES_PER_SECOND,
        "Images per second through the network in the last 60 s",
    ),
    (names::MODEL_INFO, "Always 1; the labels describe the model in use"),
    (
        names::MODEL_LOADED_TIMESTAMP_SECONDS,
        "Time at which the model was loaded, in seconds since 1970",
    ),
    (
        names::MODEL_LAST_TRAINED_TIMESTAMP,
        "Time at which the model was trained, in seconds since 1970",
    ),
    (
        names::DATA_VERSION_TIMESTAMP,
        "Time at which the model's training data was prepared, in seconds since 1970",
    ),
    (names::FEEDBACK_PHOTOS, "Images with feedback in the window"),
    (names::MODEL_ACCURACY, "Accuracy on images with feedback"),
    (names::MODEL_PRECISION, "Precision of the class on images with feedback"),
    (names::MODEL_RECALL, "Recall of the class on images with feedback"),
    (names::MODEL_F1_SCORE, "Harmonic mean of precision and recall"),
    (names::MODEL_CONFUSION_PHOTOS, "Images with feedback, by actual and predicted class"),
    (names::MODEL_CALIBRATION_ERROR, "Expected calibration error over 15 bins"),
    (names::FEEDBACK_STORE_BYTES, "Size of the feedback store on disk"),
    (names::DRIFT_PSI, "Population stability index of recent images against the model's reference"),
    (names::DRIFT_WINDOW_PHOTOS, "Recent images that drift is computed from"),
    (names::ACTIVE_USER_SESSIONS, "Clients seen within the idle time"),
    (names::BUILD_INFO, "Always 1; the version is a label"),
    (names::SERVICE_UPTIME_SECONDS, "Time since the service started"),
    (names::CURRENT_HOUR, "Hour of the day, UTC"),
    (names::CURRENT_DAY_OF_WEEK, "Day of the week, UTC, Monday is 0"),
    (names::PROCESS_CPU_USAGE_PERCENT, "CPU utilisation, 100 is one core"),
    (names::PROCESS_MEMORY_USAGE_MB, "Resident memory in 10^6 bytes"),
    (names::GPU_UTILIZATION_PERCENT, "GPU utilisation, from 0 to 100"),
    (names::GPU_UTILIZATION_RATIO, "GPU utilisation, from 0 to 1"),
    (names::GPU_MEMORY_USED_MB, "GPU memory in use in 10^6 bytes"),
    (names::GPU_MEMORY_USED_BYTES, "GPU memory in use"),
    (names::DISK_FREE_BYTES, "Free space on the feedback store's file system"),
    (names::DISK_SIZE_BYTES, "Size of the feedback store's file system"),
    (names::PROCESS_RESIDENT_MEMORY_BYTES, "Resident memory"),
    (names::PROCESS_VIRTUAL_MEMORY_BYTES, "Virtual memory"),
    (names::PROCESS_VIRTUAL_MEMORY_MAX_BYTES, "Limit of virtual memory"),
    (names::PROCESS_OPEN_FDS, "Open file descriptors"),
    (names::PROCESS_MAX_FDS, "Limit of open file descriptors"),
    (names::PROCESS_THREADS, "Threads"),
    (names::PROCESS_START_TIME_SECONDS, "Time at which the process started, in seconds since 1970"),
];

/// Counters without labels that start at zero, so that Prometheus' `increase` includes the first event; counters with the
/// label `model` are initialised with the models.
const FROM_ZERO: [&str; 13] = [
    names::HEALTH_CHECK_REQUESTS_TOTAL,
    names::INPUT_IMAGE_SIZE_TOTAL,
    names::INFERENCE_PANICS_TOTAL,
    names::PREDICTIONS_ABANDONED_TOTAL,
    names::MODEL_REGISTRY_ERRORS_TOTAL,
    names::DVC_PULLS_TOTAL,
    names::FEEDBACK_STORE_ERRORS_TOTAL,
    names::DECODE_TIMEOUTS_TOTAL,
    names::CONNECTIONS_REFUSED_TOTAL,
    names::LOG_LINES_DROPPED_TOTAL,
    names::OTLP_EXPORT_ERRORS_TOTAL,
    names::FEEDBACK_STORES_SET_ASIDE_TOTAL,
    names::FEEDBACK_LABELS_LOST_TOTAL,
];

/// Counters with one label of few values, which start at zero as well.
const LABELS_FROM_ZERO: [(&str, &str, &[&str]); 3] = [
    (names::PREDICTION_ERRORS_TOTAL, "error_type", &KINDS),
    (names::PREPROCESSING_IMAGES_TOTAL, "result", &["ok", "refused"]),
    (names::FEEDBACK_TOTAL, "result", &["right", "wrong", "refused"]),
];

/// The recorder, from which metrics are rendered.
#[derive(Clone)]
pub(crate) struct Recorder(PrometheusHandle);

impl Recorder {
    /// # Errors
    /// When another recorder is installed in this process.
    pub(crate) fn get() -> Result<Self> {
        static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| install().ok());
        handle.clone().map(Self).context("another metrics recorder is installed already")
    }

    /// Sets gauges by `observe` and renders all metrics; a gauge that `observe` has not set is absent.
    pub(crate) fn scrape(&self, observe: impl FnOnce()) -> String {
        // One at a time: a concurrent scrape could remove gauges as idle before they are rendered.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        observe();
        self.0.render()
    }

    /// Aggregates the samples of histograms, whose memory grows until then.
    pub(crate) fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn install() -> Result<PrometheusHandle> {
    let buckets = |name: &str| Matcher::Full(name.into());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .set_buckets_for_metric(buckets(names::BATCH_SIZE), &PHOTOS)?
        .set_buckets_for_metric(buckets(names::MODEL_PREDICTION_CONFIDENCE), &CONFIDENCE)?
        .set_buckets_for_metric(buckets(names::SHADOW_DIFFERENCE), &DIFFERENCE)?
        .set_buckets_for_metric(buckets(names::USER_SESSION_DURATION_SECONDS), &SESSION)?
        .idle_timeout(MetricKindMask::GAUGE, Some(Duration::from_millis(1)))
        .install_recorder()?;
    COUNTERS.iter().for_each(|(name, help)| describe_counter!(*name, *help));
    HISTOGRAMS.iter().for_each(|(name, help)| describe_histogram!(*name, *help));
    GAUGES.iter().for_each(|(name, help)| describe_gauge!(*name, *help));
    FROM_ZERO.iter().for_each(|name| counter!(*name).increment(0));
    for (name, label, values) in LABELS_FROM_ZERO {
        values.iter().for_each(|value| counter!(name, label => *value).increment(0));
    }
    Ok(handle)
}
