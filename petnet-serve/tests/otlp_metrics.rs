//! Metrics, as a collector receives them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use common::{Server, test_image, wait_until};
use image::ImageFormat;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, NumberDataPoint};
use prost::Message as _;

/// Type, help text and series of each family; a series is keyed by its text on `/metrics`.
#[derive(Debug, Default)]
struct Exposition {
    families: BTreeSet<(String, String, String)>,
    series: BTreeMap<String, f64>,
}

impl Exposition {
    fn scraped(server: &Server) -> Self {
        let text = String::from_utf8(server.get("/metrics").body).unwrap();
        let mut exposition = Self::default();
        let mut help = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some((name, about)) =
                line.strip_prefix("# HELP ").and_then(|l| l.split_once(' '))
            {
                help.insert(name, about);
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
            {
                let help = help.get(name).copied().unwrap_or_default();
                exposition.families.insert((name.into(), kind.into(), help.into()));
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                exposition.series.insert(series.into(), value.parse().unwrap());
            }
        }
        exposition
    }

    fn exported(metrics: &[Metric]) -> Self {
        let mut exposition = Self::default();
        for metric in metrics {
            let kind = exposition.insert(metric);
            exposition.families.insert((
                metric.name.clone(),
                kind.into(),
                metric.description.clone(),
            ));
        }
        exposition
    }

    /// Adds the series of a metric in Prometheus' format; returns its type.
    fn insert(&mut self, Metric { name, data, .. }: &Metric) -> &'static str {
        let cumulative = i32::from(AggregationTemporality::Cumulative);
        let number = |point: &NumberDataPoint| match point.value {
            Some(Value::AsDouble(value)) => (series(name, &point.attributes, None), value),
            _ => panic!("{point:?}"),
        };
        match data.as_ref().unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative);
                let times = |p: &NumberDataPoint| (p.start_time_unix_nano, p.time_unix_nano);
                assert!(
                    sum.data_points.iter().map(times).all(|(start, now)| 0 < start && start <= now)
                );
                self.series.extend(sum.data_points.iter().map(number));
                "counter"
            }
            Data::Gauge(gauge) => {
                self.series.extend(gauge.data_points.iter().map(number));
                "gauge"
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative);
                for point in &histogram.data_points {
                    let labels = &point.attributes;
                    let bounds = point.explicit_bounds.iter().map(f64::to_string);
                    let mut below = 0;
                    for (bound, count) in bounds.chain(["+Inf".into()]).zip(&point.bucket_counts) {
                        below += count;
                        let bucket = series(&format!("{name}_bucket"), labels, Some(&bound));
                        self.series.insert(bucket, below as f64);
                    }
                    let sum = series(&format!("{name}_sum"), labels, None);
                    let count = series(&format!("{name}_count"), labels, None);
                    self.series.extend([(sum, point.sum.unwrap()), (count, point.count as f64)]);
                }
                "histogram"
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// A series in the text format.
fn series(name: &str, labels: &[KeyValue], bound: Option<&str>) -> String {
    let label = |label: &KeyValue| match label.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(value)) => {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            format!("{}=\"{value}\"", label.key)
        }
        other => panic!("{other:?}"),
    };
    let bound = bound.map(|bound| format!("le=\"{bound}\""));
    let labels: Vec<_> = labels.iter().map(label).chain(bound).collect();
    if labels.is_empty() { name.into() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// Receives the first export made at `since` or later.
fn receive(collector: &tiny_http::Server, since: SystemTime) -> Vec<Metric> {
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < Duration::from_secs(60), "no export");
        let request = collector.recv_timeout(Duration::from_millis(100)).unwrap();
        let Some(mut request) = request else { continue };
        let mut body = Vec::new();
        request.as_reader().read_to_end(&mut body).unwrap();
        let header = |name: &'static str| {
            let found = request.headers().iter().find(|header| header.field.equiv(name));
            found.map(|header| header.value.as_str().to_string())
        };
        let (kind, key) = (header("content-type"), header("x-key"));
        let metrics = request.url() == "/v1/metrics";
        // Fails where the exporter has timed out.
        let _ = request.respond(tiny_http::Response::empty(200));
        if metrics {
            assert_eq!(kind.as_deref(), Some("application/x-protobuf"));
            assert_eq!(key.as_deref(), Some("a b"));
            let metrics = decode(&body);
            let times = metrics.iter().filter_map(|metric| match &metric.data {
                Some(Data::Gauge(gauge)) => gauge.data_points.first(),
                _ => None,
            });
            if times.map(|point| u128::from(point.time_unix_nano)).all(|time| time >= since) {
                return metrics;
            }
        }
    }
}

