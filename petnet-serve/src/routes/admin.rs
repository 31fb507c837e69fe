//! `/admin/reload`: reloads a model while the previous one remains in use.

use std::sync::Arc;

use hyper::{StatusCode, Uri};
use serde_json::json;

use super::{HandlerResult, json_response, query_parameter};
use crate::app::App;
use crate::problem::{Kind, Problem};

/// Reloads the model of the query parameter `model`, or the default model.
pub(super) async fn reload(app: &Arc<App>, uri: &Uri) -> HandlerResult {
    let served = app.models.find(query_parameter(uri, "model").as_deref())?;
    let model = app.reload(served).await.map_err(|error| {
        let detail = format!("the model was refused, the previous one stays in use: {error:#}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::ModelRefused, detail)
    })?;
    let body = json!({ "name": model.name, "version": model.version, "sha256": model.sha256 });
    Ok(json_response(&json!({ "model": body })))
}
