//! Routing: maps requests to handlers, checks host, method and key, and adds the headers that all responses have.

mod admin;
mod embed;
mod events;
mod explain;
mod feedback;
mod grpc;
mod images;
mod negotiate;
mod pages;
mod predict;
mod shadow;
mod status;
mod table;
mod v2;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::authorization::Authorization;
use crate::body::Body;
use crate::memory::claimed_bytes;
use crate::problem::{Kind, Problem};
use crate::shadow::Samples;
use crate::telemetry::{ParentSpan, Record, RequestDetails};

use table::{Route, RouteEntry};

pub(crate) use grpc::report_health;
pub(crate) use table::TABLE;
#[cfg(fuzzing)]
pub(crate) use v2::parse_tensors;

/// The paths that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListenerKind {
    /// All paths.
    Api,
    /// Only `/metrics`.
    Metrics,
}

/// A request whose body is not received yet.
type HttpRequest = Request<Incoming>;
/// A response whose body is complete in memory.
type FullResponse = Response<Bytes>;
/// The response of a handler, or the problem for which it refuses the request.
type HandlerResult = Result<FullResponse, Problem>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// Delay of the response to a request that may be sent again, which slows clients down that do so at once.
const RETRIABLE_DELAY: Duration = Duration::from_secs(1);
/// Maximum size in bytes of a response body that claims no memory.
const MAX_UNCLAIMED_BODY: usize = 16 << 10;

/// The response to a request; a panic of its handler becomes a response with status 500.
pub(crate) async fn respond(
    app: &Arc<App>,
    listener: ListenerKind,
    peer: IpAddr,
    mut request: HttpRequest,
) -> Response<Body> {
    let began = Instant::now();
    let (method, version) = (request.method().clone(), request.version());
    let id = request_id(request.headers());
    let parent = parent_span(request.headers());
    let is_grpc = listener == ListenerKind::Api && grpc::is_call(request.headers());
    let (route, mut response) = if is_grpc {
        let method = grpc::find(request.uri().path());
        let call = AssertUnwindSafe(grpc::respond(app, method, request)).catch_unwind();
        let failed = |_| grpc::problem_response(app, Problem::internal());
        (method.map_or("unknown", |method| method.path), call.await.unwrap_or_else(failed))
    } else {
        respond_http(app, listener, peer, &mut request).await
    };
    add_common_headers(app, response.headers_mut(), &id, version);
    let details = &response.extensions_mut().remove::<RequestDetails>().unwrap_or_default();
    // A refused gRPC call has the HTTP status 200; its problem has the status that is logged.
    let status = details.problem.as_ref().map_or(response.status(), |problem| problem.status);
    let duration = began.elapsed();
    let record =
        Record { id: &id, parent, method: &method, route, status, began, duration, details };
    record.write(&app.rates, &app.traces);
    response
}

/// The path of the route of a request other than gRPC's, and the response.
async fn respond_http(
    app: &Arc<App>,
    listener: ListenerKind,
    peer: IpAddr,
    request: &mut HttpRequest,
) -> (&'static str, Response<Body>) {
    let matched = table::find(request.uri().path());
    let route = matched.as_ref().map_or("unknown", |(entry, _)| entry.path);
    if matched.as_ref().is_some_and(|(entry, _)| entry.has_session) {
        app.sessions.record_request(request.headers(), peer, Instant::now());
    }
    let outcome = match matched {
        Some((entry, parameter))
            if listener == ListenerKind::Api || entry.route == Route::Metrics =>
        {
            let call =
                AssertUnwindSafe(check_and_call(app, (listener, entry), &parameter, request));
            call.catch_unwind().await.unwrap_or_else(|_| Err(Problem::internal()))
        }
        Some(_) | None => {
            Err(Problem::new(StatusCode::NOT_FOUND, Kind::NotFound, "there is no such path"))
        }
    };
    let mut response = match outcome.and_then(|response| claim_body(app, response)) {
        Ok(response) => response,
        Err(problem) => problem_response(app, route, problem, request).await,
    };
    let samples = response.extensions_mut().remove::<Samples>();
    let response = response.map(|body| {
        let body = Body::from(body);
        match samples {
            Some(samples) => body.with_samples(app.shadow.as_ref(), samples),
            None => body,
        }
    });
    (route, response)
}

