//! The process's one recorder, and what each metric means. `docs/metrics.md` is held against it.

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
    (names::API_REQUESTS_TOTAL, "Requests answered, by endpoint, method and status"),
    (names::API_ERRORS_TOTAL, "Requests refused or failed, by endpoint and reason"),
    (names::API_KEY_REQUESTS_TOTAL, "Requests with a key, by its name and result"),
    (names::API_PREDICTIONS_TOTAL, "Photos classified, by predicted class"),
    (names::PREDICTION_REQUESTS_TOTAL, "Photos classified, by predicted class"),
    (
        names::PREDICTION_DECISIONS_TOTAL,
        "Photos classified, by decision: answered, or unsure and why",
    ),
    (names::PREDICTION_ERRORS_TOTAL, "Prediction requests refused or failed, by reason"),
    (names::HEALTH_CHECK_REQUESTS_TOTAL, "Requests to /health"),
    (names::INPUT_IMAGE_SIZE_TOTAL, "Bytes of photos taken in"),
    (names::PREPROCESSING_IMAGES_TOTAL, "Photos decoded and resized, or refused"),
    (names::INFERENCE_PANICS_TOTAL, "Panics of the network that were contained"),
    (names::PREDICTIONS_ABANDONED_TOTAL, "Photos whose client left before their turn"),
    (names::MODEL_RELOADS_TOTAL, "Attempts to load a model, by result"),
    (names::MODEL_REGISTRY_ERRORS_TOTAL, "Failed look-ups of a registered model's name"),
    (names::DVC_PULLS_TOTAL, "Models taken up whose file is the one that the DVC lock names"),
    (names::FEEDBACK_TOTAL, "Labels given to earlier predictions, by result"),
    (names::FEEDBACK_STORE_ERRORS_TOTAL, "Writes to the feedback store that failed"),
    (names::PET_ADOPTIONS_TOTAL, "Adoptions reported, by species"),
    (
        names::PREDICTION_CACHE_REQUESTS_TOTAL,
        "Photos looked up among answers that are kept, by result",
    ),
    (names::SHADOW_PHOTOS_TOTAL, "Photos sampled for the shadow model, by result"),
    (names::SHADOW_CLASSES_TOTAL, "Photos that both models classified, by both predicted classes"),
    (names::SHADOW_DECISIONS_TOTAL, "Photos that both models classified, by both decisions"),
    (
        names::SHADOW_FEEDBACK_TOTAL,
        "Labels given to photos that both models classified, by model and result",
    ),
    (names::DECODE_TIMEOUTS_TOTAL, "Photos given up because decoding took too long"),
    (names::CONNECTIONS_REFUSED_TOTAL, "Connections closed at once: their address has too many"),
    (names::LOG_LINES_DROPPED_TOTAL, "Log lines lost because nobody read them in time"),
    (
        names::OTLP_EXPORT_ERRORS_TOTAL,
        "Exports of metrics to the OpenTelemetry collector that failed",
    ),
    (names::FEEDBACK_STORES_SET_ASIDE_TOTAL, "Damaged feedback stores renamed at the start"),
    (
        names::FEEDBACK_LABELS_LOST_TOTAL,
        "Labels that were kept and are not there any more after damage",
    ),
    (names::PROCESS_CPU_SECONDS_TOTAL, "User and system CPU time, whole seconds"),
];

const HISTOGRAMS: [(&str, &str); 9] = [
    (names::API_REQUEST_LATENCY_SECONDS, "From a request's headers to its answer, by endpoint"),
    (names::PREDICTION_LATENCY_SECONDS, "From a prediction request to its answer"),
    (names::VALIDATION_DURATION_SECONDS, "Taking a request's body apart and checking its form"),
    (names::PREPROCESSING_DURATION_SECONDS, "Decoding and resizing one photo"),
    (names::INFERENCE_DURATION_SECONDS, "One pass through the network"),
    (names::BATCH_SIZE, "Photos in one pass through the network"),
    (names::MODEL_PREDICTION_CONFIDENCE, "Confidence of each answer, by predicted class"),
    (names::SHADOW_DIFFERENCE, "Total variation distance of both models' answers on a photo"),
    (names::USER_SESSION_DURATION_SECONDS, "First to last request of sessions that ended"),
];

