//! OpenTelemetry spans of requests and their stages, exported to a collector over HTTP.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
    TraceFlags, TraceId, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use uuid::Uuid;

use super::Record;
use crate::outputs::Stage;

/// Maximum wait for the collector.
pub(crate) const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The exporter of spans; `None` where no collector is set. A thread of its own sends spans from a bounded queue; further
/// spans are dropped.
pub(crate) struct Traces(Option<(SdkTracerProvider, SdkTracer)>);

impl Traces {
    /// Starts the exporter for the collector at `endpoint`.
    /// Errors: when the collector's URL is invalid.
    pub(crate) fn start(endpoint: Option<&str>) -> Result<Self> {
        let Some(endpoint) = endpoint else { return Ok(Self(None)) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(ExportClient(agent()))
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .with_context(|| format!("--otlp-endpoint {endpoint}"))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource().clone())
            .build();
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self(Some((provider, tracer))))
    }

    /// Records the spans of a request that has ended, and returns its trace id.
    pub(crate) fn record(&self, record: &Record<'_>) -> Option<String> {
        let (_, tracer) = self.0.as_ref()?;
        let clock = Clock::now();
        let parent = record.parent.map_or_else(Context::new, ParentSpan::context);
        let mut builder = SpanBuilder::from_name(record.route)
            .with_kind(SpanKind::Server)
            .with_start_time(clock.at(record.began));
        builder.attributes = Some(vec![
            KeyValue::new("http.request.method", record.method.to_string()),
            KeyValue::new("http.route", record.route),
            KeyValue::new("http.response.status_code", i64::from(record.status.as_u16())),
            KeyValue::new("request.id", record.id.to_string()),
        ]);
        let mut root = tracer.build_with_context(builder, &parent);
        if record.status.is_server_error() {
            let problem = record.details.problem.as_ref().map_or("", |problem| problem.kind.name());
            root.set_status(Status::error(problem));
        }
        let ended = record.began + record.duration;
        let trace = root.span_context().clone();
        root.end_with_timestamp(clock.at(ended));
        if trace.is_sampled() {
            let inside = Context::new().with_remote_span_context(trace.clone());
            for (name, stage, images) in stages(record, ended) {
                let mut builder =
                    SpanBuilder::from_name(name).with_start_time(clock.at(stage.began));
                builder.attributes = images.map(|n| vec![KeyValue::new("batch.images", n as i64)]);
                let mut span = tracer.build_with_context(builder, &inside);
                span.end_with_timestamp(clock.at(stage.began + stage.duration));
            }
        }
        Some(trace.trace_id().to_string())
    }

    /// Sends the waiting spans.
    pub(crate) fn finish(&self) {
        if let Some((provider, _)) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(EXPORT_TIMEOUT)
        {
            tracing::warn!(%error, "some traces were not sent");
        }
    }
}

/// HTTP client of traces and metrics.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::new_with_config(
        ureq::Agent::config_builder()
            .timeout_global(Some(EXPORT_TIMEOUT))
            .http_status_as_error(false)
            .build(),
    )
}

/// Attributes of this process in traces and metrics; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override them.
pub(super) fn resource() -> &'static Resource {
    static RESOURCE: OnceLock<Resource> = OnceLock::new();
    RESOURCE.get_or_init(|| {
        let detected = Resource::builder().build();
        let is_set = |name: &'static str| {
            let value = detected.get(&Key::new(name));
            value.is_some_and(|value| !value.as_str().starts_with("unknown_service"))
        };
        let defaults = [
            ("service.name", env!("CARGO_PKG_NAME").to_string()),
            ("service.version", env!("CARGO_PKG_VERSION").to_string()),
            // Tells the cumulative series of replicas apart.
            ("service.instance.id", Uuid::new_v4().to_string()),
        ];
        let missing = defaults.into_iter().filter(|(name, _)| !is_set(name));
        let missing = missing.map(|(name, value)| KeyValue::new(name, value));
        Resource::builder().with_attributes(missing).build()
    })
}

/// The stages of a request in order; that of a batch has its number of images.
fn stages(record: &Record<'_>, ended: Instant) -> Vec<(&'static str, Stage, Option<usize>)> {
    let details = record.details;
    let between = |from: Instant, to: Instant| Stage {
        began: from,
        duration: to.saturating_duration_since(from),
    };
    let accept = details.received.map(|at| ("accept", between(record.began, at), None));
    let images = details.timings.iter().flat_map(|timings| {
        [
            ("decode", timings.decode, None),
            ("queue", timings.queue, None),
            ("batch", timings.batch, Some(timings.batch_size)),
            ("model", timings.model, None),
        ]
    });
    let last =
        details.timings.iter().map(|timings| timings.batch.began + timings.batch.duration).max();
    let respond = last.map(|at| ("respond", between(at, ended), None));
    accept.into_iter().chain(images).chain(respond).collect()
}

/// Converts monotonic times to calendar times.
struct Clock(Instant, SystemTime);

impl Clock {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    fn at(&self, time: Instant) -> SystemTime {
        self.1 - self.0.saturating_duration_since(time)
    }
}

/// The caller's span, from a W3C `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ParentSpan {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl ParentSpan {
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = (version.len(), trace.len(), span.len(), flags.len()) == (2, 32, 16, 2);
        // Version 00 has four parts; later ones may have more.
        if !lengths || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        let valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        valid.then_some(Self { trace, span, flags })
    }

    pub(crate) fn trace(&self) -> String {
        self.trace.to_string()
    }

    fn context(self) -> Context {
        let context = SpanContext::new(self.trace, self.span, self.flags, true, TraceState::NONE);
        Context::new().with_remote_span_context(context)
    }
}

/// The HTTP client of the exporter's thread.
#[derive(Debug)]
struct ExportClient(ureq::Agent);

#[async_trait]
impl HttpClient for ExportClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let mut reply = self.0.run(Request::from_parts(parts, body.as_ref()))?;
        let body = reply.body_mut().with_config().limit(1 << 20).read_to_vec()?;
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = reply.status();
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_traceparent_is_parsed_and_an_invalid_one_is_not() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = ParentSpan::parse(&format!("00-{trace}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(parent.trace(), trace);
        assert!(parent.flags.is_sampled());
        assert!(ParentSpan::parse(&format!("cc-{trace}-00f067aa0ba902b7-01-more")).is_some());
        for wrong in [
            String::new(),
            "00".into(),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("00-{trace}-00f067aa0ba902b7-01-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", "g".repeat(32)),
        ] {
            assert_eq!(ParentSpan::parse(&wrong), None, "{wrong}");
        }
    }
}
