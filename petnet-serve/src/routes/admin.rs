//! `/admin/reload`: reloads a model while the previous one remains in use.

use std::sync::Arc;

use hyper::{StatusCode, Uri};
use serde_json::json;

use super::{Reply, json as json_reply, query};
use crate::app::App;
use crate::problem::Problem;

/// Reloads the model of the query parameter `model`, or the default model.
pub(super) async fn reload(app: &Arc<App>, uri: &Uri) -> Result<Reply, Problem> {
    let served = app.models.find(query(uri, "model").as_deref())?;
    let model = app.reload(served).await.map_err(|error| {
        let detail = format!("the model was refused, the previous one stays in use: {error:#}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "model_refused", detail)
    })?;
    let body = json!({ "name": model.name, "version": model.version, "sha256": model.sha256 });
    Ok(json_reply(StatusCode::OK, &json!({ "model": body })))
}
