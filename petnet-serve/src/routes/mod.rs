//! From a request to its answer: which path, which method, and what every answer carries.

mod admin;
mod embed;
mod events;
mod explain;
mod feedback;
mod pages;
mod predict;
mod status;
mod v2;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName,
    HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode, Version};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::problem::Problem;
use crate::server::Face;
use crate::telemetry::{Note, Parent, Record};

pub(crate) use v2::Stats;

/// An answer: small enough to be whole.
pub(crate) type Reply = Response<Full<Bytes>>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const GET: &str = "GET, HEAD";
const POST: &str = "POST";

/// Every path with the methods it takes.
pub(crate) const ROUTES: [(&str, &str); 28] = [
    ("/", GET),
    ("/health", GET),
    ("/livez", GET),
    ("/readyz", GET),
    ("/metrics", GET),
    ("/version", GET),
    ("/openapi.json", GET),
    ("/docs", GET),
    ("/artifacts/compare", GET),
    ("/predict", POST),
    ("/predict/batch", POST),
    ("/explain", POST),
    ("/embed", POST),
    ("/feedback", POST),
    ("/feedback/export", GET),
    ("/events/adoption", POST),
    ("/admin/reload", POST),
    ("/v2", GET),
    ("/v2/health/live", GET),
    ("/v2/health/ready", GET),
    ("/v2/models/{model}", GET),
    ("/v2/models/{model}/ready", GET),
    ("/v2/models/{model}/config", GET),
    ("/v2/models/{model}/stats", GET),
    ("/v2/models/{model}/infer", POST),
    ("/v2/repository/index", POST),
    ("/v2/repository/models/{model}/load", POST),
    ("/v2/repository/models/{model}/unload", POST),
];

/// The route of a path, with the methods that it takes, and the model that the path names.
fn find(path: &str) -> Option<(&'static str, &'static str, String)> {
    let parts: Vec<&str> = path.split('/').collect();
    // There is one version of each model; a path may name it.
    let parts = match parts.as_slice() {
        [start @ .., "versions", _version] if start.len() == 4 => start.to_vec(),
        [start @ .., "versions", _version, last] if start.len() == 4 => [start, &[*last]].concat(),
        _ => parts,
    };
    ROUTES.iter().find_map(|&(route, allow)| {
        let mut model = String::new();
        let mut pattern = route.split('/');
        for part in &parts {
            match pattern.next()? {
                "{model}" => model = percent_decode_str(part).decode_utf8().ok()?.into_owned(),
                same if same == *part => (),
                _ => return None,
            }
        }
        pattern.next().is_none().then_some((route, allow, model))
    })
}

/// Paths that people and their programs come for; probes and scrapers are no visitors.
const VISITED: [&str; 9] = [
    "/",
    "/docs",
    "/predict",
    "/predict/batch",
    "/explain",
    "/embed",
    "/feedback",
    "/events/adoption",
    "/v2/models/{model}/infer",
];

/// Answers any request; nothing it does can end the connection without an answer.
pub(crate) async fn handle(
    app: &Arc<App>,
    face: Face,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Reply {
    let began = Instant::now();
    let (method, version) = (request.method().clone(), request.version());
    let id = request_id(request.headers());
    let parent = parent(request.headers());
    let known = find(request.uri().path());
    let route = known.as_ref().map_or("unknown", |(route, ..)| *route);
    if VISITED.contains(&route) {
        app.sessions.touch(request.headers(), peer);
    }
    let outcome = match known {
        Some((_, allow, model)) if face == Face::Api || route == "/metrics" => {
            let work = AssertUnwindSafe(dispatch(app, (route, allow), &model, &mut request));
            work.catch_unwind().await.unwrap_or_else(|_| Err(Problem::internal()))
        }
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such path")),
    };
    let mut reply = outcome.unwrap_or_else(|problem| {
        let v2 = route.starts_with("/v2");
        let mut reply = if v2 { v2::error(&problem) } else { problem.response() };
        reply.extensions_mut().insert(Note { problem: Some(problem), ..Note::default() });
        reply
    });
    if reply.status().is_client_error() {
        drain(&mut request).await;
    }
    finish(app, &mut reply, &id, version);
    let note = reply.extensions_mut().remove::<Note>().unwrap_or_default();
    let record = Record {
        id: &id,
        parent,
        method: &method,
        route,
        status: reply.status(),
        began,
        took: began.elapsed(),
        note: &note,
    };
    record.write(&app.rates, &app.traces);
    reply
}

async fn dispatch(
    app: &Arc<App>,
    (path, allow): (&'static str, &'static str),
    model: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    if request.method() == Method::OPTIONS && app.settings.cors_origin.is_some() {
        return Ok(Response::new(Full::default()));
    }
    if !allow.split(", ").any(|name| name == request.method().as_str()) {
        return Err(Problem::method(allow));
    }
    match path {
        "/" => Ok(pages::home(app, request.headers())),
        "/docs" => Ok(pages::docs()),
        "/openapi.json" => Ok(pages::openapi()),
        "/health" => Ok(status::health(app)),
        "/livez" => Ok(json(StatusCode::OK, &serde_json::json!({ "status": "alive" }))),
        "/readyz" => Ok(status::ready(app)),
        "/metrics" => Ok(status::metrics(app)),
        "/version" => Ok(status::version(app)),
        "/artifacts/compare" => Ok(status::compare(app)),
        "/predict" => predict::one(app, request).await,
        "/predict/batch" => predict::many(app, request).await,
        "/explain" => explain::explain(app, request).await,
        "/embed" => embed::embed(app, request).await,
        "/feedback" => feedback::give(app, request).await,
        "/feedback/export" => feedback::export(app, request).await,
        path if path.starts_with("/v2") => v2::handle(app, path, model, request).await,
        "/events/adoption" => events::adoption(app, request).await,
        _ => admin::reload(app, request).await,
    }
}

/// What every answer carries.
fn finish(app: &App, reply: &mut Reply, id: &str, version: Version) {
    let headers = reply.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(Ok(origin)) = app.settings.cors_origin.as_deref().map(HeaderValue::from_str) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        let allowed = HeaderValue::from_static("authorization, content-type, x-api-key");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        // `/` varies by what the client accepts, too.
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    // While draining, kept-alive clients are asked to come back elsewhere.
    if !app.serving() && version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Reads on for a moment what a refused client still sends: closing on it would reset the
/// connection before the client has read why.
async fn drain(request: &mut Request<Incoming>) {
    const MOST: usize = 64 << 20;
    const LONGEST: Duration = Duration::from_secs(1);
    // Who waits for "100 Continue" sends nothing more.
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
    let mut reply = Response::new(Full::new(body.into()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|accept| accept.contains(kind))
}

/// The client's `X-Request-Id` where it is fit for a log line, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok());
    match sent {
        Some(id) if (1..=128).contains(&id.len()) => id.to_string(),
        _ => new_id().to_string(),
    }
}

/// Unique, and in the order of time.
fn new_id() -> Uuid {
    Uuid::now_v7()
}

fn parent(headers: &HeaderMap) -> Option<Parent> {
    Parent::parse(headers.get(TRACE_PARENT)?.to_str().ok()?)
}
