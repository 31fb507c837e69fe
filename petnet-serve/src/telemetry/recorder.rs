//! The process's one recorder, and what each metric means. `docs/metrics.md` is held against it.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use crate::problem::KINDS;

const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const PHOTOS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
const CONFIDENCE: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];
const DIFFERENCE: [f64; 8] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0];
const SESSION: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

const COUNTERS: [(&str, &str); 30] = [
    ("api_requests_total", "Requests answered, by endpoint, method and status"),
    ("api_errors_total", "Requests refused or failed, by endpoint and reason"),
    ("api_key_requests_total", "Requests with a key, by its name and result"),
    ("api_predictions_total", "Photos classified, by predicted class"),
    ("prediction_requests_total", "Photos classified, by predicted class"),
    ("prediction_decisions_total", "Photos classified, by decision: answered, or unsure and why"),
    ("prediction_errors_total", "Prediction requests refused or failed, by reason"),
    ("health_check_requests_total", "Requests to /health"),
    ("input_image_size_total", "Bytes of photos taken in"),
    ("preprocessing_images_total", "Photos decoded and resized, or refused"),
    ("inference_panics_total", "Panics of the network that were contained"),
    ("predictions_abandoned_total", "Photos whose client left before their turn"),
    ("model_reloads_total", "Attempts to load a model, by result"),
    ("model_registry_errors_total", "Failed look-ups of a registered model's name"),
    ("dvc_pulls_total", "Models taken up whose file is the one that the DVC lock names"),
    ("feedback_total", "Labels given to earlier predictions, by result"),
    ("feedback_store_errors_total", "Writes to the feedback store that failed"),
    ("pet_adoptions_total", "Adoptions reported, by species"),
    ("prediction_cache_requests_total", "Photos looked up among answers that are kept, by result"),
    ("shadow_photos_total", "Photos sampled for the shadow model, by result"),
    ("shadow_classes_total", "Photos that both models classified, by both predicted classes"),
    ("shadow_decisions_total", "Photos that both models classified, by both decisions"),
    (
        "shadow_feedback_total",
        "Labels given to photos that both models classified, by model and result",
    ),
    ("decode_timeouts_total", "Photos given up because decoding took too long"),
    ("connections_refused_total", "Connections closed at once: their address has too many"),
    ("log_lines_dropped_total", "Log lines lost because nobody read them in time"),
    ("otlp_export_errors_total", "Exports of metrics to the OpenTelemetry collector that failed"),
    ("feedback_stores_set_aside_total", "Damaged feedback stores renamed at the start"),
    ("feedback_labels_lost_total", "Labels that were kept and are not there any more after damage"),
    ("process_cpu_seconds_total", "User and system CPU time, whole seconds"),
];

const HISTOGRAMS: [(&str, &str); 9] = [
    ("api_request_latency_seconds", "From a request's headers to its answer, by endpoint"),
    ("prediction_latency_seconds", "From a prediction request to its answer"),
    ("validation_duration_seconds", "Taking a request's body apart and checking its form"),
    ("preprocessing_duration_seconds", "Decoding and resizing one photo"),
    ("inference_duration_seconds", "One pass through the network"),
    ("batch_size", "Photos in one pass through the network"),
    ("model_prediction_confidence", "Confidence of each answer, by predicted class"),
    ("shadow_difference", "Total variation distance of both models' answers on a photo"),
    ("user_session_duration_seconds", "First to last request of sessions that ended"),
];

