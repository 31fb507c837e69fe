//! `/feedback`: submits the actual labels of earlier predictions; `/feedback/export`: all of them, for training.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::StatusCode;
use hyper::header::{HeaderValue, LINK};
use metrics::counter;
use petnet::Task;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{HandlerResult, HttpRequest, json_response, query_parameter, typed_response};
use crate::app::App;
use crate::feedback::{Feedback, LabelledPrediction, Outcome, StoredPrediction};
use crate::models::Model;
use crate::prediction::MAX_LABEL_LENGTH;
use crate::problem::{Kind, Problem};
use crate::telemetry::names;

/// Maximum number of labels in a request.
const MAX_SUBMITTED_LABELS: usize = 1000;
/// Maximum number of labels in a response of the export.
const MAX_EXPORTED_LABELS: usize = 5000;
/// Maximum number of bytes of a label, in memory and as a line together.
const MAX_LABEL_BYTES: usize = 1024;

/// The JSON of a submission: one label, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    One(SubmittedLabel),
    Many { feedback: Vec<SubmittedLabel> },
}

#[derive(Deserialize)]
struct SubmittedLabel {
    prediction_id: Uuid,
    label: String,
}

pub(super) async fn submit(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let feedback = enabled_feedback(app)?;
    let body: Body = app.uploads.read_json(request).await?;
    let (submitted, is_list) = match body {
        Body::One(submitted) => (vec![submitted], false),
        Body::Many { feedback } => (feedback, true),
    };
    if submitted.len() > MAX_SUBMITTED_LABELS {
        return Err(Problem::too_large(format!("more than {MAX_SUBMITTED_LABELS} labels")));
    }
    let authenticated = app.keys.is_authenticated(request.headers());
    let outcomes = store(app, feedback, submitted, authenticated).await?;
    for (outcome, submitted) in &outcomes {
        if let (Some(shadow), Outcome::Stored { actual, .. }) = (&app.shadow, outcome) {
            shadow.evaluate(submitted.prediction_id, actual);
        }
        let result = match outcome {
            Outcome::Stored { right: true, .. } => "right",
            Outcome::Stored { right: false, .. } => "wrong",
            Outcome::UnknownPrediction | Outcome::Refused(_) => "refused",
        };
        counter!(names::FEEDBACK_TOTAL, "result" => result).increment(1);
    }
    let mut entries = outcomes.into_iter().map(|(outcome, submitted)| describe(outcome, submitted));
    if is_list {
        let entries = entries.map(|entry| entry.unwrap_or_else(|e| json!({ "error": e.json() })));
        let body = json!({ "feedback": entries.collect::<Vec<_>>() });
        return Ok(json_response(&body));
    }
    let entry = entries.next().unwrap_or_else(|| Err(Problem::internal()))?;
    Ok(json_response(&entry))
}

/// Stores the labels, and returns the outcome of each.
async fn store(
    app: &Arc<App>,
    feedback: Arc<Feedback>,
    submitted: Vec<SubmittedLabel>,
    authenticated: bool,
) -> Result<Vec<(Outcome, SubmittedLabel)>, Problem> {
    // Labels are validated against those of a loaded model.
    app.models.default().get().ok_or_else(Problem::not_ready)?;
    let shared = Arc::clone(app);
    let labels: Vec<(Uuid, String)> = submitted
        .iter()
        .map(|submitted| (submitted.prediction_id, submitted.label.clone()))
        .collect();
    let outcomes = tokio::task::spawn_blocking(move || {
        let canonical = |predicted: &StoredPrediction, submitted: &str| {
            let (name, version) = (&predicted.model_name, &predicted.model_version);
            let model =
                shared.models.of_prediction(name, version).ok_or_else(Problem::not_ready)?;
            canonical_label(&model, submitted).ok_or_else(|| unknown_label(&shared))
        };
        feedback.store_labels(&labels, authenticated, canonical)
    });
    // `Feedback` has logged and counted a failure of the store.
    let outcomes = outcomes.await.ok().and_then(Result::ok).ok_or_else(Problem::internal)?;
    Ok(outcomes.into_iter().zip(submitted).collect())
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
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::UnknownLabel, detail)
}

