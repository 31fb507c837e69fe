//! State of the service: health, readiness and versions.

use std::time::SystemTime;

use hyper::StatusCode;
use metrics::counter;
use serde_json::{Value, json};

use super::{FullResponse, json_response};
use crate::app::App;
use crate::models::Model;
use crate::telemetry::names;

/// `/health`, with the fields of the Python service (PyTorch + FastAPI).
pub(super) fn health(app: &App) -> FullResponse {
    counter!(names::HEALTH_CHECK_REQUESTS_TOTAL).increment(1);
    let loaded = app.is_loaded();
    let body = json!({
        "status": if loaded { "healthy" } else { "unhealthy" },
        "model_loaded": loaded,
        "device": app.settings.device.to_string(),
        "timestamp": timestamp(SystemTime::now()),
    });
    let mut response = json_response(&body);
    if !loaded {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// `/readyz`: 200 while the service should get traffic.
pub(super) fn ready(app: &App) -> FullResponse {
    let loaded = app.is_loaded();
    let (status, word) = match (app.is_serving(), loaded, app.models.is_stuck()) {
        (true, true, false) => (StatusCode::OK, "ready"),
        (true, true, true) => (StatusCode::SERVICE_UNAVAILABLE, "stuck"),
        (true, false, _) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        (false, ..) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    let mut response = json_response(&json!({ "status": word }));
    *response.status_mut() = status;
    response
}

pub(super) fn version(app: &App) -> FullResponse {
    let models: Vec<Value> =
        app.models.iter().filter_map(|served| served.get()).map(|model| entry(&model)).collect();
    let model = app.models.default().get().map(|model| entry(&model));
    let body = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("PETNET_COMMIT"),
        "model": model,
        "models": models,
        "shadow": app.settings.shadow,
        "feedback": app.feedback.is_some(),
    });
    json_response(&body)
}

fn entry(model: &Model) -> Value {
    let info = model.classifier.info();
    json!({
        "name": model.name,
        "version": model.version,
        "sha256": model.sha256,
        "registry_version": model.registry_version,
        "architecture": info.graph.name(),
        "classes": model.classifier.labels(),
        "task": info.task.name(),
        "thresholds": info.task.thresholds(),
        "threshold": info.threshold,
        "ood": info.ood.as_ref().map(|ood| {
            json!({ "score": ood.score.name(), "threshold": ood.threshold })
        }),
        "loaded": timestamp(model.loaded_at),
    })
}

/// `/artifacts/compare`: running and expected versions; `match` is null where no version is expected.
pub(super) fn compare(app: &App) -> FullResponse {
    let settings = &app.settings;
    let model = app.models.default().get().map(|model| model.sha256.clone());
    let entry = |running: Option<&str>, expected: Option<&str>| {
        let same = expected.map(|e| running.is_some_and(|r| r.eq_ignore_ascii_case(e)));
        (json!({ "running": running, "expected": expected, "match": same }), same)
    };
    let (model, model_same) = entry(model.as_deref(), settings.expect_model_sha256.as_deref());
    let (build, build_same) =
        entry(Some(env!("CARGO_PKG_VERSION")), settings.expect_version.as_deref());
    let results: Vec<bool> = [model_same, build_same].into_iter().flatten().collect();
    let all =
        if results.is_empty() { Value::Null } else { results.iter().all(|same| *same).into() };
    let body = json!({ "match": all, "model_sha256": model, "version": build });
    json_response(&body)
}

fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