const GAUGES: [(&str, &str); 48] = [
    ("requests_per_minute", "Requests answered in the last 60 s"),
    ("api_error_rate", "Share of answers of 500 and above in the last 5 min"),
    ("batch_queue_depth", "Photos between admission and answer"),
    ("batch_queue_capacity", "Most photos between admission and answer"),
    ("batch_queue_waiting", "Photos that wait for their turn"),
    ("prediction_cache_entries", "Answers that are kept for photos that come again"),
    ("prediction_cache_bytes", "Memory of the answers that are kept"),
    ("prediction_cache_capacity_bytes", "Most memory of the answers that are kept"),
    ("open_connections", "Open connections"),
    ("memory_limit_bytes", "Memory that the process may take"),
    ("memory_budget_bytes", "Memory that requests may take, by purpose"),
    ("memory_claimed_bytes", "Memory that requests have claimed, by purpose"),
    ("batch_size_avg", "Mean photos a pass through the network, last 5 min"),
    ("batch_throughput_images_per_second", "Photos a second through the network, last 60 s"),
    ("model_info", "Always 1; the model that serves is in the labels"),
    ("model_loaded_timestamp_seconds", "When the model took its place"),
    ("model_last_trained_timestamp", "When the model was trained"),
    ("data_version_timestamp", "When the model's training data was prepared"),
    ("feedback_photos", "Photos with a label given in the window"),
    ("model_accuracy", "Share of photos with feedback that were answered rightly"),
    ("model_precision", "Of the photos called the class, the share that is"),
    ("model_recall", "Of the photos of the class, the share called so"),
    ("model_f1_score", "Harmonic mean of precision and recall"),
    ("model_confusion_photos", "Photos with feedback, by actual and predicted class"),
    ("model_calibration_error", "Expected calibration error over 15 bins"),
    ("feedback_store_bytes", "Size of the feedback store on disk"),
    ("drift_psi", "Population stability index against the training's reference"),
    ("drift_window_photos", "Recent photos that drift is computed from"),
    ("active_user_sessions", "Clients seen within the idle time"),
    ("build_info", "Always 1; the version is a label"),
    ("service_uptime_seconds", "Since the service started"),
    ("current_hour", "Hour of the day, UTC"),
    ("current_day_of_week", "Day of the week, UTC, Monday is 0"),
    ("process_cpu_usage_percent", "CPU time over time, 100 is one core"),
    ("process_memory_usage_mb", "Resident memory in 10^6 bytes"),
    ("gpu_utilization_percent", "GPU time over time"),
    ("gpu_utilization_ratio", "GPU time over time"),
    ("gpu_memory_used_mb", "GPU memory in use in 10^6 bytes"),
    ("gpu_memory_used_bytes", "GPU memory in use"),
    ("disk_free_bytes", "Free space on the feedback store's file system"),
    ("disk_size_bytes", "Size of the feedback store's file system"),
    ("process_resident_memory_bytes", "Resident memory"),
    ("process_virtual_memory_bytes", "Virtual memory"),
    ("process_virtual_memory_max_bytes", "Most virtual memory that is allowed"),
    ("process_open_fds", "Open file descriptors"),
    ("process_max_fds", "Most open file descriptors that are allowed"),
    ("process_threads", "Threads"),
    ("process_start_time_seconds", "When the process started, in seconds since 1970"),
];

/// Counters without labels stand at zero from the start, so that their first count is seen as a rise; those of a model do so
/// from its declaration.
const FROM_ZERO: [&str; 13] = [
    "health_check_requests_total",
    "input_image_size_total",
    "inference_panics_total",
    "predictions_abandoned_total",
    "model_registry_errors_total",
    "dvc_pulls_total",
    "feedback_store_errors_total",
    "decode_timeouts_total",
    "connections_refused_total",
    "log_lines_dropped_total",
    "otlp_export_errors_total",
    "feedback_stores_set_aside_total",
    "feedback_labels_lost_total",
];

/// Counters with one label of few values, which stand at zero from the start too.
const LABELS_FROM_ZERO: [(&str, &str, &[&str]); 3] = [
    ("prediction_errors_total", "error_type", &KINDS),
    ("preprocessing_images_total", "result", &["ok", "refused"]),
    ("feedback_total", "result", &["right", "wrong", "refused"]),
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
        .set_buckets_for_metric(buckets("batch_size"), &PHOTOS)?
        .set_buckets_for_metric(buckets("model_prediction_confidence"), &CONFIDENCE)?
        .set_buckets_for_metric(buckets("shadow_difference"), &DIFFERENCE)?
        .set_buckets_for_metric(buckets("user_session_duration_seconds"), &SESSION)?
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
