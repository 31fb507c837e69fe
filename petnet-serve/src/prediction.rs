//! A prediction as the fields of a response, and its record in metrics, drift window and feedback store.

use metrics::{counter, histogram};
use petnet::drift::DriftSample;
use petnet::{Decision, Prediction};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::feedback::StoredPrediction;
use crate::models::{Model, RequestModel};
use crate::outputs::ImageMetadata;
use crate::telemetry::names;

/// Maximum length of a label's text in bytes in the feedback store: a line of the export has two of them.
pub(crate) const MAX_LABEL_LENGTH: usize = 400;

/// Counts a prediction, adds it to the drift window, and stores it for later user feedback.
pub(crate) fn record_prediction(
    app: &App,
    target: &RequestModel,
    id: Uuid,
    (prediction, image): (&Prediction, &ImageMetadata),
) {
    let model = &*target.model;
    let class = model.class(prediction.index());
    let predicted_classes = match prediction.indices() {
        None => vec![class.clone()],
        Some([]) => vec!["none".into()],
        Some(indices) => indices.iter().map(|index| model.class(*index)).collect(),
    };
    for class in predicted_classes {
        let name = || model.name.clone();
        counter!(names::PREDICTION_REQUESTS_TOTAL, "class_predicted" => class.clone(), "model" => name())
            .increment(1);
        counter!(names::API_PREDICTIONS_TOTAL, "class" => class, "model" => name()).increment(1);
    }
    let name = model.name.clone();
    histogram!(names::MODEL_PREDICTION_CONFIDENCE, "class" => class, "model" => name)
        .record(prediction.confidence());
    let (decision, name) = (prediction.decision().name(), model.name.clone());
    counter!(names::PREDICTION_DECISIONS_TOTAL, "decision" => decision, "model" => name)
        .increment(1);
    let reference = model.classifier.info().reference.as_ref();
    let sample = DriftSample::of(prediction, &image.statistics);
    target.served.drift.push(&model.version, reference, sample);
    let label = prediction.label_text();
    // A longer text cannot get feedback: `/feedback` refuses labels of that length as well.
    let store = app.feedback.as_ref().filter(|_| label.len() <= MAX_LABEL_LENGTH);
    if let (Some(feedback), Some(sha256)) = (store, &image.sha256) {
        let predicted = StoredPrediction {
            label,
            confidence: prediction.confidence(),
            model_name: model.name.clone(),
            model_version: model.version.clone(),
            sha256: sha256.clone(),
        };
        feedback.store_prediction(id, &predicted);
    }
}

/// The fields of the Python service (PyTorch + FastAPI), whose clients are supported, and those that petnet adds.
pub(crate) fn prediction_fields(
    prediction: &Prediction,
    model: &Model,
    id: Uuid,
) -> Map<String, Value> {
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

/// Rounds to six decimals: an f32 has no more significant digits.
fn rounded(value: f32) -> Value {
    ((f64::from(value) * 1e6).round() / 1e6).into()
}
