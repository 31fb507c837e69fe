//! Periodic export of the metrics of `/metrics` to an OpenTelemetry collector over HTTP.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use percent_encoding::percent_decode_str;
use prost::Message as _;
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::names;
use super::otlp::export_request;
use super::traces::{agent, resource};

/// Default of OTEL_METRIC_EXPORT_INTERVAL.
const INTERVAL: Duration = Duration::from_secs(60);

/// Periodic export on a thread of its own. A failed export is not retried, as the next one carries the same cumulative
/// values. Dropping it ends the thread without a last export.
pub(crate) struct MetricsExport {
    stop: Sender<()>,
    finished: Receiver<()>,
}

impl MetricsExport {
    /// Starts to export the exposition that `scrape` renders; `None` where no collector is set or OTEL_METRICS_EXPORTER
    /// excludes OTLP.
    /// Errors: when the collector's address is not an HTTP address.
    pub(crate) fn start(
        endpoint: Option<&str>,
        scrape: impl Fn() -> String + Send + 'static,
    ) -> Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(collector) = Collector::new(endpoint, variable)? else { return Ok(None) };
        let interval = collector.interval;
        let mut exporter = Exporter::new(collector, scrape);
        let (stop, stopped) = channel();
        let (finished_sender, finished) = channel();
        let export = move || {
            let mut wait = interval;
            loop {
                let stopped = stopped.recv_timeout(wait);
                let began = Instant::now();
                if stopped == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
                exporter.export();
                if stopped.is_ok() {
                    // The caller may have given up waiting.
                    let _ = finished_sender.send(());
                    return;
                }
                wait = interval.saturating_sub(began.elapsed());
            }
        };
        std::thread::Builder::new().name("otlp-metrics".into()).spawn(export)?;
        Ok(Some(Self { stop, finished }))
    }

    /// Exports a last time and waits for the end of it, but no longer than `limit`; returns true if it ended in time.
    pub(crate) fn finish(self, limit: Duration) -> bool {
        let sent = self.stop.send(()).is_ok() && self.finished.recv_timeout(limit).is_ok();
        if !sent {
            tracing::warn!("the last export of metrics did not finish in time");
        }
        sent
    }
}

/// Address, headers and interval of the export.
struct Collector {
    url: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    interval: Duration,
}

impl Collector {
    fn new(
        endpoint: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        let exporters = variable("OTEL_METRICS_EXPORTER").unwrap_or_else(|| "otlp".into());
        let url = variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
            .or_else(|| Some(format!("{}/v1/metrics", endpoint?.trim_end_matches('/'))));
        let Some(url) = url.filter(|_| exporters.split(',').any(|name| name.trim() == "otlp"))
        else {
            return Ok(None);
        };
        let address = || format!("address of the OpenTelemetry collector's metrics: {url}");
        let uri: Uri = url.parse().with_context(address)?;
        let http = matches!(uri.scheme_str(), Some("http" | "https"));
        ensure!(http, "{}: must start with http:// or https://", address());
        let headers = variable("OTEL_EXPORTER_OTLP_METRICS_HEADERS")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS"));
        let headers = headers.iter().flat_map(|list| list.split(',')).filter_map(header).collect();
        let interval = variable("OTEL_METRIC_EXPORT_INTERVAL").map_or(INTERVAL, |text| {
            let valid = text.parse().ok().filter(|milliseconds| *milliseconds > 0);
            valid.map(Duration::from_millis).unwrap_or_else(|| {
                tracing::warn!(value = text, "OTEL_METRIC_EXPORT_INTERVAL is ignored");
                INTERVAL
            })
        });
        Ok(Some(Self { url: uri, headers, interval }))
    }
}

/// A header of OTEL_EXPORTER_OTLP_HEADERS: `name=value`, the value percent-encoded. Invalid ones are skipped, as they are
/// for traces.
fn header(pair: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    Some((name.trim().parse().ok()?, value.parse().ok()?))
}

struct Exporter<F> {
    collector: Collector,
    agent: ureq::Agent,
    scrape: F,
    started: SystemTime,
    last_succeeded: bool,
}

impl<F: Fn() -> String> Exporter<F> {
    fn new(collector: Collector, scrape: F) -> Self {
        Self { collector, agent: agent(), scrape, started: SystemTime::now(), last_succeeded: true }
    }

