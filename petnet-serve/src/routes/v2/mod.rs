//! The Open Inference Protocol (KServe v2) over HTTP with Triton's extensions, for serving platforms of Kubernetes and for
//! `tritonclient`.
//!
//! Each model has two names: its own, with encoded images as input, and `NAME-pixels`, with tensors of pixels.

pub(super) mod infer;
pub(super) mod tensor;

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};

use super::images::priority;
use super::{Reply, json as json_reply};
use crate::app::App;
use crate::models::{Model, PIXELS, Served, Target, unknown};
use crate::problem::Problem;
use crate::standing::Priority;

pub(super) use infer::error;

/// Parses a request and the values of its inputs, for fuzzing.
#[cfg(fuzzing)]
pub(crate) fn parse_tensors(body: &bytes::Bytes, head: Option<usize>) -> Result<(), Problem> {
    let (request, mut binary) = tensor::Request::parse(body, head, "image")?;
    for input in request.inputs {
        input.values(&mut binary, 32)?;
    }
    Ok(())
}

/// Format of the input images.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Encoded files: input `image`, BYTES `[n]`.
    Encoded,
    /// Decoded pixels: input `pixels`, FP32 `[n, 3, size, size]` (NCHW), RGB, from 0 to 255.
    Pixels,
}

impl Form {
    const ALL: [Self; 2] = [Self::Encoded, Self::Pixels];

    /// The protocol's name of a model with inputs of this format.
    pub(super) fn name(self, model: &str) -> String {
        match self {
            Self::Encoded => model.into(),
            Self::Pixels => format!("{model}{PIXELS}"),
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
///
/// # Errors
/// 404 for an unknown name, 503 while the model is not loaded.
pub(super) fn find(app: &App, name: &str, priority: Priority) -> Result<(Target, Form), Problem> {
    let (served, form) = served(app, name)?;
    Ok((app.target(Some(served.name()), priority)?, form))
}

fn served<'a>(app: &'a App, name: &str) -> Result<(&'a Arc<Served>, Form), Problem> {
    let found = Form::ALL.into_iter().find_map(|form| {
        let mut all = app.models.iter();
        all.find(|served| form.name(served.name()) == name).map(|served| (served, form))
    });
    found.ok_or_else(|| {
        unknown(name, app.models.iter().flat_map(|served| Form::ALL.map(|f| f.name(served.name()))))
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
pub(super) fn server() -> Reply {
    let body = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
    });
    json_reply(StatusCode::OK, &body)
}

/// # Errors
/// 503 while it is not ready.
pub(super) fn ready(app: &App) -> Result<Reply, Problem> {
    check_ready(app).map(|()| json_reply(StatusCode::OK, &json!({ "ready": true })))
}

/// # Errors
/// 503 while the default model is not loaded, and while the service drains.
pub(super) fn check_ready(app: &App) -> Result<(), Problem> {
    if !app.is_loaded() {
        return Err(Problem::not_ready());
    }
    if !app.serving() {
        let detail = "the server is draining";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail));
    }
    Ok(())
}

/// # Errors
/// 404 for an unknown name, 503 while the model is not loaded.
pub(super) fn model_ready(app: &App, name: &str) -> Result<Reply, Problem> {
    find(app, name, Priority::default()).map(|_| json_reply(StatusCode::OK, &json!({})))
}

/// # Errors
/// As [`model_ready`].
pub(super) fn stats(app: &App, name: &str) -> Result<Reply, Problem> {
    let (target, _) = find(app, name, Priority::default())?;
    let stats = app.stats.json(name, &target.model.version);
    Ok(json_reply(StatusCode::OK, &json!({ "model_stats": [stats] })))
}

/// # Errors
/// As [`model_ready`], and the reasons for which a request is refused.
pub(super) async fn infer(
    app: &Arc<App>,
    name: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    let (target, form) = find(app, name, priority(request))?;
    infer::infer(app, &target, form, request).await
}

/// # Errors
/// As [`model_ready`].
pub(super) fn metadata(app: &App, name: &str) -> Result<Reply, Problem> {
    let (target, form) = find(app, name, Priority::default())?;
    let tensor = |(name, datatype, shape): &(&str, &str, Vec<i64>)| json!({ "name": name, "datatype": datatype, "shape": shape });
    let body = json!({
        "name": name,
        "versions": [target.model.version],
        "platform": PLATFORM,
        "inputs": [tensor(&(form.input(), form.datatype(), form.shape(&target.model)))],
        "outputs": outputs(&target.model).iter().map(tensor).collect::<Vec<_>>(),
    });
    Ok(json_reply(StatusCode::OK, &body))
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
///
/// # Errors
/// As [`model_ready`].
pub(super) fn config(app: &App, name: &str) -> Result<Reply, Problem> {
    let (target, form) = find(app, name, Priority::default())?;
    // Triton's own types: TYPE_FP32, and TYPE_STRING for BYTES.
    let kind = |datatype: &str| match datatype {
        "BYTES" => "TYPE_STRING".to_string(),
        other => format!("TYPE_{other}"),
    };
    let tensor = |(name, datatype, dims): &(&str, &str, Vec<i64>)| json!({ "name": name, "data_type": kind(datatype), "dims": dims });
    let body = json!({
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        // 0: the batch dimension is part of the shapes, and is not added to them.
        "max_batch_size": 0,
        "input": [tensor(&(form.input(), form.datatype(), form.shape(&target.model)))],
        "output": outputs(&target.model).iter().map(tensor).collect::<Vec<_>>(),
    });
    Ok(json_reply(StatusCode::OK, &body))
}

/// The repository's index.
pub(super) fn index(app: &App) -> Reply {
    let entries = repository(app).into_iter().map(|Entry { name, version, state, reason }| json!({ "name": name, "version": version, "state": state, "reason": reason }));
    json_reply(StatusCode::OK, &Value::Array(entries.collect()))
}

/// A model of the repository.
pub(super) struct Entry {
    pub(super) name: String,
    /// Empty while the model is not loaded.
    pub(super) version: String,
    pub(super) state: &'static str,
    pub(super) reason: &'static str,
}

/// All models, under both of their names.
pub(super) fn repository(app: &App) -> Vec<Entry> {
    let entries = app.models.iter().flat_map(|served| {
        let model = served.get();
        let (state, reason) = match &model {
            Some(_) => ("READY", ""),
            None => ("UNAVAILABLE", "unloaded"),
        };
        let version = model.map(|model| model.version.clone()).unwrap_or_default();
        Form::ALL.map(|form| Entry {
            name: form.name(served.name()),
            version: version.clone(),
            state,
            reason,
        })
    });
    entries.collect()
}

/// Reloads a model.
///
/// # Errors
/// 404 for an unknown name, 400 when the model cannot be loaded.
pub(super) async fn load(app: &Arc<App>, name: &str) -> Result<(), Problem> {
    let (served, _) = served(app, name)?;
    let loaded = app.reload(served).await;
    loaded.map(|_| ()).map_err(|error| {
        let detail = format!("the model was refused, the previous one stays in use: {error:#}");
        Problem::new(StatusCode::BAD_REQUEST, "model_refused", detail)
    })
}

/// Unloads a model.
///
/// # Errors
/// 404 for an unknown name.
pub(super) fn unload(app: &App, name: &str) -> Result<(), Problem> {
    served(app, name).map(|(served, _)| served.unload())
}

/// The response to a successful load or unload.
pub(super) fn done((): ()) -> Reply {
    json_reply(StatusCode::OK, &json!({}))
}
