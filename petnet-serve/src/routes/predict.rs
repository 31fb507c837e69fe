//! `/predict` and `/predict/batch`.

use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use metrics::{counter, histogram};
use petnet::drift::DriftSample;
use petnet::{Decision, Prediction};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::feedback::LONGEST;
use super::{Reply, json as json_reply, new_id};
use crate::app::App;
use crate::batcher::{Answer, Classified};
use crate::decoder::Photo;
use crate::feedback::Predicted;
use crate::model::Model;
use crate::problem::Problem;
use crate::telemetry::{Note, milliseconds};

/// The image of a request, and the outputs of the model on it.
pub(super) struct Single {
    pub(super) model: Arc<Model>,
    pub(super) answer: Answer<Classified>,
    /// The time when the request's body was complete.
    pub(super) accepted: Instant,
    /// Bytes of the body.
    pub(super) bytes: usize,
}

impl Single {
    pub(super) async fn classify(
        app: &Arc<App>,
        request: &mut Request<Incoming>,
    ) -> Result<Self, Problem> {
        let model = app.model()?;
        app.batcher.check_line()?;
        let upload = app.uploads.read(request, &app.settings).await?;
        let accepted = Instant::now();
        let bytes = upload.size;
        let answer = app.batcher.classify(Arc::clone(&model), upload.only()?).await?;
        Ok(Self { model, answer, accepted, bytes })
    }
}

pub(super) async fn one(app: &Arc<App>, request: &mut Request<Incoming>) -> Result<Reply, Problem> {
    let Single { model, answer, accepted, bytes } = Single::classify(app, request).await?;
    let id = new_id();
    let prediction = &answer.value.prediction;
    remember(app, &model, id, (prediction, &answer.photo));
    let mut fields = describe(prediction, &model, id);
    fields.insert("processing_time_ms".into(), milliseconds(accepted.elapsed()).into());
    let mut reply = json_reply(StatusCode::OK, &Value::Object(fields));
    let (accepted, timings) = (Some(accepted), answer.timings.into_iter().collect());
    reply.extensions_mut().insert(Note { accepted, timings, bytes, ..note(prediction, id) });
    Ok(reply)
}

pub(super) async fn many(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let model = app.model()?;
    app.batcher.check_line()?;
    let upload = app.uploads.read(request, &app.settings).await?;
    let began = Instant::now();
    let photos = upload.photos.len();
    let names: Vec<_> = upload.photos.iter().map(|photo| photo.name.clone()).collect();
    let pictures = upload.photos.into_iter().map(|photo| Ok(photo.bytes)).collect();
    let outcomes = app.batcher.classify_all(&model, pictures).await?;
    let entries: Vec<Value> = outcomes
        .iter()
        .zip(names)
        .enumerate()
        .map(|(index, (outcome, name))| {
            let mut fields = match outcome {
                Ok(answer) => {
                    let id = new_id();
                    remember(app, &model, id, (&answer.value.prediction, &answer.photo));
                    describe(&answer.value.prediction, &model, id)
                }
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
    let timings = outcomes.iter().flatten().filter_map(|answer| answer.timings).collect();
    let (accepted, bytes) = (Some(began), upload.size);
    reply.extensions_mut().insert(Note { accepted, timings, photos, bytes, ..Note::default() });
    Ok(reply)
}

/// Counts a prediction, adds it to the drift window, and keeps it for the label that may come.
pub(super) fn remember(
    app: &App,
    model: &Model,
    id: Uuid,
    (prediction, photo): (&Prediction, &Photo),
) {
    let class = model.class(prediction.index());
    let answered = match prediction.indices() {
        None => vec![class.clone()],
        Some([]) => vec!["none".into()],
        Some(indices) => indices.iter().map(|index| model.class(*index)).collect(),
    };
    for class in answered {
        counter!("prediction_requests_total", "class_predicted" => class.clone()).increment(1);
        counter!("api_predictions_total", "class" => class).increment(1);
    }
    histogram!("model_prediction_confidence", "class" => class).record(prediction.confidence());
    let decision = prediction.decision().name();
    counter!("prediction_decisions_total", "decision" => decision).increment(1);
    app.drift.push(model, DriftSample::of(prediction, &photo.statistics));
    let label = prediction.label_text();
    // A text of so many labels takes no feedback: a label of that length is refused as well.
    let kept = app.feedback.as_ref().filter(|_| label.len() <= LONGEST);
    if let (Some(feedback), Some(sha256)) = (kept, &photo.sha256) {
        let predicted = Predicted {
            label,
            confidence: prediction.confidence(),
            model: model.version.clone(),
            sha256: sha256.clone(),
        };
        feedback.predicted(id, &predicted);
    }
}

/// The fields that existing clients know, and what petnet adds to them.
pub(super) fn describe(prediction: &Prediction, model: &Model, id: Uuid) -> Map<String, Value> {
    let labels = model.classifier.labels();
    let probabilities: Map<String, Value> = labels
        .iter()
        .zip(prediction.probabilities())
        .map(|(label, p)| (label.clone(), rounded(*p)))
        .collect();
    let message = prediction.decision().reason(labels);
    let (decision, reason) = match prediction.decision() {
        Decision::Answered if prediction.labels().is_some() => ("answered", None),
        Decision::Answered => (prediction.label(), None),
        unsure @ (Decision::LowConfidence | Decision::OutOfDistribution) => {
            ("unsure", Some(unsure.name()))
        }
    };
    let mut fields = Map::from_iter([
        ("predicted_class".to_string(), prediction.label().into()),
        ("predicted_label".to_string(), prediction.index().into()),
        ("confidence".to_string(), rounded(prediction.confidence())),
        ("probabilities".to_string(), probabilities.into()),
        ("decision".to_string(), decision.into()),
        ("reason".to_string(), reason.into()),
        ("message".to_string(), message.into()),
        ("ood_score".to_string(), prediction.ood_score().map(rounded).into()),
        ("prediction_id".to_string(), id.to_string().into()),
        ("model".to_string(), json!({ "name": model.name, "version": model.version })),
    ]);
    if let Some(labels) = prediction.labels() {
        let labels = labels.into_iter().map(
            |(label, probability)| json!({ "label": label, "probability": rounded(probability) }),
        );
        fields.insert("labels".into(), labels.collect());
    }
    fields
}

/// The log fields of one image.
pub(super) fn note(prediction: &Prediction, id: Uuid) -> Note {
    Note {
        prediction_id: Some(id.to_string()),
        label: Some(prediction.label().to_string()),
        confidence: Some(prediction.confidence()),
        decision: Some(prediction.decision()),
        photos: 1,
        ..Note::default()
    }
}

/// Six digits: what an f32 holds.
fn rounded(value: f32) -> Value {
    ((f64::from(value) * 1e6).round() / 1e6).into()
}
