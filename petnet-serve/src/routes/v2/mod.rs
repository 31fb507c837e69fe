//! The Open Inference Protocol (KServe v2) over HTTP with Triton's extensions, for serving platforms of Kubernetes and for
//! `tritonclient`.
//!
//! Each model has two names: its own, with encoded images as input, and `NAME-pixels`, with tensors of pixels. A function that
//! takes a model's name returns 404 for an unknown one and, where it uses the model, 503 while the model is not loaded.

pub(super) mod infer;
pub(super) mod tensor;

use std::sync::Arc;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::images::priority;
use super::{FullResponse, HandlerResult, HttpRequest, json_response};
use crate::app::App;
use crate::authorization::Priority;
use crate::models::{Model, PIXELS_SUFFIX, RequestModel, ServedModel, unknown_model};
use crate::problem::{Kind, Problem};

pub(super) use infer::error;

/// Parses a request and the values of its inputs, for fuzzing.
#[cfg(fuzzing)]
pub(crate) fn parse_tensors(body: &bytes::Bytes, json_len: Option<usize>) -> Result<(), Problem> {
    let (request, mut binary) = tensor::Request::parse(body, json_len, "image")?;
    let [mut input] = request.inputs;
    input.take_values(&mut binary, 32).map(|_| ())
}

/// Format of the input images.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Encoded files: input `image`, BYTES `[n]`.
    Encoded,
    /// Decoded pixels: input `pixels`, FP32 `[n, 3, size, size]` (NCHW), RGB, from 0 to 255.
    Pixels,
}

impl Format {
    const ALL: [Self; 2] = [Self::Encoded, Self::Pixels];

    /// The protocol's name of a model with inputs of this format.
    pub(super) fn name(self, model: &str) -> String {
        match self {
            Self::Encoded => model.into(),
            Self::Pixels => format!("{model}{PIXELS_SUFFIX}"),
        }
    }

    pub(super) fn input(self) -> &'static str {
        match self {
            Self::Encoded => "image",
            Self::Pixels => "pixels",
        }
    }

    pub(super) fn shape(self, model: &Model) -> Vec<i64> {
        let size = i64::from(model.classifier.info().preprocess.size);
        match self {
            Self::Encoded => vec![-1],
            Self::Pixels => vec![-1, 3, size, size],
        }
    }

    pub(super) fn datatype(self) -> &'static str {
        match self {
            Self::Encoded => "BYTES",
            Self::Pixels => "FP32",
        }
    }
}

/// The model of a name, and the input format that the name selects.
/// Errors: 404 for an unknown name, 503 while the model is not loaded.
pub(super) fn find(
    app: &App,
    name: &str,
    priority: Priority,
) -> Result<(RequestModel, Format), Problem> {
    let (served, format) = served(app, name)?;
    Ok((app.target(Some(served.name()), priority)?, format))
}

fn served<'a>(app: &'a App, name: &str) -> Result<(&'a Arc<ServedModel>, Format), Problem> {
    let found = Format::ALL.into_iter().find_map(|format| {
        let mut all = app.models.iter();
        all.find(|served| format.name(served.name()) == name).map(|served| (served, format))
    });
    found.ok_or_else(|| {
        unknown_model(
            name,
            app.models.iter().flat_map(|served| Format::ALL.map(|f| f.name(served.name()))),
        )
    })
}

/// Supported extensions of the protocol.
pub(super) const EXTENSIONS: [&str; 5] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
];

/// The server's name, version and extensions.
pub(super) fn server() -> FullResponse {
    let body = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
    });
    json_response(&body)
}

/// Checks the readiness of the server.
/// Errors: 503 while the default model is not loaded, and while the service drains.
pub(super) fn check_ready(app: &App) -> Result<(), Problem> {
    if !app.is_loaded() {
        return Err(Problem::not_ready());
    }
    if !app.is_serving() {
        let detail = "the server is draining";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Draining, detail));
    }
    Ok(())
}

/// The readiness of a model.
pub(super) fn model_ready(app: &App, name: &str) -> HandlerResult {
    find(app, name, Priority::default()).map(|_| json_response(&json!({})))
}

/// The statistics of a model, as Triton's extension defines them.
pub(super) fn stats(app: &App, name: &str) -> HandlerResult {
    let (target, _) = find(app, name, Priority::default())?;
    let stats = app.stats.json(name, &target.model.version);
    Ok(json_response(&json!({ "model_stats": [stats] })))
}

