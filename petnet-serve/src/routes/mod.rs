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
use serde_json::Value;
use uuid::Uuid;

use crate::access::Scope;
use crate::app::App;
use crate::body::Body;
use crate::memory::held;
use crate::problem::Problem;
use crate::shadow::Samples;
use crate::standing::Standing;
use crate::telemetry::{Note, Parent, Record};

use table::{Access, Entry, Route};

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

/// A response whose body is complete in memory.
pub(crate) type Reply = Response<Bytes>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// Delay of a response that refuses a request for overload, which slows clients down that retry at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Larger bodies of responses, in bytes, claim memory.
const SMALL: usize = 16 << 10;

/// Answers a request; a panic of its handler becomes a response with status 500.
pub(crate) async fn handle(
    app: &Arc<App>,
    listener: ListenerKind,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let began = Instant::now();
    let (method, version) = (request.method().clone(), request.version());
    let id = request_id(request.headers());
    let parent = parent(request.headers());
    let (route, mut reply) = if listener == ListenerKind::Api && grpc::is_call(request.headers()) {
        let known = grpc::Method::find(request.uri().path());
        let work = AssertUnwindSafe(grpc::answer(app, known, request)).catch_unwind();
        let failed = |_| grpc::refuse(app, Problem::internal());
        (known.map_or("unknown", grpc::Method::path), work.await.unwrap_or_else(failed))
    } else {
        answer_http(app, listener, peer, &mut request).await
    };
    add_headers(app, reply.headers_mut(), &id, version);
    let note = reply.extensions_mut().remove::<Note>().unwrap_or_default();
    // A refused gRPC call has the HTTP status 200; its problem has the status that is logged.
    let status = note.problem.as_ref().map_or(reply.status(), |problem| problem.status);
    let took = began.elapsed();
    let record =
        Record { id: &id, parent, method: &method, route, status, began, took, note: &note };
    record.write(&app.rates, &app.traces);
    reply
}

/// Answers a request other than gRPC's; returns the path of its route and the response.
async fn answer_http(
    app: &Arc<App>,
    listener: ListenerKind,
    peer: IpAddr,
    request: &mut Request<Incoming>,
) -> (&'static str, Response<Body>) {
    let known = table::find(request.uri().path());
    let route = known.as_ref().map_or("unknown", |(entry, _)| entry.path);
    if known.as_ref().is_some_and(|(entry, _)| entry.has_session) {
        app.sessions.touch(request.headers(), peer);
    }
    let outcome = match known {
        Some((entry, model)) if listener == ListenerKind::Api || entry.route == Route::Metrics => {
            let work = AssertUnwindSafe(dispatch(app, (listener, entry), &model, request));
            work.catch_unwind().await.unwrap_or_else(|_| Err(Problem::internal()))
        }
        Some(_) | None => {
            Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such path"))
        }
    };
    let mut reply = match outcome.and_then(|reply| claimed(app, reply)) {
        Ok(reply) => reply,
        Err(problem) => refuse(app, route, problem, request).await,
    };
    let samples = reply.extensions_mut().remove::<Samples>();
    let reply = reply.map(|body| {
        let body = Body::from(body);
        match samples {
            Some(samples) => body.with_samples(app.shadow.as_ref(), samples),
            None => body,
        }
    });
    (route, reply)
}

