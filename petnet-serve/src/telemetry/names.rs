//! Names and help texts of all metrics, and the buckets of histograms. A test compares the names with `docs/metrics.md`.
//! Metrics that are called `*_photos` count images; clients' dashboards depend on their names.

/// Declares the metrics of one type: a constant with the name of each, and a table whose rows have the name and what follows it.
macro_rules! declare_metrics {
    ($table:ident, $row:ty: $($constant:ident = $name:literal $(, $column:expr)+;)*) => {
        $(pub(crate) const $constant: &str = $name;)*
        pub(super) const $table: &[$row] = &[$(($constant $(, $column)+)),*];
    };
}

declare_metrics! { COUNTERS, (&str, &str):
    API_REQUESTS_TOTAL = "api_requests_total", "Requests, by endpoint, method and status";
    API_ERRORS_TOTAL = "api_errors_total", "Requests refused or failed, by endpoint and reason";
    API_KEY_REQUESTS_TOTAL = "api_key_requests_total", "Requests with an API key, by name of the key and result";
    API_PREDICTIONS_TOTAL = "api_predictions_total", "Images classified, by predicted class";
    PREDICTION_REQUESTS_TOTAL = "prediction_requests_total", "Images classified, by predicted class";
    PREDICTION_DECISIONS_TOTAL = "prediction_decisions_total", "Images classified, by decision: answered, or the reason for unsure";
    PREDICTION_ERRORS_TOTAL = "prediction_errors_total", "Prediction requests refused or failed, by reason";
    PREPROCESSING_IMAGES_TOTAL = "preprocessing_images_total", "Images decoded and resized, or refused";
    MODEL_RELOADS_TOTAL = "model_reloads_total", "Attempts to load a model, by result";
    FEEDBACK_TOTAL = "feedback_total", "Labels given to earlier predictions, by result";
    PET_ADOPTIONS_TOTAL = "pet_adoptions_total", "Adoptions reported, by species";
    PREDICTION_CACHE_REQUESTS_TOTAL = "prediction_cache_requests_total", "Lookups in the prediction cache, by result";
    SHADOW_PHOTOS_TOTAL = "shadow_photos_total", "Images sampled for the shadow model, by result";
    SHADOW_CLASSES_TOTAL = "shadow_classes_total", "Images classified by both models, by both predicted classes";
    SHADOW_DECISIONS_TOTAL = "shadow_decisions_total", "Images classified by both models, by both decisions";
    SHADOW_FEEDBACK_TOTAL = "shadow_feedback_total", "Labels given to images classified by both models, by model and result";
    PROCESS_CPU_SECONDS_TOTAL = "process_cpu_seconds_total", "User and system CPU time in whole seconds";
}

// Without labels. They start at zero, so that Prometheus' `increase` includes the first event.
declare_metrics! { COUNTERS_FROM_ZERO, (&str, &str):
    HEALTH_CHECK_REQUESTS_TOTAL = "health_check_requests_total", "Requests to /health";
    INPUT_IMAGE_SIZE_TOTAL = "input_image_size_total", "Bytes of encoded images received";
    INFERENCE_PANICS_TOTAL = "inference_panics_total", "Panics of the network that were caught";
    PREDICTIONS_ABANDONED_TOTAL = "predictions_abandoned_total", "Images whose client disconnected before they were classified";
    MODEL_REGISTRY_ERRORS_TOTAL = "model_registry_errors_total", "Failed lookups of a registered model's name";
    DVC_PULLS_TOTAL = "dvc_pulls_total", "Models loaded whose file is listed in the DVC lock";
    FEEDBACK_STORE_ERRORS_TOTAL = "feedback_store_errors_total", "Failed operations of the feedback store";
    DECODE_TIMEOUTS_TOTAL = "decode_timeouts_total", "Images refused because decoding took too long";
    CONNECTIONS_REFUSED_TOTAL = "connections_refused_total", "Connections closed because their address has too many";
    LOG_LINES_DROPPED_TOTAL = "log_lines_dropped_total", "Log lines dropped because they were not read in time";
    OTLP_EXPORT_ERRORS_TOTAL = "otlp_export_errors_total", "Failed exports of metrics to the OpenTelemetry collector";
    FEEDBACK_STORES_SET_ASIDE_TOTAL = "feedback_stores_set_aside_total", "Damaged feedback stores that were renamed and replaced";
    FEEDBACK_LABELS_LOST_TOTAL = "feedback_labels_lost_total", "Labels lost with damaged feedback stores";
}

// Upper bounds of buckets.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const SESSION_SECONDS: &[f64] = &[1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];
const CONFIDENCE: &[f64] = &[0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];
const DIFFERENCE: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0];

declare_metrics! { HISTOGRAMS, (&str, &str, &[f64]):
    API_REQUEST_LATENCY_SECONDS = "api_request_latency_seconds", "Time from a request's headers to its response, by endpoint", SECONDS;
    PREDICTION_LATENCY_SECONDS = "prediction_latency_seconds", "Time from a prediction request's headers to its response", SECONDS;
    VALIDATION_DURATION_SECONDS = "validation_duration_seconds", "Time to parse and validate a request's body", SECONDS;
    PREPROCESSING_DURATION_SECONDS = "preprocessing_duration_seconds", "Time to decode and resize an image", SECONDS;
    INFERENCE_DURATION_SECONDS = "inference_duration_seconds", "Time of a forward pass", SECONDS;
    BATCH_SIZE = "batch_size", "Images in a batch", IMAGES;
    MODEL_PREDICTION_CONFIDENCE = "model_prediction_confidence", "Confidence of each prediction, by predicted class", CONFIDENCE;
    SHADOW_DIFFERENCE = "shadow_difference", "Total variation distance of both models' predictions for an image", DIFFERENCE;
    USER_SESSION_DURATION_SECONDS = "user_session_duration_seconds", "Time from the first to the last request of ended sessions", SESSION_SECONDS;
}

