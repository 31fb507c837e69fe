//! The Open Inference Protocol (KServe v2) over HTTP, with Triton's extensions: what Kubernetes' serving
//! platforms and `tritonclient` speak.
//!
//! The model shows itself twice: by its name, for encoded photos, and as `NAME-pixels`, for tensors.

mod infer;
mod stats;
mod tensor;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use super::{Reply, json as json_reply};
use crate::app::App;
use crate::model::Model;
use crate::problem::Problem;

pub(super) use infer::error;
pub(crate) use stats::Stats;

/// What comes behind a model's name where it takes tensors.
const PIXELS: &str = "-pixels";

/// Reads a request and the values of its inputs.
#[cfg(fuzzing)]
pub(crate) fn parse_tensors(body: &bytes::Bytes, head: Option<usize>) -> Result<(), Problem> {
    let (request, mut binary) = tensor::Request::parse(body, head, "image")?;
    for input in request.inputs {
        input.values(&mut binary, 32)?;
    }
    Ok(())
}

/// How photos come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Encoded: `image`, BYTES `[n]`.
    Encoded,
    /// Decoded: `pixels`, FP32 `[n, 3, size, size]`, RGB, 0 to 255.
    Pixels,
}

impl Form {
    const ALL: [Self; 2] = [Self::Encoded, Self::Pixels];

    fn name(self, model: &Model) -> String {
        match self {
            Self::Encoded => model.name.clone(),
            Self::Pixels => format!("{}{PIXELS}", model.name),
        }
    }

    fn input(self) -> &'static str {
        match self {
            Self::Encoded => "image",
            Self::Pixels => "pixels",
        }
    }

    fn shape(self, model: &Model) -> Vec<i64> {
        let size = i64::from(model.classifier.info().preprocess.size);
        match self {
            Self::Encoded => vec![-1],
            Self::Pixels => vec![-1, 3, size, size],
        }
    }

    fn datatype(self) -> &'static str {
        match self {
            Self::Encoded => "BYTES",
            Self::Pixels => "FP32",
        }
    }
}

fn find(app: &App, name: &str) -> Result<(Arc<Model>, Form), Problem> {
    let model = app.model()?;
    let form = Form::ALL.into_iter().find(|form| form.name(&model) == name);
    let unknown = || {
        let known = Form::ALL.map(|form| form.name(&model)).join(", ");
        let detail = format!("there is no model `{name}`: there is {known}");
        Problem::new(StatusCode::NOT_FOUND, "unknown_model", detail)
    };
    let form = form.ok_or_else(unknown)?;
    Ok((model, form))
}

/// The server's name, version and extensions.
pub(super) fn server() -> Reply {
    let extensions = [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    ];
    let body = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": extensions,
    });
    json_reply(StatusCode::OK, &body)
}

/// # Errors
/// 503 while it is not ready.
pub(super) fn ready(app: &App) -> Result<Reply, Problem> {
    app.model()?;
    if !app.serving() {
        let detail = "the server is draining";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail));
    }
    Ok(json_reply(StatusCode::OK, &json!({ "ready": true })))
}

/// # Errors
/// 404 for another model's name.
pub(super) fn model_ready(app: &App, name: &str) -> Result<Reply, Problem> {
    find(app, name).map(|_| json_reply(StatusCode::OK, &json!({})))
}

/// # Errors
/// 404 for another model's name.
pub(super) fn stats(app: &App, name: &str) -> Result<Reply, Problem> {
    let (model, form) = find(app, name)?;
    let stats = app.stats.json(&form.name(&model), &model.version);
    Ok(json_reply(StatusCode::OK, &json!({ "model_stats": [stats] })))
}

/// # Errors
/// 404 for another model's name; what a request is refused for.
pub(super) async fn infer(
    app: &Arc<App>,
    name: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let (model, form) = find(app, name)?;
    infer::infer(app, &model, form, request).await
}

/// # Errors
/// 404 for another model's name.
pub(super) fn metadata(app: &App, name: &str) -> Result<Reply, Problem> {
    let (model, form) = find(app, name)?;
    Ok(json_reply(StatusCode::OK, &describe(&model, form)))
}

fn describe(model: &Model, form: Form) -> Value {
    let classes = model.classifier.labels().len();
    let features = model.classifier.embedding_len();
    json!({
        "name": form.name(model),
        "versions": [model.version],
        "platform": "petnet",
        "inputs": [
            { "name": form.input(), "datatype": form.datatype(), "shape": form.shape(model) },
        ],
        "outputs": [
            { "name": "probabilities", "datatype": "FP32", "shape": [-1, classes] },
            { "name": "label", "datatype": "BYTES", "shape": [-1] },
            { "name": "prediction_id", "datatype": "BYTES", "shape": [-1] },
            { "name": "decision", "datatype": "BYTES", "shape": [-1] },
            { "name": "embedding", "datatype": "FP32", "shape": [-1, features] },
        ],
    })
}

/// The same as Triton would write it.
///
/// # Errors
/// 404 for another model's name.
pub(super) fn config(app: &App, name: &str) -> Result<Reply, Problem> {
    let (model, form) = find(app, name)?;
    Ok(json_reply(StatusCode::OK, &configuration(&model, form)))
}

fn configuration(model: &Model, form: Form) -> Value {
    let classes = model.classifier.labels().len();
    let kind = if form == Form::Encoded { "TYPE_STRING" } else { "TYPE_FP32" };
    let output = |name: &str, kind: &str, dims: Vec<i64>| json!({ "name": name, "data_type": kind, "dims": dims });
    json!({
        "name": form.name(model),
        "platform": "petnet",
        "backend": "petnet",
        // The first dimension is the client's: nothing is added to it.
        "max_batch_size": 0,
        "input": [output(form.input(), kind, form.shape(model))],
        "output": [
            output("probabilities", "TYPE_FP32", vec![-1, classes as i64]),
            output("label", "TYPE_STRING", vec![-1]),
            output("prediction_id", "TYPE_STRING", vec![-1]),
            output("decision", "TYPE_STRING", vec![-1]),
            output("embedding", "TYPE_FP32", vec![-1, model.classifier.embedding_len() as i64]),
        ],
    })
}

/// The models that there are.
pub(super) fn index(app: &App) -> Reply {
    let model = app.slot.get();
    let entries = model.iter().flat_map(|model| {
        Form::ALL.map(|form| {
            json!({
                "name": form.name(model),
                "version": model.version,
                "state": "READY",
                "reason": "",
            })
        })
    });
    json_reply(StatusCode::OK, &Value::Array(entries.collect()))
}

/// Loads the model that the settings name.
///
/// # Errors
/// 400 when it is refused.
pub(super) async fn load(app: &Arc<App>) -> Result<Reply, Problem> {
    app.reload().await.map_err(|error| {
        let detail = format!("the model was refused, the old one stays: {error:#}");
        Problem::new(StatusCode::BAD_REQUEST, "model_refused", detail)
    })?;
    Ok(json_reply(StatusCode::OK, &json!({})))
}

/// Takes the model away.
pub(super) fn unload(app: &App) -> Reply {
    app.slot.empty();
    json_reply(StatusCode::OK, &json!({}))
}
