//! `/predict` and `/predict/batch`.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use metrics::counter;
use petnet::Prediction;
use serde_json::{Map, Value, json};

use super::{Reply, json as json_reply, new_id};
use crate::app::App;
use crate::batcher::Timings;
use crate::model::Model;
use crate::problem::Problem;
use crate::telemetry::{Note, milliseconds};

pub(super) async fn one(app: &Arc<App>, request: &mut Request<Incoming>) -> Result<Reply, Problem> {
    app.keys.check(request.headers())?;
    let model = app.model()?;
    let upload = app.uploads.read(request, &app.settings).await?;
    let began = Instant::now();
    let bytes = upload.size;
    let photo = upload.photos.into_iter().next().ok_or_else(Problem::internal)?;
    let place = app.batcher.admit(1)?;
    let answer = app.batcher.classify(Arc::clone(&model), photo.bytes?, place).await?;
    let id = new_id();
    let mut fields = describe(&answer.value, &model, &id);
    fields.insert("processing_time_ms".into(), milliseconds(began.elapsed()).into());
    let mut reply = json_reply(StatusCode::OK, &Value::Object(fields));
    reply.extensions_mut().insert(note(&answer.value, id, answer.timings, bytes));
    Ok(reply)
}

pub(super) async fn many(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    app.keys.check(request.headers())?;
    let model = app.model()?;
    let upload = app.uploads.read(request, &app.settings).await?;
    let began = Instant::now();
    let photos = upload.photos.len();
    let names: Vec<_> = upload.photos.iter().map(|photo| photo.name.clone()).collect();
    let mut places = app.batcher.admit(photos)?;
    let answers = upload.photos.into_iter().map(|photo| {
        let place = places.split().ok_or_else(Problem::internal);
        let model = Arc::clone(&model);
        async move {
            let answer = app.batcher.classify(model, photo.bytes?, place?).await?;
            Ok::<_, Problem>(answer.value)
        }
    });
    // Collected first: every photo has its place before the first one is waited for.
    let answers: Vec<_> = answers.collect();
    let outcomes = join_all(answers).await;
    let entries: Vec<Value> = outcomes
        .iter()
        .zip(names)
        .enumerate()
        .map(|(index, (outcome, name))| {
            let mut fields = match outcome {
                Ok(prediction) => describe(prediction, &model, &new_id()),
                Err(problem) => Map::from_iter([("error".to_string(), problem.json())]),
            };
            fields.insert("index".into(), index.into());
            if let Some(name) = name {
                fields.insert("filename".into(), name.into());
            }
            Value::Object(fields)
        })
        .collect();
    let body = json!({
        "predictions": entries,
        "processing_time_ms": milliseconds(began.elapsed()),
    });
    let mut reply = json_reply(StatusCode::OK, &body);
    reply.extensions_mut().insert(Note { photos, bytes: upload.size, ..Note::default() });
    Ok(reply)
}

/// The fields that existing clients know, and what petnet adds to them.
pub(super) fn describe(prediction: &Prediction, model: &Model, id: &str) -> Map<String, Value> {
    counter!("prediction_requests_total", "class_predicted" => prediction.label().to_string())
        .increment(1);
    let labels = model.classifier.labels();
    let probabilities: Map<String, Value> = labels
        .iter()
        .zip(prediction.probabilities())
        .map(|(label, p)| (label.clone(), rounded(*p)))
        .collect();
    let decision = if prediction.is_sure() { prediction.label() } else { "unsure" };
    Map::from_iter([
        ("predicted_class".to_string(), prediction.label().into()),
        ("predicted_label".to_string(), prediction.index().into()),
        ("confidence".to_string(), rounded(prediction.confidence())),
        ("probabilities".to_string(), probabilities.into()),
        ("decision".to_string(), decision.into()),
        ("familiar".to_string(), prediction.is_familiar().into()),
        ("prediction_id".to_string(), id.into()),
        ("model".to_string(), json!({ "name": model.name, "version": model.version })),
    ])
}

pub(super) fn note(prediction: &Prediction, id: String, timings: Timings, bytes: usize) -> Note {
    Note {
        prediction_id: Some(id),
        label: Some(prediction.label().to_string()),
        confidence: Some(prediction.confidence()),
        timings,
        photos: 1,
        bytes,
        problem: None,
    }
}

/// Six digits: what an f32 holds.
fn rounded(value: f32) -> Value {
    ((f64::from(value) * 1e6).round() / 1e6).into()
}