async fn dispatch(
    app: &Arc<App>,
    (listener, entry): (ListenerKind, &'static Entry),
    model: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    check_host(request)?;
    if request.method() == Method::OPTIONS && app.settings.cors_origin.is_some() {
        return Ok(Response::default());
    }
    if !entry.allow.split(", ").any(|name| name == request.method().as_str()) {
        return Err(Problem::method(entry.allow));
    }
    let standing = match listener {
        // The metrics listener is not exposed to clients, and needs no key.
        ListenerKind::Metrics => Standing::default(),
        ListenerKind::Api => permit(app, entry.access, request.headers())?,
    };
    request.extensions_mut().insert(standing.priority);
    match answer(app, entry.route, model, request).await {
        Ok(mut reply) => {
            standing.write(reply.headers_mut());
            Ok(reply)
        }
        Err(problem) => Err(problem.with_standing(standing)),
    }
}

/// Checks the key of a request, and charges the request to the key's limits.
///
/// # Errors
/// 401 for a missing key, 403 for one without the scope, 429 for one whose limits are exceeded.
fn permit(app: &App, access: Access, headers: &HeaderMap) -> Result<Standing, Problem> {
    match access {
        Access::Open => Ok(Standing::default()),
        Access::Key(scope) => app.keys.check(headers, scope),
        Access::Operator => app.keys.require(headers, Scope::Admin),
    }
}

async fn answer(
    app: &Arc<App>,
    route: Route,
    model: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    match route {
        Route::Home => Ok(pages::home(app, request.headers())),
        Route::Docs => Ok(pages::docs()),
        Route::DocsScript => Ok(pages::viewer_script(request.headers())),
        Route::DocsStyle => Ok(pages::viewer_style(request.headers())),
        Route::OpenApi => Ok(pages::openapi()),
        Route::Health => Ok(status::health(app)),
        Route::Live => Ok(json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))),
        Route::Ready => Ok(status::ready(app)),
        Route::Metrics => Ok(status::metrics(app)),
        Route::Version => Ok(status::version(app)),
        Route::Compare => Ok(status::compare(app)),
        Route::Predict => predict::one(app, request).await,
        Route::PredictBatch => predict::many(app, request).await,
        Route::Explain => explain::explain(app, request).await,
        Route::Embed => embed::embed(app, request).await,
        Route::Feedback => feedback::submit(app, request).await,
        Route::FeedbackExport => feedback::export(app, request).await,
        Route::Adoption => events::adoption(app, request).await,
        Route::Reload => admin::reload(app, request.uri()).await,
        Route::Shadow => shadow::shadow(app, request.headers()),
        Route::V2 => Ok(v2::server()),
        Route::V2Live => Ok(json(StatusCode::OK, &serde_json::json!({ "live": true }))),
        Route::V2Ready => v2::ready(app),
        Route::V2Model => v2::metadata(app, model),
        Route::V2ModelReady => v2::model_ready(app, model),
        Route::V2ModelConfig => v2::config(app, model),
        Route::V2ModelStats => v2::stats(app, model),
        Route::V2Infer => v2::infer(app, model, request).await,
        Route::V2Index => Ok(v2::index(app)),
        Route::V2Load => v2::load(app, model).await.map(v2::done),
        Route::V2Unload => v2::unload(app, model).map(v2::done),
    }
}

/// HTTP/1.1 requires exactly one `Host` field (RFC 9112, section 3.2).
fn check_host(request: &Request<Incoming>) -> Result<(), Problem> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if request.version() == Version::HTTP_11 && hosts != 1 {
        let detail = format!("the request has {hosts} Host fields, must have one");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "host", detail));
    }
    Ok(())
}

/// Claims memory for the body of a response, until the client has read it.
fn claimed(app: &App, reply: Reply) -> Result<Reply, Problem> {
    if reply.body().len() <= SMALL {
        return Ok(reply);
    }
    let claim = app.memory.buffer(reply.body().len())?;
    Ok(reply.map(|body| match body.try_into_mut() {
        Ok(own) => held(own.into(), claim),
        // Static pages are part of the binary.
        Err(shared) => shared,
    }))
}

async fn refuse(
    app: &App,
    route: &'static str,
    problem: Problem,
    request: &mut Request<Incoming>,
) -> Reply {
    let mut reply = if route.starts_with("/v2") { v2::error(&problem) } else { problem.response() };
    if problem.is_overload() {
        tokio::select! {
            () = async { tokio::join!(tokio::time::sleep(PAUSE), drain(request)); } => (),
            () = app.closing() => (),
        }
    } else if reply.status().is_client_error() {
        drain(request).await;
    }
    reply.extensions_mut().insert(Note { problem: Some(problem), ..Note::default() });
    reply
}

/// Adds the headers that all responses have.
fn add_headers(app: &App, headers: &mut HeaderMap, id: &str, version: Version) {
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
    if !app.serving() && version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Reads the rest of a refused request for a short time: closing the connection with unread bytes would reset it before the
/// client has read the response.
async fn drain(request: &mut Request<Incoming>) {
    const MOST: usize = 64 << 20;
    const LONGEST: Duration = Duration::from_secs(1);
    // A client that waits for "100 Continue" sends no body.
    if request.body().is_end_stream() || request.headers().contains_key(EXPECT) {
        return;
    }
    let body = request.body_mut();
    let reading = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > MOST {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LONGEST, reading).await;
}

fn json(status: StatusCode, value: &Value) -> Reply {
    let mut reply = text("application/json", value.to_string());
    *reply.status_mut() = status;
    reply
}

fn text(kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(body.into());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// A query parameter.
fn query(uri: &Uri, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

/// The client's `X-Request-Id` if it has at most 128 visible ASCII characters, else a new id.
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

fn parent(headers: &HeaderMap) -> Option<Parent> {
    Parent::parse(headers.get(TRACE_PARENT)?.to_str().ok()?)
}
