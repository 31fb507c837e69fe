//! `/feedback`: what earlier answers should have been, and all of that for the next training.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{HeaderValue, LINK};
use hyper::{Request, StatusCode};
use metrics::counter;
use petnet::Task;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Reply, json as json_reply, text};
use crate::app::App;
use crate::feedback::{Feedback, Labelled, Outcome};
use crate::model::Model;
use crate::problem::Problem;

/// Most labels in one request, and in one answer.
const MOST_GIVEN: usize = 1000;
const MOST_TAKEN: usize = 5000;
/// Most bytes that a label takes in memory and as a line together.
const LABEL: usize = 1024;
/// Longest text of a label in bytes: a line has two of them.
pub(super) const LONGEST: usize = 400;

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
    let authenticated = app.keys.is_sent(request.headers());
    let outcomes = take(app, given, authenticated).await?;
    for outcome in &outcomes {
        let result = match outcome {
            Ok((Outcome::Taken { right: true, .. }, _)) => "right",
            Ok((Outcome::Taken { right: false, .. }, _)) => "wrong",
            _ => "refused",
        };
        counter!("feedback_total", "result" => result).increment(1);
    }
    let mut entries = outcomes.into_iter().map(|outcome| outcome.and_then(describe));
    if many {
        let entries = entries.map(|entry| entry.unwrap_or_else(|e| json!({ "error": e.json() })));
        let body = json!({ "feedback": entries.collect::<Vec<_>>() });
        return Ok(json_reply(StatusCode::OK, &body));
    }
    let entry = entries.next().unwrap_or_else(|| Err(Problem::internal()))?;
    Ok(json_reply(StatusCode::OK, &entry))
}

/// What became of each label; those that no model knows are not taken to the store.
async fn take(
    app: &Arc<App>,
    given: Vec<Given>,
    authenticated: bool,
) -> Result<Vec<Result<(Outcome, Given), Problem>>, Problem> {
    let model = app.model()?;
    let known: Vec<(Uuid, String)> = given
        .iter()
        .filter_map(|given| Some((given.prediction_id, known_label(&model, &given.label)?)))
        .collect();
    let asked = Arc::clone(app);
    let outcomes = tokio::task::spawn_blocking(move || {
        asked.feedback.as_ref().map(|feedback| feedback.label(known, authenticated))
    });
    let outcomes = outcomes.await.map_err(|_| Problem::internal())?.transpose();
    let mut outcomes = outcomes.map_err(failed)?.unwrap_or_default().into_iter();
    let unknown = || {
        let labels = model.classifier.labels().join(", ");
        let detail = match &model.classifier.info().task {
            Task::SingleLabel => format!("`label` is one of {labels}"),
            Task::MultiLabel { .. } => format!("`label` is any of {labels}, with | between them"),
        };
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_label", detail)
    };
    let paired = given.into_iter().map(|given| {
        let known = known_label(&model, &given.label).is_some();
        let outcome = if known { outcomes.next() } else { None };
        outcome.map(|outcome| (outcome, given)).ok_or_else(unknown)
    });
    Ok(paired.collect())
}

/// A label as predictions have it, see [`Prediction::label_text`](petnet::Prediction::label_text); `None` for one that the
/// model does not know.
fn known_label(model: &Model, given: &str) -> Option<String> {
    let labels = model.classifier.labels();
    if given.len() > LONGEST {
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

fn describe((outcome, given): (Outcome, Given)) -> Result<Value, Problem> {
    match outcome {
        Outcome::Taken { predicted, right } => Ok(json!({
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
    }
}

pub(super) async fn export(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    switched_on(app)?;
    let after = after(request.uri().query().unwrap_or_default())?;
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
fn after(query: &str) -> Result<Option<Uuid>, Problem> {
    let Some(id) = query.split('&').find_map(|pair| pair.strip_prefix("after=")) else {
        return Ok(None);
    };
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
