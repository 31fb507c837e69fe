//! `/admin/reload`: another model without a pause.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::json;

use super::{Reply, json as json_reply};
use crate::app::App;
use crate::problem::Problem;

pub(super) async fn reload(app: &Arc<App>) -> Result<Reply, Problem> {
    let model = app.reload().await.map_err(|error| {
        let detail = format!("the model was refused, the old one stays: {error:#}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "model_refused", detail)
    })?;
    let body = json!({ "name": model.name, "version": model.version, "sha256": model.sha256 });
    Ok(json_reply(StatusCode::OK, &json!({ "model": body })))
}
