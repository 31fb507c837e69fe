//! `/feedback`: what earlier answers should have been, and all of that for the next training.

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

/// Most labels in one request, and in one answer.
const MOST_GIVEN: usize = 1000;
const MOST_TAKEN: usize = 5000;
/// Most bytes that a label takes in memory and as a line together.
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

pub(super) async fn give(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    switched_on(app)?;
    let body: Body = app.uploads.read_json(request, &app.settings).await?;
    let (given, many) = match body {
        Body::One(given) => (vec![given], false),
        Body::Many { feedback } => (feedback, true),
    };
    if given.len() > MOST_GIVEN {
        return Err(Problem::too_large(format!("more than {MOST_GIVEN} labels")));
    }
    let authenticated = app.keys.is_authenticated(request.headers());
    let outcomes = take(app, given, authenticated).await?;
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

/// The outcome of each label.
async fn take(
    app: &Arc<App>,
    given: Vec<Given>,
    authenticated: bool,
) -> Result<Vec<(Outcome, Given)>, Problem> {
    // While models are loaded nothing is known of their labels.
    app.models.default().get().ok_or_else(Problem::not_ready)?;
    let asked = Arc::clone(app);
    let labels: Vec<(Uuid, String)> =
        given.iter().map(|given| (given.prediction_id, given.label.clone())).collect();
    let outcomes = tokio::task::spawn_blocking(move || {
        let known = |predicted: &Predicted, given: &str| {
            known_label(&*asked.models.of_version(&predicted.model)?, given)
        };
        let feedback = asked.feedback.as_ref();
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

/// A label as predictions have it, see [`Prediction::label_text`](petnet::Prediction::label_text); `None` for one that the
/// model does not know.
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
    switched_on(app)?;
    let after = after(request.uri())?;
    let _claim = app.memory.buffer(MOST_TAKEN * LABEL)?;
    let asked = Arc::clone(app);
    let labels = tokio::task::spawn_blocking(move || {
        asked.feedback.as_ref().map(|feedback| feedback.export(after, MOST_TAKEN))
    });
    let labels = labels.await.map_err(|_| Problem::internal())?.transpose().map_err(failed)?;
    let labels = labels.unwrap_or_default();
    let lines: String = labels.iter().map(|(id, labelled)| line(*id, labelled)).collect();
    let mut reply = text("application/x-ndjson", lines);
    if let Some((last, _)) = labels.last().filter(|_| labels.len() == MOST_TAKEN) {
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

/// The id in `?after=ID`.
fn after(uri: &Uri) -> Result<Option<Uuid>, Problem> {
    let Some(id) = query(uri, "after") else { return Ok(None) };
    id.parse().map(Some).map_err(|_| Problem::bad_request("`after` is a prediction_id"))
}

fn switched_on(app: &App) -> Result<&Feedback, Problem> {
    let detail = "feedback is switched off: start the server with --feedback FOLDER";
    let off = || Problem::new(StatusCode::NOT_IMPLEMENTED, "feedback_off", detail);
    app.feedback.as_ref().ok_or_else(off)
}

/// The store has logged and counted it.
fn failed(_: anyhow::Error) -> Problem {
    Problem::internal()
}
