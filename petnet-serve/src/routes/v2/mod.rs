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

/// Answers a path of the protocol; `name` is the model's, where the path has one.
pub(super) async fn handle(
    app: &Arc<App>,
    route: &'static str,
    name: &str,
    request: &mut Request<Incoming>,
) -> Result<Reply, Problem> {
    match route {
        "/v2" => Ok(server()),
        "/v2/health/live" => Ok(json_reply(StatusCode::OK, &json!({ "live": true }))),
        "/v2/health/ready" => ready(app),
        "/v2/repository/index" => Ok(index(app)),
        "/v2/repository/models/{model}/load" | "/v2/repository/models/{model}/unload" => {
            repository(app, route, request).await
        }
        _ => {
            app.keys.check(request.headers())?;
            let (model, form) = find(app, name)?;
            match route {
                "/v2/models/{model}/infer" => infer::infer(app, &model, form, request).await,
                "/v2/models/{model}/ready" => Ok(json_reply(StatusCode::OK, &json!({}))),
                "/v2/models/{model}/config" => {
                    Ok(json_reply(StatusCode::OK, &config(&model, form)))
                }
                "/v2/models/{model}/stats" => {
                    let stats = app.stats.json(&form.name(&model), &model.version);
                    Ok(json_reply(StatusCode::OK, &json!({ "model_stats": [stats] })))
                }
                _ => Ok(json_reply(StatusCode::OK, &metadata(&model, form))),
            }
        }
    }
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

fn server() -> Reply {
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

fn ready(app: &App) -> Result<Reply, Problem> {
    app.model()?;
    if !app.serving() {
        let detail = "the server is draining";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail));
    }
    Ok(json_reply(StatusCode::OK, &json!({ "ready": true })))
}

fn metadata(model: &Model, form: Form) -> Value {
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
fn config(model: &Model, form: Form) -> Value {
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

fn index(app: &App) -> Reply {
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

/// Loads the model that the settings name, or takes it away.
async fn repository(
    app: &Arc<App>,
    route: &str,
    request: &Request<Incoming>,
) -> Result<Reply, Problem> {
    app.keys.require(request.headers())?;
    if route.ends_with("/unload") {
        app.slot.empty();
    } else {
        app.reload().await.map_err(|error| {
            let detail = format!("the model was refused, the old one stays: {error:#}");
            Problem::new(StatusCode::BAD_REQUEST, "model_refused", detail)
        })?;
    }
    Ok(json_reply(StatusCode::OK, &json!({})))
}