/// A label in the form of [`Prediction::label_text`](petnet::Prediction::label_text); `None` for one that the model does not
/// have.
fn canonical_label(model: &Model, submitted: &str) -> Option<String> {
    let labels = model.classifier.labels();
    if submitted.len() > MAX_LABEL_LENGTH {
        return None;
    }
    match &model.classifier.info().task {
        Task::SingleLabel => labels.iter().find(|label| *label == submitted).cloned(),
        Task::MultiLabel { .. } => {
            let named: BTreeSet<&str> =
                submitted.split('|').filter(|name| !name.is_empty()).collect();
            let named_labels: Vec<&str> =
                labels.iter().map(String::as_str).filter(|label| named.contains(label)).collect();
            (named_labels.len() == named.len()).then(|| named_labels.join("|"))
        }
    }
}

fn describe(outcome: Outcome, submitted: SubmittedLabel) -> Result<Value, Problem> {
    match outcome {
        Outcome::Stored { predicted, right, .. } => Ok(json!({
            "prediction_id": submitted.prediction_id,
            "label": submitted.label,
            "predicted_class": predicted.label,
            "correct": right,
        })),
        Outcome::UnknownPrediction => {
            let detail =
                format!("there is no prediction {}, or it is too old", submitted.prediction_id);
            Err(Problem::new(StatusCode::NOT_FOUND, Kind::UnknownPrediction, detail))
        }
        Outcome::Refused(problem) => Err(problem),
    }
}

pub(super) async fn export(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let feedback = enabled_feedback(app)?;
    let after = query_parameter(request.uri(), "after").map(|id| id.parse::<Uuid>()).transpose();
    let after = after.map_err(|_| Problem::bad_request("`after` is a prediction_id"))?;
    let _claim = app.memory.claim_buffer(MAX_EXPORTED_LABELS * MAX_LABEL_BYTES)?;
    let labels = tokio::task::spawn_blocking(move || feedback.export(after, MAX_EXPORTED_LABELS));
    // `Feedback` has logged and counted a failure of the store.
    let labels = labels.await.ok().and_then(Result::ok).ok_or_else(Problem::internal)?;
    let lines: String = labels.iter().map(|(id, labelled)| line(*id, labelled)).collect();
    let mut response = typed_response("application/x-ndjson", lines);
    if let Some((last, _)) = labels.last().filter(|_| labels.len() == MAX_EXPORTED_LABELS) {
        let next = format!("</feedback/export?after={last}>; rel=\"next\"");
        if let Ok(next) = HeaderValue::from_str(&next) {
            response.headers_mut().insert(LINK, next);
        }
    }
    Ok(response)
}

fn line(id: Uuid, labelled: &LabelledPrediction) -> String {
    let LabelledPrediction { predicted, actual, at, authenticated } = labelled;
    let at = UNIX_EPOCH + Duration::from_millis(*at);
    let entry = json!({
        "prediction_id": id,
        "label": actual,
        "predicted_class": predicted.label,
        "confidence": predicted.confidence,
        "model_version": predicted.model_version,
        "sha256": predicted.sha256,
        "authenticated": authenticated,
        "labelled": humantime::format_rfc3339_millis(at).to_string(),
    });
    format!("{entry}\n")
}

fn enabled_feedback(app: &App) -> Result<Arc<Feedback>, Problem> {
    let detail = "feedback is switched off: start the server with --feedback FOLDER";
    let off = || Problem::new(StatusCode::NOT_IMPLEMENTED, Kind::FeedbackOff, detail);
    app.feedback.clone().ok_or_else(off)
}
