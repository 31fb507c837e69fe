//! `/predict` and `/predict/batch`.

use std::sync::Arc;

use petnet::Prediction;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::images::Images;
use super::{HandlerResult, HttpRequest, json_response, new_id};
use crate::app::App;
use crate::prediction::{prediction_fields, record_prediction};
use crate::shadow::Samples;
use crate::telemetry::{RequestDetails, milliseconds};

pub(super) async fn single(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let (Images { target, upload, received }, output) = Images::classify(app, request).await?;
    let id = new_id();
    let prediction = &output.value.prediction;
    record_prediction(app, &target, id, (prediction, &output.metadata));
    let mut fields = prediction_fields(prediction, &target.model, id);
    fields.insert("processing_time_ms".into(), milliseconds(received.elapsed()).into());
    let mut response = json_response(&Value::Object(fields));
    let mut samples = Samples::default();
    samples.offer(app.shadow.as_ref(), &target, (id, prediction), &upload.only_image()?);
    response.extensions_mut().insert(samples);
    let (received, timings) = (Some(received), output.timings.into_iter().collect());
    let (bytes, details) = (upload.body_len, prediction_details(prediction, id));
    response.extensions_mut().insert(RequestDetails { received, timings, bytes, ..details });
    Ok(response)
}

pub(super) async fn batch(app: &Arc<App>, request: &mut HttpRequest) -> HandlerResult {
    let Images { target, upload, received } = Images::read(app, request).await?;
    let images = upload.images.len();
    let encoded = upload.images.iter().map(|image| image.bytes.clone().into()).collect();
    let outcomes = app.batcher.classify_all(&target, encoded).await?;
    let mut samples = Samples::default();
    let entries: Vec<Value> = outcomes
        .iter()
        .zip(&upload.images)
        .enumerate()
        .map(|(index, (outcome, image))| {
            let mut fields = match outcome {
                Ok(output) => {
                    let (id, prediction) = (new_id(), &output.value.prediction);
                    record_prediction(app, &target, id, (prediction, &output.metadata));
                    samples.offer(app.shadow.as_ref(), &target, (id, prediction), &image.bytes);
                    prediction_fields(prediction, &target.model, id)
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
        "processing_time_ms": milliseconds(received.elapsed()),
    });
    let mut response = json_response(&body);
    response.extensions_mut().insert(samples);
    let timings = outcomes.iter().flatten().filter_map(|output| output.timings).collect();
    let (received, bytes) = (Some(received), upload.body_len);
    let details = RequestDetails { received, timings, images, bytes, ..Default::default() };
    response.extensions_mut().insert(details);
    Ok(response)
}

/// The log fields of one image.
pub(super) fn prediction_details(prediction: &Prediction, id: Uuid) -> RequestDetails {
    RequestDetails {
        prediction_id: Some(id.to_string()),
        label: Some(prediction.label().to_string()),
        confidence: Some(prediction.confidence()),
        decision: Some(prediction.decision()),
        images: 1,
        ..Default::default()
    }
}
