//! gRPC on the same port: the Open Inference Protocol v2, health and reflection.
//!
//! Calls are recognised by their content type. Keys, limits, log lines, metrics and traces are those of the HTTP routes. A
//! call's work is cancelled at its deadline (`grpc-timeout`) and when its client disconnects.

mod service;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response, StatusCode};
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::codegen::Service as _;
use tonic::{Code, Status};

use super::v2::check_ready;
use crate::access::{Access, Scope};
use crate::app::App;
use crate::body::Body;
use crate::memory::Claim;
use crate::problem::{Kind, Problem};
use crate::shadow::Samples;
use crate::telemetry::RequestDetails;
use service::Api;

/// Messages of the protocol and the trait of its service, generated from `proto/inference.proto` by `scripts/grpc-code.sh`.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, reason = "generated code")]
mod proto {
    include!("../../../proto/inference.rs");
}

/// Maximum size of a message other than an inference request, in bytes.
const MAX_MESSAGE: usize = 16 << 10;

/// A method of the services.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) path: &'static str,
    /// As that of the corresponding HTTP route.
    access: Access,
    service: Service,
}

#[derive(Debug, Clone, Copy)]
enum Service {
    Inference,
    Health,
    Reflection,
    ReflectionAlpha,
}

const PREDICT: Access = Access::Key(Scope::Predict);

const fn inference(path: &'static str, access: Access) -> Method {
    Method { path, access, service: Service::Inference }
}

const fn open(path: &'static str, service: Service) -> Method {
    Method { path, access: Access::Open, service }
}

static METHODS: &[Method] = &[
    inference("/inference.GRPCInferenceService/ServerLive", Access::Open),
    inference("/inference.GRPCInferenceService/ServerReady", Access::Open),
    inference("/inference.GRPCInferenceService/ModelReady", Access::Open),
    inference("/inference.GRPCInferenceService/ServerMetadata", Access::Open),
    inference("/inference.GRPCInferenceService/ModelMetadata", PREDICT),
    inference("/inference.GRPCInferenceService/ModelInfer", PREDICT),
    inference("/inference.GRPCInferenceService/RepositoryIndex", PREDICT),
    inference("/inference.GRPCInferenceService/RepositoryModelLoad", Access::Operator),
    inference("/inference.GRPCInferenceService/RepositoryModelUnload", Access::Operator),
    open("/grpc.health.v1.Health/Check", Service::Health),
    open("/grpc.health.v1.Health/Watch", Service::Health),
    open("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Service::Reflection),
    open(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Service::ReflectionAlpha,
    ),
];

/// The method of a path.
pub(super) fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

/// True for a gRPC request.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Reports changes of the service's readiness to clients of `Health/Watch`: within a second, or at once when the service
/// begins to drain.
pub(crate) async fn report_health(app: Arc<App>) {
    const INTERVAL: Duration = Duration::from_secs(1);
    loop {
        app.health.update(check_ready(&app).is_ok()).await;
        // The wait usually ends by its timeout.
        let _ = tokio::time::timeout(INTERVAL, app.wait_for_draining()).await;
        if !app.is_serving() {
            return app.health.update(false).await;
        }
    }
}

/// The response to a call.
pub(super) async fn respond(
    app: &Arc<App>,
    method: Option<&'static Method>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let timeout = grpc_timeout(request.headers());
    let call = async {
        let method = method.ok_or_else(|| {
            let detail = "there is no such method";
            Problem::new(StatusCode::NOT_FOUND, Kind::NotFound, detail)
        })?;
        let authorization = app.keys.authorize(request.headers(), method.access)?;
        request.extensions_mut().insert(authorization.priority);
        call_service(app, method.service, request).await
    };
    let outcome = match timeout {
        None => call.await,
        Some(limit) => match tokio::time::timeout(limit, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let detail = "the deadline of the call has passed";
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, Kind::Timeout, detail))
            }
        },
    };
    outcome.unwrap_or_else(|problem| problem_response(app, problem))
}

/// The response to a call that is refused before it reaches its service.
pub(super) fn problem_response(app: &Arc<App>, problem: Problem) -> Response<Body> {
    let outcome = CallOutcome::default();
    let status = outcome.fail(problem);
    outcome.attach(app, status.into_http())
}

async fn call_service(
    app: &Arc<App>,
    service: Service,
    request: Request<Incoming>,
) -> Result<Response<Body>, Problem> {
    // The error type is `Infallible`: a service reports failures in the status of its response.
    let Ok(response) = match service {
        Service::Inference => return infer(app, request).await,
        Service::Health => {
            app.health.update(check_ready(app).is_ok()).await;
            app.health.server().call(request).await
        }
        Service::Reflection => {
            let service = reflection().build_v1().map_err(|_| Problem::internal())?;
            service.max_decoding_message_size(MAX_MESSAGE).call(request).await
        }
        Service::ReflectionAlpha => {
            let service = reflection().build_v1alpha().map_err(|_| Problem::internal())?;
            service.max_decoding_message_size(MAX_MESSAGE).call(request).await
        }
    };
    Ok(response.map(Body::from))
}

