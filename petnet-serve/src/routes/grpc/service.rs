//! The inference service of the Open Inference Protocol v2.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::CallOutcome;
use super::proto::grpc_inference_service_server::GrpcInferenceService;
use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::model_infer_response::InferOutputTensor;
use super::proto::model_metadata_response::TensorMetadata;
use super::proto::repository_index_response::ModelIndex;
use super::proto::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use crate::app::App;
use crate::authorization::Priority;
use crate::problem::Problem;
use crate::routes::v2::infer::{Inference, classify, output_tensor, requested_outputs};
use crate::routes::v2::tensor::{Data, Input, InputParameters, OutputParameters, RequestedOutput};
use crate::routes::v2::{self, EXTENSIONS, Format, PLATFORM};
use crate::telemetry::RequestDetails;

/// The inference service for one call.
pub(super) struct Api {
    pub(super) app: Arc<App>,
    pub(super) priority: Priority,
    /// Length of the message in bytes.
    pub(super) bytes: usize,
    pub(super) outcome: CallOutcome,
}

impl Api {
    fn response<T>(&self, outcome: Result<T, Problem>) -> Result<Response<T>, Status> {
        outcome.map(Response::new).map_err(|problem| self.outcome.fail(problem))
    }

    async fn infer(&self, mut request: ModelInferRequest) -> Result<ModelInferResponse, Problem> {
        let (app, received) = (&self.app, Instant::now());
        let (target, format) = v2::find(app, &request.model_name, self.priority)?;
        target.check_wait()?;
        let requested = request.outputs.iter().map(requested).collect::<Result<Vec<_>, _>>()?;
        let (mut input, mut raw) = input(&mut request, format)?;
        let values = input.take_values(&mut raw, app.settings.max_parts)?;
        if !raw.is_empty() {
            return Err(Problem::bad_request("there are bytes after the input's values"));
        }
        let name = request.model_name;
        let inference = classify(app, &target, format, values).await;
        let details = inference.as_ref().ok().map(|inference| &inference.details);
        app.stats.add(&name, received.elapsed(), details);
        let Inference { classified, details, samples } = inference?;
        let (mut outputs, mut contents) = (Vec::new(), Vec::new());
        for requested in &*requested_outputs(&requested)? {
            let output = output_tensor(&target.model, requested, &classified)?;
            contents.push(Bytes::from(output.raw()));
            outputs.push(InferOutputTensor {
                name: output.name.into(),
                datatype: output.datatype().into(),
                shape: output.shape.iter().map(|side| *side as i64).collect(),
                ..InferOutputTensor::default()
            });
        }
        let details = RequestDetails { received: Some(received), bytes: self.bytes, ..details };
        self.outcome.set(details, samples);
        Ok(ModelInferResponse {
            model_name: name,
            model_version: target.model.version.clone(),
            id: request.id,
            outputs,
            raw_output_contents: contents,
            ..ModelInferResponse::default()
        })
    }
}

/// The only input of a request, and the raw bytes of its values.
fn input(request: &mut ModelInferRequest, format: Format) -> Result<(Input, Bytes), Problem> {
    let wrong = |detail: &str| Problem::bad_request(detail);
    let inputs = std::mem::take(&mut request.inputs);
    let [InferInputTensor { name, datatype, shape, contents, .. }] =
        <[InferInputTensor; 1]>::try_from(inputs)
            .map_err(|_| wrong(&format!("there must be one input, `{}`", format.input())))?;
    if name != format.input() {
        return Err(wrong(&format!("unknown input `{name}`, must be `{}`", format.input())));
    }
    let mut raw = std::mem::take(&mut request.raw_input_contents);
    let raw = match (&contents, raw.pop()) {
        (Some(_), Some(_)) => {
            return Err(wrong("values must be in `contents` or in `raw_input_contents`, not both"));
        }
        (None, None) => return Err(wrong(&format!("input `{name}`: there is no data"))),
        (None, Some(_)) if !raw.is_empty() => {
            return Err(wrong("`raw_input_contents` has more entries than inputs"));
        }
        (_, bytes) => bytes,
    };
    let parameters =
        InputParameters { binary_data_size: raw.as_ref().map(|bytes| bytes.len() as u64) };
    let data = contents.map(|all| Data::new(all.fp32_contents, all.bytes_contents));
    Ok((Input { name, shape, datatype, parameters, data }, raw.unwrap_or_default()))
}

/// An output that a request names.
fn requested(output: &InferRequestedOutputTensor) -> Result<RequestedOutput, Problem> {
    let wrong = || Problem::bad_request("`classification` must be a number of classes");
    let choice = output
        .parameters
        .get("classification")
        .map(|parameter| parameter.parameter_choice.as_ref());
    let classification = match choice {
        None => None,
        Some(Some(ParameterChoice::Int64Param(count))) => {
            Some(u64::try_from(*count).map_err(|_| wrong())?)
        }
        Some(Some(ParameterChoice::Uint64Param(count))) => Some(*count),
        Some(_) => return Err(wrong()),
    };
    let parameters = OutputParameters { classification, ..OutputParameters::default() };
    Ok(RequestedOutput { name: output.name.clone(), parameters })
}

#[tonic::async_trait]
impl GrpcInferenceService for Api {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        self.response(Ok(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        self.response(Ok(ServerReadyResponse { ready: v2::check_ready(&self.app).is_ok() }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let name = request.into_inner().name;
        let found = v2::find(&self.app, &name, self.priority);
        self.response(match found {
            Ok(_) => Ok(ModelReadyResponse { ready: true }),
            Err(problem) if problem.is_retriable() => Ok(ModelReadyResponse { ready: false }),
            Err(problem) => Err(problem),
        })
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        self.response(Ok(ServerMetadataResponse {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(String::from).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let name = request.into_inner().name;
        let tensor = |(name, datatype, shape): (&str, &str, Vec<i64>)| TensorMetadata {
            name: name.into(),
            datatype: datatype.into(),
            shape,
        };
        let found = v2::find(&self.app, &name, self.priority);
        self.response(found.map(|(target, format)| {
            let input = (format.input(), format.datatype(), format.shape(&target.model));
            ModelMetadataResponse {
                name,
                versions: vec![target.model.version.clone()],
                platform: PLATFORM.into(),
                inputs: vec![tensor(input)],
                outputs: v2::outputs(&target.model).map(tensor).into(),
            }
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        self.response(self.infer(request.into_inner()).await)
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let models = v2::repository(&self.app).into_iter().map(|entry| ModelIndex {
            name: entry.name,
            version: entry.version,
            state: entry.state.into(),
            reason: entry.reason.into(),
        });
        let models = models.filter(|model| !only_ready || model.state == "READY").collect();
        self.response(Ok(RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let loaded = v2::load(&self.app, &request.into_inner().model_name).await;
        self.response(loaded.map(|()| RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let unloaded = v2::unload(&self.app, &request.into_inner().model_name);
        self.response(unloaded.map(|()| RepositoryModelUnloadResponse {}))
    }
}