fn decode(body: &[u8]) -> Vec<Metric> {
    let export = ExportMetricsServiceRequest::decode(body).unwrap();
    let [resource] = &export.resource_metrics[..] else { panic!("{export:?}") };
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    for (key, part) in [("service.name", "petnet-serve"), ("service.instance.id", "pod-1")] {
        let attribute = attributes.iter().find(|a| a.key == key).unwrap();
        assert!(format!("{:?}", attribute.value).contains(part), "{attribute:?}");
    }
    resource.scope_metrics[0].metrics.clone()
}

/// True for gauges of the machine, of time and of the scrape's own connection, which differ between two renderings.
fn varies(series: &str) -> bool {
    let prefixes = ["process_", "open_", "memory_", "disk_", "gpu_", "current_", "service_uptime"];
    let rates = ["requests_per_minute", "api_error_rate", "batch_throughput", "batch_size_avg"];
    let fixed = ["process_start_time_seconds", "process_cpu_seconds_total"];
    !fixed.contains(&series) && prefixes.iter().chain(&rates).any(|start| series.starts_with(start))
}

const VARIABLES: [(&str, &str); 3] = [
    ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b"),
    ("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1"),
];

#[test]
fn an_export_has_every_family_and_value_of_metrics() {
    let collector = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.server_addr());
    let arguments = ["--otlp-endpoint", &endpoint, "--drain-delay", "0s"];
    let mut server = Server::start_with(&VARIABLES, &arguments);
    let image = test_image(ImageFormat::Jpeg);
    for _ in 0..3 {
        let reply = server.post("/predict", &[("content-type", "image/jpeg")], &image);
        assert_eq!(reply.status, 200);
    }
    // An export after this scrape includes the families that the scrape itself adds.
    Exposition::scraped(&server);
    let settle = Duration::from_millis(100);
    let before = Exposition::exported(&receive(&collector, SystemTime::now() + settle));
    let scraped = Exposition::scraped(&server);
    let after = Exposition::exported(&receive(&collector, SystemTime::now() + settle));

    assert_eq!(scraped.families, before.families);
    assert!(scraped.series.keys().eq(before.series.keys()), "{scraped:?}\n{before:?}");
    assert!(scraped.series["prediction_latency_seconds_count"] >= 3.0);
    for (series, value) in scraped.series.iter().filter(|(series, _)| !varies(series)) {
        // The scrape itself is counted after its response, so that its counts change between the two exports.
        let (low, high) = (before.series[series], after.series[series]);
        let same = value.to_bits() == low.to_bits() || value.to_bits() == high.to_bits();
        assert!(same || (low..=high).contains(value), "{series}: {low}, {value}, {high}");
    }

    server.get("/health");
    server.signal("-TERM");
    let health = |exposition: &Exposition| exposition.series["health_check_requests_total"];
    let mut last = before;
    while health(&last) < health(&scraped) + 1.0 {
        last = Exposition::exported(&receive(&collector, SystemTime::UNIX_EPOCH));
    }
    drop(collector);
    assert_eq!(server.wait(), Some(0));
    let late = |line: &serde_json::Value| {
        line["message"] == "the last export of metrics did not finish in time"
    };
    assert!(!server.log().iter().any(late));
}

#[test]
fn an_unreachable_collector_is_counted_and_logged_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let server = Server::start_with(&VARIABLES, &["--otlp-endpoint", &endpoint]);
    wait_until("failures are counted", || server.metrics()["otlp_export_errors_total"] >= 3.0);
    assert_eq!(server.get("/health").status, 200);
    let logged = |text: &str| {
        let log = server.log();
        log.iter()
            .filter(|line| line["message"].as_str().unwrap_or_default().contains(text))
            .count()
    };
    assert_eq!(logged("exports of metrics fail"), 1);
    let collector = tiny_http::Server::http(("127.0.0.1", port)).unwrap();
    wait_until("the recovery is logged", || {
        receive(&collector, SystemTime::now());
        logged("exports of metrics succeed again") > 0
    });
    receive(&collector, SystemTime::now());
    assert_eq!(logged("exports of metrics fail"), 1);
    assert_eq!(logged("exports of metrics succeed again"), 1);
}

#[test]
fn otel_metrics_exporter_none_disables_the_export() {
    let collector = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.server_addr());
    let off = [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_METRIC_EXPORT_INTERVAL", "50")];
    let _server = Server::start_with(&off, &["--otlp-endpoint", &endpoint]);
    let request = collector.recv_timeout(Duration::from_secs(1)).unwrap();
    assert!(request.is_none_or(|request| request.url() != "/v1/metrics"));
}
