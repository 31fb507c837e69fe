//! `/feedback`: submits the actual labels of earlier predictions; `/feedback/export`: all of them, for training.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{HeaderValue, LINK};
use hyper::{Request, StatusCode, Uri};
use metrics::counter;
use petnet::Task;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Reply, json as json_reply, query, text};
use crate::answer::LONGEST_LABEL;
use crate::app::App;
use crate::feedback::{Feedback, Labelled, Outcome, Predicted};
use crate::models::Model;
use crate::problem::Problem;
use crate::telemetry::names;

/// Maximum number of labels in a request.
const MAX_SUBMITTED: usize = 1000;
/// Maximum number of labels in a response of the export.
const MAX_EXPORTED: usize = 5000;
/// Maximum number of bytes of a label, in memory and as a line together.
const LABEL: usize = 1024;

#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    One(Given),
    Many { feedback: Vec<Given> },
}

#[derive(Deserialize)]
struct Given {
    prediction_id: Uuid,
    label: String,
}

pub(super) async fn submit(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    check_enabled(app)?;
    let body: Body = app.uploads.read_json(request, &app.settings).await?;
    let (given, many) = match body {
        Body::One(given) => (vec![given], false),
        Body::Many { feedback } => (feedback, true),
    };
    if given.len() > MAX_SUBMITTED {
        return Err(Problem::too_large(format!("more than {MAX_SUBMITTED} labels")));
    }
    let authenticated = app.keys.is_authenticated(request.headers());
    let outcomes = store(app, given, authenticated).await?;
    for (outcome, given) in &outcomes {
        if let (Some(shadow), Outcome::Taken { actual, .. }) = (&app.shadow, outcome) {
            shadow.evaluate(given.prediction_id, actual);
        }
        let result = match outcome {
            Outcome::Taken { right: true, .. } => "right",
            Outcome::Taken { right: false, .. } => "wrong",
            Outcome::Unknown | Outcome::UnknownLabel => "refused",
        };
        counter!(names::FEEDBACK_TOTAL, "result" => result).increment(1);
    }
    let mut entries = outcomes.into_iter().map(|(outcome, given)| describe(app, outcome, given));
    if many {
        let entries = entries.map(|entry| entry.unwrap_or_else(|e| json!({ "error": e.json() })));
        let body = json!({ "feedback": entries.collect::<Vec<_>>() });
        return Ok(json_reply(StatusCode::OK, &body));
    }
    let entry = entries.next().unwrap_or_else(|| Err(Problem::internal()))?;
    Ok(json_reply(StatusCode::OK, &entry))
}

/// Stores the labels, and returns the outcome of each.
async fn store(
    app: &Arc<App>,
    given: Vec<Given>,
    authenticated: bool,
) -> Result<Vec<(Outcome, Given)>, Problem> {
    // Labels are validated against those of a loaded model.
    app.models.default().get().ok_or_else(Problem::not_ready)?;
    let shared = Arc::clone(app);
    let labels: Vec<(Uuid, String)> =
        given.iter().map(|given| (given.prediction_id, given.label.clone())).collect();
    let outcomes = tokio::task::spawn_blocking(move || {
        let known = |predicted: &Predicted, given: &str| {
            known_label(&*shared.models.of_version(&predicted.model)?, given)
        };
        let feedback = shared.feedback.as_ref();
        feedback.map(|feedback| feedback.label(&labels, authenticated, known))
    });
    let outcomes = outcomes.await.map_err(|_| Problem::internal())?.transpose();
    let outcomes = outcomes.map_err(failed)?.unwrap_or_default();
    Ok(outcomes.into_iter().zip(given).collect())
}

