//! Converts Prometheus' text exposition of `/metrics` to an OTLP request, as OpenTelemetry's "Prometheus and OpenMetrics
//! Compatibility" specifies: names, labels and values stay the same.
//!
//! The text is parsed because the recorder has no public snapshot, and its protobuf output needs `protoc` at build time. It has
//! counters, gauges and histograms; summaries are not converted, because each histogram of `names.rs` has buckets.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue as Attribute};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ResourceMessage;
use opentelemetry_proto::transform::common::tonic::{Attributes, ResourceAttributesWithSchema};
use opentelemetry_sdk::Resource;

use super::names;

/// The request for an exposition. Cumulative points start with the process, or at `started` where
/// `process_start_time_seconds` is missing.
/// Errors: when a line is not in the text format.
pub(super) fn export_request(
    exposition: &str,
    resource: &Resource,
    started: SystemTime,
) -> Result<ExportMetricsServiceRequest> {
    let families = parse(exposition)?;
    let now = nanoseconds(SystemTime::now());
    let process = families.iter().find(|family| family.name == names::PROCESS_START_TIME_SECONDS);
    let process = process.and_then(|family| family.samples.first());
    let start = process.map_or(nanoseconds(started), |sample| (sample.value * 1e9) as u64);
    let times = (start.min(now), now);
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    let metrics = families.into_iter().map(|family| metric(family, times)).collect();
    let metrics = ScopeMetrics { scope: Some(scope), metrics, ..Default::default() };
    let attributes = ResourceAttributesWithSchema::from(resource).attributes.0;
    let resource = Some(ResourceMessage { attributes, ..Default::default() });
    let metrics = ResourceMetrics { resource, scope_metrics: vec![metrics], ..Default::default() };
    Ok(ExportMetricsServiceRequest { resource_metrics: vec![metrics] })
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Converts a family; the name keeps suffixes such as `_total` and `_seconds`.
fn metric(family: Family<'_>, times: (u64, u64)) -> Metric {
    let Family { name, help, kind, samples } = family;
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let data = match kind {
        "counter" => {
            let data_points =
                samples.into_iter().map(|sample| number_data_point(sample, times)).collect();
            Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true })
        }
        "histogram" => {
            let all = histogram_series(samples).into_iter();
            let data_points = all.filter_map(|series| series.data_point(times)).collect();
            Data::Histogram(Histogram { data_points, aggregation_temporality })
        }
        _ => {
            let times = (0, times.1);
            let data_points =
                samples.into_iter().map(|sample| number_data_point(sample, times)).collect();
            Data::Gauge(Gauge { data_points })
        }
    };
    let unit = unit(name).into();
    Metric { name: name.into(), description: help, unit, data: Some(data), ..Default::default() }
}

/// The unit in UCUM notation, from the suffix of the name.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit_once('_') {
        Some((_, "seconds")) => "s",
        Some((_, "bytes")) => "By",
        Some((_, "ratio")) => "1",
        Some((_, "percent")) => "%",
        _ => "",
    }
}

fn number_data_point(sample: Sample<'_>, (start, now): (u64, u64)) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(sample.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(Value::AsDouble(sample.value)),
        ..Default::default()
    }
}

fn attributes(labels: Labels<'_>) -> Vec<Attribute> {
    Attributes::from(labels.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value))).0
}

/// The series of a histogram with the same labels, apart from the label `le`.
#[derive(Default)]
struct HistogramSeries<'a> {
    labels: Labels<'a>,
    count: Option<u64>,
    sum: Option<f64>,
    /// Upper bound and cumulative count of each bucket.
    buckets: Vec<(f64, f64)>,
}

/// Groups the samples of a histogram by their labels without `le`, the upper bound of a bucket.
fn histogram_series(samples: Vec<Sample<'_>>) -> Vec<HistogramSeries<'_>> {
    let mut all: BTreeMap<Labels<'_>, HistogramSeries<'_>> = BTreeMap::new();
    for Sample { name, mut labels, value } in samples {
        let position = labels.iter().position(|(key, _)| *key == "le");
        let bound = position.and_then(|position| labels.remove(position).1.parse().ok());
        let series = all.entry(labels).or_default();
        match bound {
            Some(bound) => series.buckets.push((bound, value)),
            None if name.ends_with("_sum") => series.sum = Some(value),
            None if name.ends_with("_count") => series.count = Some(value as u64),
            None => (),
        }
    }
    all.into_iter().map(|(labels, series)| HistogramSeries { labels, ..series }).collect()
}

impl HistogramSeries<'_> {
    /// `None` without a count, as the specification requires.
    fn data_point(mut self, (start, now): (u64, u64)) -> Option<HistogramDataPoint> {
        let count = self.count?;
        self.buckets.retain(|(bound, _)| bound.is_finite());
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0;
        let mut bucket_counts = Vec::with_capacity(self.buckets.len() + 1);
        for cumulative in self.buckets.iter().map(|(_, count)| *count as u64).chain([count]) {
            bucket_counts.push(cumulative.saturating_sub(below));
            below = cumulative;
        }
        Some(HistogramDataPoint {
            attributes: attributes(self.labels),
            start_time_unix_nano: start,
            time_unix_nano: now,
            count,
            sum: self.sum,
            bucket_counts,
            explicit_bounds: self.buckets.into_iter().map(|(bound, _)| bound).collect(),
            ..Default::default()
        })
    }
}

type Labels<'a> = Vec<(&'a str, String)>;

/// The series under one `# TYPE`.
#[derive(Debug, Default)]
struct Family<'a> {
    name: &'a str,
    help: String,
    kind: &'a str,
    samples: Vec<Sample<'a>>,
}

