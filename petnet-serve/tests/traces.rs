//! Traces, as a collector receives them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Server, multipart, test_image};
use image::ImageFormat;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

/// Receives spans until `enough` holds.
fn collect(collector: &tiny_http::Server, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
    let began = Instant::now();
    let mut spans = Vec::new();
    while !enough(&spans) {
        assert!(began.elapsed() < Duration::from_secs(60), "{spans:?}");
        let Some(mut request) = collector.recv_timeout(Duration::from_millis(100)).unwrap() else {
            continue;
        };
        assert_eq!(request.url(), "/v1/traces");
        let mut body = Vec::new();
        request.as_reader().read_to_end(&mut body).unwrap();
        let export = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        for resource in export.resource_spans {
            let attributes = &resource.resource.as_ref().unwrap().attributes;
            let name = attributes.iter().find(|a| a.key == "service.name").unwrap();
            assert!(format!("{:?}", name.value).contains("petnet-serve"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        request.respond(tiny_http::Response::empty(200)).unwrap();
    }
    spans
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_request_is_one_trace_from_accept_to_respond_within_its_callers() {
    let collector = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.server_addr());
    let arguments = ["--otlp-endpoint", &endpoint, "--drain-delay", "0s"];
    let mut server = Server::start_with(&[("OTEL_METRICS_EXPORTER", "none")], &arguments);
    let caller = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{caller}-00f067aa0ba902b7-01");
    let unsampled = "00-11111111111111111111111111111111-00f067aa0ba902b7-00";
    let file = test_image(ImageFormat::Jpeg);
    let image = ("content-type", "image/jpeg");
    assert_eq!(server.post("/predict", &[image, ("traceparent", &parent)], &file).status, 200);
    assert_eq!(server.post("/predict", &[image, ("traceparent", unsampled)], &file).status, 200);
    let (kind, form) = multipart(&[("image/jpeg", &file), ("image/jpeg", &file)]);
    assert_eq!(server.post("/predict/batch", &[("content-type", &kind)], &form).status, 200);
    // Waiting spans are sent before the server ends.
    server.signal("-TERM");
    let enough = |spans: &[Span]| spans.iter().filter(|span| span.kind == 2).count() == 2;
    let spans = collect(&collector, enough);
    assert_eq!(server.wait(), Some(0));
    let mut traces: BTreeMap<String, Vec<&Span>> = BTreeMap::new();
    spans.iter().for_each(|span| traces.entry(hex(&span.trace_id)).or_default().push(span));
    assert!(!traces.contains_key(&"1".repeat(32)), "the caller has not sampled it");

    let one = &traces[caller];
    let root = one.iter().find(|span| span.kind == 2).unwrap();
    assert_eq!(
        (root.name.as_str(), hex(&root.parent_span_id)),
        ("/predict", "00f067aa0ba902b7".into())
    );
    let mut parts: Vec<&&Span> = one.iter().filter(|span| span.kind != 2).collect();
    parts.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
    let mut names: Vec<&str> = parts.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"accept"));
    assert_eq!(names.last(), Some(&"respond"));
    names.sort_unstable();
    assert_eq!(names, ["accept", "batch", "decode", "model", "queue", "respond"]);
    for part in parts {
        assert_eq!(part.parent_span_id, root.span_id, "{}", part.name);
        let inside = part.start_time_unix_nano >= root.start_time_unix_nano
            && part.end_time_unix_nano <= root.end_time_unix_nano
            && part.start_time_unix_nano <= part.end_time_unix_nano;
        assert!(inside, "{part:?} not inside {root:?}");
    }
    let (_, batch) = traces.iter().find(|(id, _)| *id != caller).unwrap();
    let count = |name: &str| batch.iter().filter(|span| span.name == name).count();
    assert_eq!((count("decode"), count("model"), count("accept")), (2, 2, 1));
    let logged = server.log();
    assert!(logged.iter().any(|line| line["trace"] == caller));
}

#[test]
fn an_unreachable_collector_fails_no_request() {
    let server = Server::start(&["--otlp-endpoint", "http://127.0.0.1:9"]);
    for _ in 0..20 {
        assert_eq!(server.get("/health").status, 200);
    }
}