/// Runs a model on the input of a request.
/// Errors: as [`find`], and the reasons for which a request is refused.
pub(super) async fn infer(app: &Arc<App>, name: &str, request: &mut HttpRequest) -> HandlerResult {
    let (target, format) = find(app, name, priority(request))?;
    infer::infer(app, &target, format, request).await
}

/// Inputs and outputs of a model.
pub(super) fn metadata(app: &App, name: &str) -> HandlerResult {
    let (target, format) = find(app, name, Priority::default())?;
    let tensor = |(name, datatype, shape): &(&str, &str, Vec<i64>)| json!({ "name": name, "datatype": datatype, "shape": shape });
    let body = json!({
        "name": name,
        "versions": [target.model.version],
        "platform": PLATFORM,
        "inputs": [tensor(&(format.input(), format.datatype(), format.shape(&target.model)))],
        "outputs": outputs(&target.model).iter().map(tensor).collect::<Vec<_>>(),
    });
    Ok(json_response(&body))
}

/// The platform of all models, as the protocol names it.
pub(super) const PLATFORM: &str = "petnet";

/// Name, type and shape of each output.
pub(super) fn outputs(model: &Model) -> [(&'static str, &'static str, Vec<i64>); 5] {
    let length = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let classes = length(model.classifier.labels().len());
    [
        ("probabilities", "FP32", vec![-1, classes]),
        ("label", "BYTES", vec![-1]),
        ("prediction_id", "BYTES", vec![-1]),
        ("decision", "BYTES", vec![-1]),
        ("embedding", "FP32", vec![-1, length(model.classifier.embedding_len())]),
    ]
}

/// The model's configuration in Triton's format.
pub(super) fn config(app: &App, name: &str) -> HandlerResult {
    let (target, format) = find(app, name, Priority::default())?;
    // Triton's own types: TYPE_FP32, and TYPE_STRING for BYTES.
    let triton_type = |datatype: &str| match datatype {
        "BYTES" => "TYPE_STRING".to_string(),
        other => format!("TYPE_{other}"),
    };
    let tensor = |(name, datatype, dims): &(&str, &str, Vec<i64>)| json!({ "name": name, "data_type": triton_type(datatype), "dims": dims });
    let body = json!({
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        // 0: the batch dimension is part of the shapes, and is not added to them.
        "max_batch_size": 0,
        "input": [tensor(&(format.input(), format.datatype(), format.shape(&target.model)))],
        "output": outputs(&target.model).iter().map(tensor).collect::<Vec<_>>(),
    });
    Ok(json_response(&body))
}

/// A model of the repository.
#[derive(Serialize)]
pub(super) struct RepositoryEntry {
    pub(super) name: String,
    /// Empty while the model is not loaded.
    pub(super) version: String,
    pub(super) state: &'static str,
    pub(super) reason: &'static str,
}

/// All models, under both of their names.
pub(super) fn repository(app: &App) -> Vec<RepositoryEntry> {
    let entries = app.models.iter().flat_map(|served| {
        let model = served.get();
        let (state, reason) = match &model {
            Some(_) => ("READY", ""),
            None => ("UNAVAILABLE", "unloaded"),
        };
        let version = model.map(|model| model.version.clone()).unwrap_or_default();
        Format::ALL.map(|format| RepositoryEntry {
            name: format.name(served.name()),
            version: version.clone(),
            state,
            reason,
        })
    });
    entries.collect()
}

/// Reloads a model.
/// Errors: 404 for an unknown name, 400 when the model cannot be loaded.
pub(super) async fn load(app: &Arc<App>, name: &str) -> Result<(), Problem> {
    let (served, _) = served(app, name)?;
    let loaded = app.reload(served).await;
    loaded.map(|_| ()).map_err(|error| {
        let detail = format!("the model was refused, the previous one stays in use: {error:#}");
        Problem::new(StatusCode::BAD_REQUEST, Kind::ModelRefused, detail)
    })
}

/// Unloads a model.
/// Errors: 404 for an unknown name.
pub(super) fn unload(app: &App, name: &str) -> Result<(), Problem> {
    served(app, name).map(|(served, _)| served.unload())
}