/// Reads a call of the inference service within the memory budget, and calls the service.
async fn infer(app: &Arc<App>, mut request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    let priority = super::images::priority(&request);
    let (bytes, mut claim) = app.uploads.read_bytes(&mut request).await?;
    // For tonic's buffer of twice the length, from the body on that it replaces; for raw floats as values, and as pixels.
    // The message begins after a flag and its length.
    let decoded = decoded_size(bytes.get(5..).unwrap_or_default(), 0);
    claim.merge(app.memory.claim_buffer(decoded.saturating_add(bytes.len() * 9 / 4))?);
    let outcome = CallOutcome::default();
    let api = Api { app: Arc::clone(app), priority, bytes: bytes.len(), outcome: outcome.clone() };
    let mut server = proto::grpc_inference_service_server::GrpcInferenceServiceServer::new(api)
        .max_decoding_message_size(app.settings.max_body);
    let Ok(response) = server.call(request.map(|_| Full::new(bytes))).await;
    drop::<Claim>(claim);
    Ok(outcome.attach(app, response))
}

/// Upper bound of the memory that prost allocates for a `ModelInferRequest` or a smaller message, in bytes: repeated fields may
/// take hundreds of times their encoded length. `depth` is 1 for an input or a requested output, 2 for an input's contents.
fn decoded_size(mut message: &[u8], depth: u8) -> usize {
    /// The largest item of a list, in a vector of at least four, whose old and doubled allocation exist at the same time.
    const ITEM_BYTES: usize = 4 * size_of::<proto::model_infer_request::InferInputTensor>();
    let mut size = 0_usize;
    // prost ends at an invalid field as well.
    while let Ok((field, wire_type)) = decode_key(&mut message) {
        let length = match wire_type {
            WireType::LengthDelimited => decode_varint(&mut message),
            WireType::Varint => decode_varint(&mut message).map(|_| 0),
            WireType::SixtyFourBit => Ok(8),
            WireType::ThirtyTwoBit => Ok(4),
            WireType::StartGroup | WireType::EndGroup => Ok(0),
        };
        let Ok(length) = length else { break };
        let (value, rest) = message.split_at(message.len().min(length as usize));
        message = rest;
        size = size.saturating_add(match (depth, field) {
            (0, 5 | 6) | (1, 5) => decoded_size(value, depth + 1).saturating_add(ITEM_BYTES),
            // Bytes, which are not copied.
            (0, 7) | (2, 8) => ITEM_BYTES,
            // Floats, packed or not, in a growing vector.
            (2, 6 | 7) => 3 * value.len(),
            // Strings, or packed integers: one byte is an integer of eight, in a growing vector; a shape is converted to
            // another one, while the first has up to twice its length.
            _ => ITEM_BYTES + (2 + 3) * 8 * value.len(),
        });
    }
    size
}

/// The details of a call for its log line, and the images sampled for the shadow model.
#[derive(Clone, Default)]
struct CallOutcome(Arc<OnceLock<(RequestDetails, Samples)>>);

impl CallOutcome {
    fn set(&self, details: RequestDetails, samples: Samples) {
        // Set once: a call has one response.
        let _ = self.0.set((details, samples));
    }

    /// Records the problem of a call that is refused, and returns its status.
    fn fail(&self, problem: Problem) -> Status {
        let status = status(&problem);
        let details = RequestDetails { problem: Some(problem), ..Default::default() };
        self.set(details, Samples::default());
        status
    }

    /// Attaches the details and the sampled images to the response.
    fn attach(self, app: &Arc<App>, response: Response<tonic::body::Body>) -> Response<Body> {
        let mut response = response.map(Body::from);
        if let Some((details, samples)) = self.0.get().cloned() {
            response.extensions_mut().insert(details);
            response = response.map(|body| body.with_samples(app.shadow.as_ref(), samples));
        }
        response
    }
}

/// The gRPC status of a problem; `grpc-retry-pushback-ms` has the time after which a client may try again.
fn status(problem: &Problem) -> Status {
    let code = match problem.status {
        StatusCode::BAD_REQUEST
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND if problem.kind == Kind::NotFound => Code::Unimplemented,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ => Code::Internal,
    };
    let mut status = Status::new(code, problem.detail.clone());
    if let Some(seconds) = problem.retry_after {
        let pushback = (seconds * 1000).to_string();
        if let Ok(value) = pushback.parse() {
            status.metadata_mut().insert("grpc-retry-pushback-ms", value);
        }
    }
    status
}

/// The value of the header `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Builder of the reflection service, which describes the services to tools such as grpcurl. The types of the services that it
/// builds cannot be named in a field, so that one is built for each call.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    const DESCRIPTORS: &[u8] = include_bytes!("../../../proto/inference.bin");
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_digits_and_a_unit() {
        let of = |text: &str| {
            grpc_timeout(&HeaderMap::from_iter([(
                "grpc-timeout".parse().unwrap(),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!((of("5"), of("m"), of("-1S"), of("123456789S")), (None, None, None, None));
    }

    #[test]
    fn each_method_has_a_path_of_its_own() {
        for method in METHODS {
            assert!(find(method.path).is_some_and(|found| std::ptr::eq(found, method)));
        }
        assert!(find("/inference.GRPCInferenceService/Other").is_none());
    }
}
