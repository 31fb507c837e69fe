//! `/predict` and `/predict/batch`.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use petnet::Prediction;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::images::{Images, Single};
use super::{Reply, json as json_reply, new_id};
use crate::answer::{describe, remember};
use crate::app::App;
use crate::problem::Problem;
use crate::shadow::Samples;
use crate::telemetry::{Note, milliseconds};

pub(super) async fn one(app: &Arc<App>, request: &mut Request<Incoming>) -> Result<Reply, Problem> {
    let Single { images: Images { target, upload, accepted }, answer } =
        Single::classify(app, request).await?;
    let id = new_id();
    let prediction = &answer.value.prediction;
    remember(app, &target, id, (prediction, &answer.facts));
    let mut fields = describe(prediction, &target.model, id);
    fields.insert("processing_time_ms".into(), milliseconds(accepted.elapsed()).into());
    let mut reply = json_reply(StatusCode::OK, &Value::Object(fields));
    let mut samples = Samples::default();
    samples.offer(app.shadow.as_ref(), &target, (id, prediction), &upload.only()?);
    reply.extensions_mut().insert(samples);
    let (accepted, timings) = (Some(accepted), answer.timings.into_iter().collect());
    let note = note(prediction, id);
    reply.extensions_mut().insert(Note { accepted, timings, bytes: upload.size, ..note });
    Ok(reply)
}

pub(super) async fn many(
    app: &Arc<App>,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let Images { target, upload, accepted } = Images::read(app, request).await?;
    let images = upload.images.len();
    let encoded = upload.images.iter().map(|image| Ok(image.bytes.clone())).collect();
    let outcomes = app.batcher.classify_all(&target, encoded).await?;
    let mut samples = Samples::default();
    let entries: Vec<Value> = outcomes
        .iter()
        .zip(&upload.images)
        .enumerate()
        .map(|(index, (outcome, image))| {
            let mut fields = match outcome {
                Ok(answer) => {
                    let (id, prediction) = (new_id(), &answer.value.prediction);
                    remember(app, &target, id, (prediction, &answer.facts));
                    samples.offer(app.shadow.as_ref(), &target, (id, prediction), &image.bytes);
                    describe(prediction, &target.model, id)
                }
                Err(problem) => Map::from_iter([("error".to_string(), problem.json())]),
            };
            fields.insert("index".into(), index.into());
            if let Some(name) = &image.name {
                fields.insert("filename".into(), name.as_str().into());
            }
            Value::Object(fields)
        })
        .collect();
    let body = json!({
        "predictions": entries,
        "processing_time_ms": milliseconds(accepted.elapsed()),
    });
    let mut reply = json_reply(StatusCode::OK, &body);
    reply.extensions_mut().insert(samples);
    let timings = outcomes.iter().flatten().filter_map(|answer| answer.timings).collect();
    let (accepted, bytes) = (Some(accepted), upload.size);
    reply.extensions_mut().insert(Note { accepted, timings, images, bytes, ..Note::default() });
    Ok(reply)
}

/// The log fields of one image.
pub(super) fn note(prediction: &Prediction, id: Uuid) -> Note {
    Note {
        prediction_id: Some(id.to_string()),
        label: Some(prediction.label().to_string()),
        confidence: Some(prediction.confidence()),
        decision: Some(prediction.decision()),
        images: 1,
        ..Note::default()
    }
}