const GAUGES: [(&str, &str); 48] = [
    (names::REQUESTS_PER_MINUTE, "Requests answered in the last 60 s"),
    (names::API_ERROR_RATE, "Share of answers of 500 and above in the last 5 min"),
    (names::BATCH_QUEUE_DEPTH, "Photos between admission and answer"),
    (names::BATCH_QUEUE_CAPACITY, "Most photos between admission and answer"),
    (names::BATCH_QUEUE_WAITING, "Photos that wait for their turn"),
    (names::PREDICTION_CACHE_ENTRIES, "Answers that are kept for photos that come again"),
    (names::PREDICTION_CACHE_BYTES, "Memory of the answers that are kept"),
    (names::PREDICTION_CACHE_CAPACITY_BYTES, "Most memory of the answers that are kept"),
    (names::OPEN_CONNECTIONS, "Open connections"),
    (names::MEMORY_LIMIT_BYTES, "Memory that the process may take"),
    (names::MEMORY_BUDGET_BYTES, "Memory that requests may take, by purpose"),
    (names::MEMORY_CLAIMED_BYTES, "Memory that requests have claimed, by purpose"),
    (names::BATCH_SIZE_AVG, "Mean photos a pass through the network, last 5 min"),
    (names::BATCH_THROUGHPUT_IMAGES_PER_SECOND, "Photos a second through the network, last 60 s"),
    (names::MODEL_INFO, "Always 1; the model that serves is in the labels"),
    (names::MODEL_LOADED_TIMESTAMP_SECONDS, "When the model took its place"),
    (names::MODEL_LAST_TRAINED_TIMESTAMP, "When the model was trained"),
    (names::DATA_VERSION_TIMESTAMP, "When the model's training data was prepared"),
    (names::FEEDBACK_PHOTOS, "Photos with a label given in the window"),
    (names::MODEL_ACCURACY, "Share of photos with feedback that were answered rightly"),
    (names::MODEL_PRECISION, "Of the photos called the class, the share that is"),
    (names::MODEL_RECALL, "Of the photos of the class, the share called so"),
    (names::MODEL_F1_SCORE, "Harmonic mean of precision and recall"),
    (names::MODEL_CONFUSION_PHOTOS, "Photos with feedback, by actual and predicted class"),
    (names::MODEL_CALIBRATION_ERROR, "Expected calibration error over 15 bins"),
    (names::FEEDBACK_STORE_BYTES, "Size of the feedback store on disk"),
    (names::DRIFT_PSI, "Population stability index against the training's reference"),
    (names::DRIFT_WINDOW_PHOTOS, "Recent photos that drift is computed from"),
    (names::ACTIVE_USER_SESSIONS, "Clients seen within the idle time"),
    (names::BUILD_INFO, "Always 1; the version is a label"),
    (names::SERVICE_UPTIME_SECONDS, "Since the service started"),
    (names::CURRENT_HOUR, "Hour of the day, UTC"),
    (names::CURRENT_DAY_OF_WEEK, "Day of the week, UTC, Monday is 0"),
    (names::PROCESS_CPU_USAGE_PERCENT, "CPU time over time, 100 is one core"),
    (names::PROCESS_MEMORY_USAGE_MB, "Resident memory in 10^6 bytes"),
    (names::GPU_UTILIZATION_PERCENT, "GPU time over time"),
    (names::GPU_UTILIZATION_RATIO, "GPU time over time"),
    (names::GPU_MEMORY_USED_MB, "GPU memory in use in 10^6 bytes"),
    (names::GPU_MEMORY_USED_BYTES, "GPU memory in use"),
    (names::DISK_FREE_BYTES, "Free space on the feedback store's file system"),
    (names::DISK_SIZE_BYTES, "Size of the feedback store's file system"),
    (names::PROCESS_RESIDENT_MEMORY_BYTES, "Resident memory"),
    (names::PROCESS_VIRTUAL_MEMORY_BYTES, "Virtual memory"),
    (names::PROCESS_VIRTUAL_MEMORY_MAX_BYTES, "Most virtual memory that is allowed"),
    (names::PROCESS_OPEN_FDS, "Open file descriptors"),
    (names::PROCESS_MAX_FDS, "Most open file descriptors that are allowed"),
    (names::PROCESS_THREADS, "Threads"),
    (names::PROCESS_START_TIME_SECONDS, "When the process started, in seconds since 1970"),
];

/// Counters without labels stand at zero from the start, so that their first count is seen as a rise; those of a model do so
/// from its declaration.
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

/// Counters with one label of few values, which stand at zero from the start too.
const LABELS_FROM_ZERO: [(&str, &str, &[&str]); 3] = [
    (names::PREDICTION_ERRORS_TOTAL, "error_type", &KINDS),
    (names::PREPROCESSING_IMAGES_TOTAL, "result", &["ok", "refused"]),
    (names::FEEDBACK_TOTAL, "result", &["right", "wrong", "refused"]),
];

/// Where metrics are gathered and read.
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

    /// Sets gauges by `observe` and renders all; a gauge that it did not set is absent.
    pub(crate) fn scrape(&self, observe: impl FnOnce()) -> String {
        // Two scrapers at a time would take each other's gauges for idle.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        observe();
        self.0.render()
    }

    /// Takes up what histograms have gathered, which grows until then.
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
