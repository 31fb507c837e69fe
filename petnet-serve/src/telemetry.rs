//! Log lines and metrics: one line and one count a request, made in one place.

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::{Method, StatusCode};
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::batcher::Timings;
use crate::problem::Problem;
use crate::settings::{LogFormat, Settings};

const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const PHOTOS: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Sends log lines to standard error in the form that the settings name.
///
/// # Errors
/// When the level is unknown.
pub fn start_log(settings: &Settings) -> Result<()> {
    let wanted: Targets = settings.log_level.parse().context("--log")?;
    let log = tracing_subscriber::registry().with(wanted);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let pretty = match settings.log_format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    if pretty {
        log.with(lines).init();
    } else {
        log.with(lines.json().flatten_event(true).with_current_span(false)).init();
    }
    Ok(())
}

/// The process's one recorder of metrics.
pub(crate) fn metrics_handle() -> Result<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Full("batch_size".into()), &PHOTOS))
            .and_then(PrometheusBuilder::install_recorder);
        describe();
        builder.ok()
    };
    HANDLE.get_or_init(install).clone().context("another metrics recorder is installed already")
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("http_requests_total", "Requests answered, by route, method and status");
    describe_counter!("prediction_requests_total", "Photos classified, by predicted class");
    describe_counter!("prediction_errors_total", "Requests refused or failed, by reason");
    describe_counter!("health_check_requests_total", "Requests to /health");
    describe_counter!("model_reloads_total", "Attempts to load a model, by result");
    describe_counter!("inference_panics_total", "Panics of the network that were contained");
    describe_counter!("predictions_abandoned_total", "Photos whose client left before its turn");
    describe_histogram!("prediction_latency_seconds", "From a prediction request to its answer");
    describe_histogram!("preprocessing_duration_seconds", "Decoding and resizing one photo");
    describe_histogram!("inference_duration_seconds", "One pass through the network");
    describe_histogram!("batch_size", "Photos in one pass through the network");
    describe_gauge!("batch_queue_depth", "Photos between admission and answer");
    describe_gauge!("build_info", "Always 1; the version is a label");
    gauge!("build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// What a handler learned that the request's log line should say; travels with the response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Note {
    pub(crate) prediction_id: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) confidence: Option<f32>,
    pub(crate) timings: Timings,
    pub(crate) photos: usize,
    pub(crate) bytes: usize,
    pub(crate) problem: Option<Problem>,
}

/// One request, as it ended.
pub(crate) struct Record<'a> {
    pub(crate) id: &'a str,
    pub(crate) trace: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) route: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) took: Duration,
    pub(crate) note: &'a Note,
}

impl Record<'_> {
    pub(crate) fn write(&self) {
        let (note, status) = (self.note, self.status.as_u16());
        counter!(
            "http_requests_total",
            "route" => self.route,
            "method" => known(self.method),
            "status" => self.status.as_str().to_string()
        )
        .increment(1);
        if self.route.starts_with("/predict") {
            histogram!("prediction_latency_seconds").record(self.took);
        }
        if let Some(problem) = &note.problem {
            counter!("prediction_errors_total", "error_type" => problem.kind).increment(1);
        }
        tracing::info!(
            target: "petnet_serve::request",
            id = self.id,
            trace = self.trace,
            method = %self.method,
            route = self.route,
            status,
            ms = milliseconds(self.took),
            bytes = note.bytes,
            photos = note.photos,
            decode_ms = milliseconds(note.timings.decode),
            queue_ms = milliseconds(note.timings.queue),
            model_ms = milliseconds(note.timings.model),
            prediction_id = note.prediction_id.as_deref(),
            label = note.label.as_deref(),
            confidence = note.confidence,
            problem = note.problem.as_ref().map(|p| p.detail.as_str()),
        );
    }
}

/// To a hundredth.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// Methods that strangers invent must not become labels.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
