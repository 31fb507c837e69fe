//! `/events`: business events of the adoption platform, as metrics.

use std::sync::Arc;

use hyper::StatusCode;
use metrics::counter;
use serde::Deserialize;
use serde_json::json;

use super::{HandlerResult, HttpRequest, json_response};
use crate::app::App;
use crate::authorization::Priority;
use crate::models::MAX_METRIC_CLASSES;
use crate::problem::{Kind, Problem};
use crate::telemetry::names;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Adoption {
    species: String,
}

pub(super) async fn adoption(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let Adoption { species } = app.uploads.read_json(request).await?;
    let target = app.target(None, Priority::default())?;
    let species_labels: Vec<&str> = target
        .model
        .classifier
        .labels()
        .iter()
        .take(MAX_METRIC_CLASSES)
        .map(String::as_str)
        .chain(["other"])
        .collect();
    if !species_labels.contains(&species.as_str()) {
        let detail = format!("`species` is one of {}", species_labels.join(", "));
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::UnknownLabel, detail));
    }
    counter!(names::PET_ADOPTIONS_TOTAL, "species" => species.clone()).increment(1);
    let mut response = json_response(&json!({ "species": species }));
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}