impl Family<'_> {
    /// True for a sample of this family. A sample without a `# TYPE` of its name is a family of its own, of unknown type, which
    /// OTLP represents as a gauge.
    fn has(&self, sample: &str) -> bool {
        match sample.strip_prefix(self.name) {
            Some("") => true,
            Some("_bucket" | "_sum" | "_count") => self.kind == "histogram",
            _ => false,
        }
    }
}

#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Labels<'a>,
    value: f64,
}

fn parse(exposition: &str) -> Result<Vec<Family<'_>>> {
    let mut families = Vec::new();
    for (number, line) in (1..).zip(exposition.lines()) {
        let comment = |keyword: &str| line.strip_prefix(keyword)?.split_once(' ');
        if let Some((name, help)) = comment("# HELP ") {
            let (help, _) = unescape(help, None);
            family(&mut families, name, |last| last.name == name).help = help;
        } else if let Some((name, kind)) = comment("# TYPE ") {
            family(&mut families, name, |last| last.name == name).kind = kind.trim();
        } else if !line.starts_with('#') && !line.trim().is_empty() {
            let sample = sample(line);
            let sample = sample.with_context(|| format!("line {number} of the metrics: {line}"))?;
            let name = sample.name;
            family(&mut families, name, |last| last.has(name)).samples.push(sample);
        }
    }
    Ok(families)
}

/// The last family if `continues` holds for it, else a new one.
fn family<'f, 'a>(
    families: &'f mut Vec<Family<'a>>,
    name: &'a str,
    continues: impl Fn(&Family<'a>) -> bool,
) -> &'f mut Family<'a> {
    if !families.last().is_some_and(continues) {
        families.push(Family { name, ..Default::default() });
    }
    let last = families.len() - 1;
    &mut families[last]
}

/// Parses `name{label="value",...} value`; a timestamp after the value is ignored.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unescape(quoted, Some('"'));
            labels.push((key.trim(), value));
            rest = after?;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name, labels, value })
}

/// The unescaped text up to `end`, and the text after `end`, `None` where `end` is missing.
fn unescape(text: &str, end: Option<char>) -> (String, Option<&str>) {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('n') => plain.push('\n'),
                escaped => plain.extend(escaped),
            },
            _ if Some(character) == end => return (plain, Some(characters.as_str())),
            _ => plain.push(character),
        }
    }
    (plain, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(exposition: &str) -> Vec<Metric> {
        let request =
            export_request(exposition, &Resource::builder_empty().build(), SystemTime::now())
                .unwrap();
        request.resource_metrics[0].scope_metrics[0].metrics.clone()
    }

    #[test]
    fn label_values_may_hold_anything() {
        let line = r#"a_total{x="q\"u}o,t=\"e\\n\n",y=""} +Inf 1700000000000"#;
        let labels = vec![("x", "q\"u}o,t=\"e\\n\n".to_string()), ("y", String::new())];
        assert_eq!(sample(line), Some(Sample { name: "a_total", labels, value: f64::INFINITY }));
        for (text, value) in [("-Inf", f64::NEG_INFINITY), ("inf", f64::INFINITY), ("1e-3", 1e-3)] {
            assert_eq!(sample(&format!("a {text}")).unwrap().value, value);
        }
        assert!(sample("a NaN").unwrap().value.is_nan());
        assert_eq!(sample("a{} 1").unwrap().labels, []);
        for wrong in ["a", "a ", "a one", "a{x=\"1\" 1", "a{x=\"1} 1", "a{x=1} 1", "a{x=\"1\"}"] {
            assert_eq!(sample(wrong), None, "{wrong}");
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn families_have_type_help_and_unit() {
        let metrics = converted(concat!(
            "# HELP a_seconds_total Time, \"a\" \\\\ b\\nnext\n# TYPE a_seconds_total counter\n",
            "a_seconds_total{k=\"v\"} 3\n\n# TYPE b_bytes gauge\nb_bytes NaN\n# EOF\nc_sum 7\n",
            "process_start_time_seconds 12.5\n"
        ));
        let [a, b, c, _] = &metrics[..] else { panic!("{metrics:?}") };
        assert_eq!((a.name.as_str(), a.unit.as_str()), ("a_seconds_total", "s"));
        assert_eq!(a.description, "Time, \"a\" \\ b\nnext");
        let Some(Data::Sum(sum)) = &a.data else { panic!("{a:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let point = &sum.data_points[0];
        assert_eq!(
            (point.value, point.start_time_unix_nano),
            (Some(Value::AsDouble(3.0)), 12_500_000_000)
        );
        assert_eq!(point.attributes, attributes(vec![("k", "v".into())]));
        let Some(Data::Gauge(gauge)) = &b.data else { panic!("{b:?}") };
        let Some(Value::AsDouble(value)) = gauge.data_points[0].value else { panic!("{b:?}") };
        assert!(value.is_nan() && gauge.data_points[0].start_time_unix_nano == 0);
        assert!(b.unit == "By" && c.name == "c_sum" && matches!(c.data, Some(Data::Gauge(_))));
    }

    #[test]
    fn cumulative_buckets_become_counts_per_bucket() {
        let metrics = converted(concat!(
            "# TYPE h histogram\nh_bucket{le=\"0.5\"} 2\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 5\n",
            "h_sum 9.5\nh_count 5\nh_bucket{k=\"without a count\",le=\"1\"} 1\n"
        ));
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        let [point] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!(
            (&point.explicit_bounds[..], &point.bucket_counts[..]),
            (&[0.5, 1.0][..], &[2, 0, 3][..])
        );
        assert_eq!((point.count, point.sum, histogram.aggregation_temporality), (5, Some(9.5), 2));
    }
}
