//! `/events`: business events of the adoption platform, as metrics.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use metrics::counter;
use serde::Deserialize;
use serde_json::json;

use super::{Reply, json as json_reply};
use crate::app::App;
use crate::models::CLASSES;
use crate::problem::Problem;
use crate::standing::Priority;
use crate::telemetry::names;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adoption {
    species: String,
}

pub(super) async fn adoption(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let Adoption { species } = app.uploads.read_json(request, &app.settings).await?;
    let target = app.target(None, Priority::default())?;
    let known: Vec<&str> = target
        .model
        .classifier
        .labels()
        .iter()
        .take(CLASSES)
        .map(String::as_str)
        .chain(["other"])
        .collect();
    if !known.contains(&species.as_str()) {
        let detail = format!("`species` is one of {}", known.join(", "));
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_label", detail));
    }
    counter!(names::PET_ADOPTIONS_TOTAL, "species" => species.clone()).increment(1);
    Ok(json_reply(StatusCode::ACCEPTED, &json!({ "species": species })))
}