    /// Exports once; logs only when exports begin to fail and when they succeed again.
    fn export(&mut self) {
        let outcome = self.send();
        match &outcome {
            Ok(()) if self.last_succeeded => (),
            Ok(()) => tracing::info!("exports of metrics succeed again"),
            Err(error) => {
                metrics::counter!(names::OTLP_EXPORT_ERRORS_TOTAL).increment(1);
                if self.last_succeeded {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "exports of metrics fail");
                }
            }
        }
        self.last_succeeded = outcome.is_ok();
    }

    fn send(&self) -> Result<()> {
        let exposition = (self.scrape)();
        let body = export_request(&exposition, resource(), self.started)?.encode_to_vec();
        let mut post = self
            .agent
            .post(&self.collector.url)
            .header("content-type", "application/x-protobuf")
            .header("user-agent", concat!("petnet-serve/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.collector.headers {
            post = post.header(name, value);
        }
        let mut response = post.send(&body[..])?;
        ensure!(
            response.status().is_success(),
            "the collector responded with {}",
            response.status()
        );
        let body = response.body_mut().with_config().limit(1 << 20).read_to_vec()?;
        let partial = ExportMetricsServiceResponse::decode(&body[..])
            .ok()
            .and_then(|response| response.partial_success)
            .filter(|partial| partial.rejected_data_points > 0);
        if let Some(partial) = partial {
            let (count, reason) = (partial.rejected_data_points, partial.error_message);
            bail!("the collector rejected {count} data points: {reason}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Collector>> {
        Collector::new(endpoint, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn the_environment_names_collector_headers_and_interval() {
        let base = Some("http://collector:4318/");
        let plain = parse(base, &[]).unwrap().unwrap();
        assert_eq!(plain.url, "http://collector:4318/v1/metrics");
        assert_eq!((plain.headers.len(), plain.interval), (0, INTERVAL));
        let own = parse(
            None,
            &[
                ("OTEL_METRICS_EXPORTER", "prometheus, otlp"),
                ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://other/path"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x = 1 ,junk,b d=2"),
                ("OTEL_METRIC_EXPORT_INTERVAL", "250"),
            ],
        );
        let own = own.unwrap().unwrap();
        assert_eq!(
            (own.url.to_string(), own.interval.as_millis()),
            ("https://other/path".into(), 250)
        );
        let headers: Vec<_> = own
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("authorization", "Bearer a,b"), ("x", "1")]);
        for interval in ["0", "-1", "1m"] {
            let kept = parse(base, &[("OTEL_METRIC_EXPORT_INTERVAL", interval)]);
            assert_eq!(kept.unwrap().unwrap().interval, INTERVAL);
        }
        assert!(parse(None, &[]).unwrap().is_none());
        for other in ["none", "prometheus"] {
            assert!(parse(base, &[("OTEL_METRICS_EXPORTER", other)]).unwrap().is_none());
        }
        for wrong in ["collector:4318", "grpc://collector", "http://a b", ""] {
            assert!(parse(Some(wrong), &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn failed_exports_are_counted_and_partial_ones_too() {
        let collector = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.server_addr());
        let exposition = "# TYPE a counter\na 1\n";
        let answers = std::thread::spawn(move || {
            let partial = [0x0a, 0x06, 0x08, 0x01, 0x12, 0x02, b'n', b'o'];
            for (status, body) in [(503, &b""[..]), (200, &b""[..]), (200, &partial[..])] {
                let request = collector.recv().unwrap();
                let response = tiny_http::Response::from_data(body).with_status_code(status);
                request.respond(response).unwrap();
            }
        });
        let mut exporter =
            Exporter::new(parse(Some(&endpoint), &[]).unwrap().unwrap(), || exposition.to_string());
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let succeeded = [(); 3].map(|()| {
                exporter.export();
                exporter.last_succeeded
            });
            assert_eq!(succeeded, [false, true, false]);
        });
        answers.join().unwrap();
        let rendered = recorder.handle().render();
        assert!(rendered.contains("otlp_export_errors_total 2"), "{rendered}");
    }

    #[test]
    fn an_unresponsive_collector_delays_the_end_no_longer_than_the_limit() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let export = MetricsExport::start(Some(&endpoint), String::new).unwrap().unwrap();
        assert!(!export.finish(Duration::from_millis(50)), "not awaited to its own timeout");
    }
}