declare_metrics! { GAUGES, (&str, &str):
    REQUESTS_PER_MINUTE = "requests_per_minute", "Requests in the last 60 s";
    API_ERROR_RATE = "api_error_rate", "Share of responses with status 500 and above in the last 5 min";
    BATCH_QUEUE_DEPTH = "batch_queue_depth", "Images in flight";
    BATCH_QUEUE_CAPACITY = "batch_queue_capacity", "Maximum number of images in flight";
    BATCH_QUEUE_WAITING = "batch_queue_waiting", "Images that wait to be in flight";
    PREDICTION_CACHE_ENTRIES = "prediction_cache_entries", "Entries of the prediction cache";
    PREDICTION_CACHE_BYTES = "prediction_cache_bytes", "Size of the prediction cache";
    PREDICTION_CACHE_CAPACITY_BYTES = "prediction_cache_capacity_bytes", "Maximum size of the prediction cache";
    OPEN_CONNECTIONS = "open_connections", "Open connections";
    MEMORY_LIMIT_BYTES = "memory_limit_bytes", "Memory limit of the process";
    MEMORY_BUDGET_BYTES = "memory_budget_bytes", "Memory budget of requests, by purpose";
    MEMORY_CLAIMED_BYTES = "memory_claimed_bytes", "Memory claimed by requests, by purpose";
    BATCH_SIZE_AVG = "batch_size_avg", "Mean number of images in a batch in the last 5 min";
    BATCH_THROUGHPUT_IMAGES_PER_SECOND = "batch_throughput_images_per_second", "Images per second through the network in the last 60 s";
    MODEL_INFO = "model_info", "Always 1; the labels describe the model in use";
    MODEL_LOADED_TIMESTAMP_SECONDS = "model_loaded_timestamp_seconds", "Time at which the model was loaded, in seconds since 1970";
    MODEL_LAST_TRAINED_TIMESTAMP = "model_last_trained_timestamp", "Time at which the model was trained, in seconds since 1970";
    DATA_VERSION_TIMESTAMP = "data_version_timestamp", "Time at which the model's training data was prepared, in seconds since 1970";
    FEEDBACK_PHOTOS = "feedback_photos", "Images with feedback in the window";
    MODEL_ACCURACY = "model_accuracy", "Accuracy on images with feedback";
    MODEL_PRECISION = "model_precision", "Precision of the class on images with feedback";
    MODEL_RECALL = "model_recall", "Recall of the class on images with feedback";
    MODEL_F1_SCORE = "model_f1_score", "Harmonic mean of precision and recall";
    MODEL_CONFUSION_PHOTOS = "model_confusion_photos", "Images with feedback, by actual and predicted class";
    MODEL_CALIBRATION_ERROR = "model_calibration_error", "Expected calibration error over 15 bins";
    FEEDBACK_STORE_BYTES = "feedback_store_bytes", "Size of the feedback store on disk";
    DRIFT_PSI = "drift_psi", "Population stability index of recent images against the model's reference";
    DRIFT_WINDOW_PHOTOS = "drift_window_photos", "Recent images that drift is computed from";
    ACTIVE_USER_SESSIONS = "active_user_sessions", "Clients seen within the idle time";
    BUILD_INFO = "build_info", "Always 1; the version is a label";
    SERVICE_UPTIME_SECONDS = "service_uptime_seconds", "Time since the service started";
    CURRENT_HOUR = "current_hour", "Hour of the day, UTC";
    CURRENT_DAY_OF_WEEK = "current_day_of_week", "Day of the week, UTC, Monday is 0";
    PROCESS_CPU_USAGE_PERCENT = "process_cpu_usage_percent", "CPU utilisation, 100 is one core";
    PROCESS_MEMORY_USAGE_MB = "process_memory_usage_mb", "Resident memory in 10^6 bytes";
    GPU_UTILIZATION_PERCENT = "gpu_utilization_percent", "GPU utilisation, from 0 to 100";
    GPU_UTILIZATION_RATIO = "gpu_utilization_ratio", "GPU utilisation, from 0 to 1";
    GPU_MEMORY_USED_MB = "gpu_memory_used_mb", "GPU memory in use in 10^6 bytes";
    GPU_MEMORY_USED_BYTES = "gpu_memory_used_bytes", "GPU memory in use";
    DISK_FREE_BYTES = "disk_free_bytes", "Free space on the feedback store's file system";
    DISK_SIZE_BYTES = "disk_size_bytes", "Size of the feedback store's file system";
    PROCESS_RESIDENT_MEMORY_BYTES = "process_resident_memory_bytes", "Resident memory";
    PROCESS_VIRTUAL_MEMORY_BYTES = "process_virtual_memory_bytes", "Virtual memory";
    PROCESS_VIRTUAL_MEMORY_MAX_BYTES = "process_virtual_memory_max_bytes", "Limit of virtual memory";
    PROCESS_OPEN_FDS = "process_open_fds", "Open file descriptors";
    PROCESS_MAX_FDS = "process_max_fds", "Limit of open file descriptors";
    PROCESS_THREADS = "process_threads", "Threads";
    PROCESS_START_TIME_SECONDS = "process_start_time_seconds", "Time at which the process started, in seconds since 1970";
}
