//! Log lines, metrics and traces; those of a request are written in one place, [`Record::write`].

mod export;
mod machine;
pub(crate) mod names;
mod otlp;
mod rates;
mod recorder;
mod traces;

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper::{Method, StatusCode};
use metrics::{counter, histogram};
use petnet::Decision;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::outputs::{Stage, Timings};
use crate::problem::Problem;
use crate::settings::{LogFormat, Settings};

pub(crate) use export::MetricsExport;
pub(crate) use machine::Machine;
pub(crate) use rates::Rates;
pub(crate) use recorder::Recorder;
pub(crate) use traces::{EXPORT_TIMEOUT, ParentSpan, Traces};

/// Maximum number of log lines that wait to be written; further ones are dropped and counted.
const MAX_LINES: usize = 4096;

/// Keeps the log's thread running; dropping it flushes waiting lines.
#[derive(Debug)]
pub struct Log(#[allow(dead_code, reason = "dropping it is its use")] WorkerGuard);

/// Counter of lines that were dropped because the reader was too slow.
static DROPPED_LINES: OnceLock<ErrorCounter> = OnceLock::new();

/// Starts to write log lines to standard error in the format of the settings. A thread of its own writes them: if no process
/// reads standard error, lines are dropped and requests are not blocked.
///
/// # Errors
/// When the level is unknown.
pub fn start_log(settings: &Settings) -> Result<Log> {
    let filter: Targets = settings.log_level.parse().context("--log")?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let _ = DROPPED_LINES.set(writer.error_counter());
    let log = tracing_subscriber::registry().with(filter);
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(terminal);
    let pretty = match settings.log_format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    if pretty {
        log.with(lines).init();
    } else {
        log.with(lines.json().flatten_event(true).with_current_span(false)).init();
    }
    Ok(Log(guard))
}

/// Number of log lines that were dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED_LINES.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Details for the request's log line, metrics and trace that only its handler knows; an extension of the response.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestDetails {
    pub(crate) prediction_id: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) confidence: Option<f32>,
    pub(crate) decision: Option<Decision>,
    /// Time at which the body was complete.
    pub(crate) received: Option<Instant>,
    /// One for each image that the network has run on.
    pub(crate) timings: Vec<Timings>,
    pub(crate) images: usize,
    pub(crate) bytes: usize,
    pub(crate) problem: Option<Problem>,
}

/// A request that has ended.
pub(crate) struct Record<'a> {
    pub(crate) id: &'a str,
    pub(crate) parent: Option<ParentSpan>,
    pub(crate) method: &'a Method,
    pub(crate) route: &'static str,
    pub(crate) status: StatusCode,
    pub(crate) began: Instant,
    pub(crate) duration: Duration,
    pub(crate) details: &'a RequestDetails,
}

impl Record<'_> {
    /// Writes the log line, and records metrics and trace.
    pub(crate) fn write(&self, rates: &Rates, traces: &Traces) {
        self.count();
        rates.record_request(self.status.is_server_error());
        let trace = traces.record(self).or_else(|| self.parent.map(|parent| parent.trace()));
        let details = self.details;
        let stage_ms = |stage: fn(&Timings) -> Stage| match details.timings.as_slice() {
            [timings] => Some(milliseconds(stage(timings).duration)),
            _ => None,
        };
        tracing::info!(
            target: "petnet_serve::request",
            id = self.id,
            trace,
            method = %self.method,
            route = self.route,
            status = self.status.as_u16(),
            ms = milliseconds(self.duration),
            bytes = details.bytes,
            // Named as in the metrics, see `names`.
            photos = details.images,
            decode_ms = stage_ms(|timings| timings.decode),
            queue_ms = stage_ms(|timings| timings.queue),
            model_ms = stage_ms(|timings| timings.model),
            prediction_id = details.prediction_id.as_deref(),
            label = details.label.as_deref(),
            confidence = details.confidence,
            decision = details.decision.map(Decision::name),
            problem = details.problem.as_ref().map(|p| p.detail.as_str()),
        );
    }

    fn count(&self) {
        let status = self.status.as_str().to_string();
        counter!(
            names::API_REQUESTS_TOTAL,
            "endpoint" => self.route, "method" => method_label(self.method), "status" => status
        )
        .increment(1);
        histogram!(names::API_REQUEST_LATENCY_SECONDS, "endpoint" => self.route)
            .record(self.duration);
        let infers = self.route.ends_with("/infer") || self.route.ends_with("/ModelInfer");
        let predicts = self.route.starts_with("/predict") || infers;
        if predicts {
            histogram!(names::PREDICTION_LATENCY_SECONDS).record(self.duration);
        }
        if let Some(problem) = &self.details.problem {
            let kind = problem.kind.name();
            counter!(names::API_ERRORS_TOTAL, "endpoint" => self.route, "error_type" => kind)
                .increment(1);
            if predicts || ["/embed", "/explain"].contains(&self.route) {
                counter!(names::PREDICTION_ERRORS_TOTAL, "error_type" => kind).increment(1);
            }
        }
    }
}

/// Milliseconds, rounded to hundredths.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// The method as a label value: methods that clients invent must not become label values.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