/// Checks host, method and key of a request, and calls the handler of its route.
async fn check_and_call(
    app: &Arc<App>,
    (listener, entry): (ListenerKind, &'static RouteEntry),
    parameter: &str,
    request: &mut HttpRequest,
) -> HandlerResult {
    check_host(request)?;
    if request.method() == Method::OPTIONS && app.settings.cors_origin.is_some() {
        return Ok(Response::default());
    }
    if !entry.allow.split(", ").any(|name| name == request.method().as_str()) {
        return Err(Problem::method_not_allowed(entry.allow));
    }
    let authorization = match listener {
        // The metrics listener is not exposed to clients, and needs no key.
        ListenerKind::Metrics => Authorization::default(),
        ListenerKind::Api => app.keys.authorize(request.headers(), entry.access)?,
    };
    request.extensions_mut().insert(authorization.priority);
    match call_handler(app, entry.route, parameter, request).await {
        Ok(mut response) => {
            authorization.add_headers(response.headers_mut());
            Ok(response)
        }
        Err(problem) => Err(problem.with_authorization(authorization)),
    }
}

/// Calls the handler of a route with the value of its path's parameter.
async fn call_handler(
    app: &Arc<App>,
    route: Route,
    parameter: &str,
    request: &mut HttpRequest,
) -> HandlerResult {
    match route {
        Route::Home => Ok(pages::home(app, request.headers())),
        Route::Docs => Ok(pages::DOCS.response()),
        Route::DocsScript => Ok(pages::VIEWER_SCRIPT.response(request.headers())),
        Route::DocsStyle => Ok(pages::VIEWER_STYLE.response(request.headers())),
        Route::OpenApi => Ok(typed_response("application/json", pages::OPENAPI)),
        Route::Health => Ok(status::health(app)),
        Route::Live => Ok(json_response(&json!({ "status": "alive" }))),
        Route::Ready => Ok(status::ready(app)),
        Route::Metrics => Ok(typed_response("text/plain; version=0.0.4", app.scrape())),
        Route::Version => Ok(status::version(app)),
        Route::Compare => Ok(status::compare(app)),
        Route::Predict => predict::single(app, request).await,
        Route::PredictBatch => predict::batch(app, request).await,
        Route::Explain => explain::explain(app, request).await,
        Route::Embed => embed::embed(app, request).await,
        Route::Feedback => feedback::submit(app, request).await,
        Route::FeedbackExport => feedback::export(app, request).await,
        Route::Adoption => events::adoption(app, request).await,
        Route::Reload => admin::reload(app, request.uri()).await,
        Route::Shadow => shadow::shadow(app, request.headers()),
        Route::V2 => Ok(v2::server()),
        Route::V2Live => Ok(json_response(&json!({ "live": true }))),
        Route::V2Ready => v2::check_ready(app).map(|()| json_response(&json!({ "ready": true }))),
        Route::V2Model => v2::metadata(app, parameter),
        Route::V2ModelReady => v2::model_ready(app, parameter),
        Route::V2ModelConfig => v2::config(app, parameter),
        Route::V2ModelStats => v2::stats(app, parameter),
        Route::V2Infer => v2::infer(app, parameter, request).await,
        Route::V2Index => Ok(json_response(&json!(v2::repository(app)))),
        Route::V2Load => v2::load(app, parameter).await.map(|()| json_response(&json!({}))),
        Route::V2Unload => v2::unload(app, parameter).map(|()| json_response(&json!({}))),
    }
}

/// HTTP/1.1 requires exactly one `Host` field (RFC 9112, section 3.2).
fn check_host(request: &HttpRequest) -> Result<(), Problem> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if request.version() == Version::HTTP_11 && hosts != 1 {
        let detail = format!("the request has {hosts} Host fields, must have one");
        return Err(Problem::new(StatusCode::BAD_REQUEST, Kind::Host, detail));
    }
    Ok(())
}

/// Claims memory for the body of a response, until the client has read it.
fn claim_body(app: &App, response: FullResponse) -> HandlerResult {
    if response.body().len() <= MAX_UNCLAIMED_BODY {
        return Ok(response);
    }
    let claim = app.memory.claim_buffer(response.body().len())?;
    Ok(response.map(|body| match body.try_into_mut() {
        Ok(owned) => claimed_bytes(owned.into(), claim),
        // Static pages are part of the binary.
        Err(shared) => shared,
    }))
}

/// The response to a refused request, after the rest of its body is read.
async fn problem_response(
    app: &App,
    route: &'static str,
    problem: Problem,
    request: &mut HttpRequest,
) -> FullResponse {
    let mut response =
        if route.starts_with("/v2") { v2::error(&problem) } else { problem.response() };
    if problem.is_retriable() {
        tokio::select! {
            () = async { tokio::join!(tokio::time::sleep(RETRIABLE_DELAY), drain(request)); } => (),
            () = app.wait_for_closing() => (),
        }
    } else if response.status().is_client_error() {
        drain(request).await;
    }
    let details = RequestDetails { problem: Some(problem), ..Default::default() };
    response.extensions_mut().insert(details);
    response
}

/// Adds the headers that all responses have.
fn add_common_headers(app: &App, headers: &mut HeaderMap, id: &str, version: Version) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(Ok(origin)) = app.settings.cors_origin.as_deref().map(HeaderValue::from_str) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        let allowed = HeaderValue::from_static("authorization, content-type, x-api-key");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        // `append`: `/` varies by `accept` as well.
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    // While the service drains, clients must open new connections, which a load balancer directs elsewhere.
    if !app.is_serving() && version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Reads the rest of a refused request for a short time: closing the connection with unread bytes would reset it before the
/// client has read the response.
async fn drain(request: &mut HttpRequest) {
    const MAX_BYTES: usize = 64 << 20;
    const TIMEOUT: Duration = Duration::from_secs(1);
    // A client that waits for "100 Continue" sends no body.
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return;
    }
    let body = request.body_mut();
    let reading = async {
        let mut received = 0;
        while let Some(Ok(frame)) = body.frame().await {
            received += frame.data_ref().map_or(0, Bytes::len);
            if received > MAX_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(TIMEOUT, reading).await;
}

/// A JSON response with status 200.
fn json_response(value: &Value) -> FullResponse {
    typed_response("application/json", value.to_string())
}

/// A response with status 200.
fn typed_response(content_type: &'static str, body: impl Into<Bytes>) -> FullResponse {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A query parameter.
fn query_parameter(uri: &Uri, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

/// The client's `X-Request-Id` if it has 1 to 128 characters, all of them printable ASCII, space or tab, else a new id.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    match sent {
        Some(id) if (1..=128).contains(&id.len()) => id.to_string(),
        _ => new_id().to_string(),
    }
}

/// A UUID version 7: unique, and ordered by time.
fn new_id() -> Uuid {
    Uuid::now_v7()
}

fn parent_span(headers: &HeaderMap) -> Option<ParentSpan> {
    ParentSpan::parse(headers.get(TRACE_PARENT)?.to_str().ok()?)
}