fn unknown_label(app: &App) -> Problem {
    let detail = match app.models.iter().filter_map(|served| served.get()).collect::<Vec<_>>()[..] {
        [ref model] => {
            let labels = model.classifier.labels().join(", ");
            match &model.classifier.info().task {
                Task::SingleLabel => format!("`label` is one of {labels}"),
                Task::MultiLabel { .. } => {
                    format!("`label` is any of {labels}, with | between them")
                }
            }
        }
        _ => "the model of the prediction has no such label".into(),
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_label", detail)
}

/// A label in the form of [`Prediction::label_text`](petnet::Prediction::label_text); `None` for one that the model does not
/// have.
fn known_label(model: &Model, given: &str) -> Option<String> {
    let labels = model.classifier.labels();
    if given.len() > LONGEST_LABEL {
        return None;
    }
    match &model.classifier.info().task {
        Task::SingleLabel => labels.iter().find(|label| *label == given).cloned(),
        Task::MultiLabel { .. } => {
            let named: BTreeSet<&str> = given.split('|').filter(|name| !name.is_empty()).collect();
            let known: Vec<&str> =
                labels.iter().map(String::as_str).filter(|label| named.contains(label)).collect();
            (known.len() == named.len()).then(|| known.join("|"))
        }
    }
}

fn describe(app: &App, outcome: Outcome, given: Given) -> Result<Value, Problem> {
    match outcome {
        Outcome::Taken { predicted, right, .. } => Ok(json!({
            "prediction_id": given.prediction_id,
            "label": given.label,
            "predicted_class": predicted.label,
            "correct": right,
        })),
        Outcome::Unknown => {
            let detail =
                format!("there is no prediction {}, or it is too old", given.prediction_id);
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown_prediction", detail))
        }
        Outcome::UnknownLabel => Err(unknown_label(app)),
    }
}

pub(super) async fn export(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    check_enabled(app)?;
    let after = after(request.uri())?;
    let _claim = app.memory.buffer(MAX_EXPORTED * LABEL)?;
    let shared = Arc::clone(app);
    let labels = tokio::task::spawn_blocking(move || {
        shared.feedback.as_ref().map(|feedback| feedback.export(after, MAX_EXPORTED))
    });
    let labels = labels.await.map_err(|_| Problem::internal())?.transpose().map_err(failed)?;
    let labels = labels.unwrap_or_default();
    let lines: String = labels.iter().map(|(id, labelled)| line(*id, labelled)).collect();
    let mut reply = text("application/x-ndjson", lines);
    if let Some((last, _)) = labels.last().filter(|_| labels.len() == MAX_EXPORTED) {
        let next = format!("</feedback/export?after={last}>; rel=\"next\"");
        if let Ok(next) = HeaderValue::from_str(&next) {
            reply.headers_mut().insert(LINK, next);
        }
    }
    Ok(reply)
}

fn line(id: Uuid, labelled: &Labelled) -> String {
    let Labelled { predicted, actual, at, authenticated } = labelled;
    let at = UNIX_EPOCH + Duration::from_millis(*at);
    let entry = json!({
        "prediction_id": id,
        "label": actual,
        "predicted_class": predicted.label,
        "confidence": predicted.confidence,
        "model_version": predicted.model,
        "sha256": predicted.sha256,
        "authenticated": authenticated,
        "labelled": humantime::format_rfc3339_millis(at).to_string(),
    });
    format!("{entry}\n")
}

/// The query parameter `after`, a prediction id.
fn after(uri: &Uri) -> Result<Option<Uuid>, Problem> {
    let Some(id) = query(uri, "after") else { return Ok(None) };
    id.parse().map(Some).map_err(|_| Problem::bad_request("`after` is a prediction_id"))
}

fn check_enabled(app: &App) -> Result<&Feedback, Problem> {
    let detail = "feedback is switched off: start the server with --feedback FOLDER";
    let off = || Problem::new(StatusCode::NOT_IMPLEMENTED, "feedback_off", detail);
    app.feedback.as_ref().ok_or_else(off)
}

/// The response to a failure of the store, which [`Feedback`] has logged and counted.
fn failed(_: anyhow::Error) -> Problem {
    Problem::internal()
}
