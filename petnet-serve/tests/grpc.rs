//! The Open Inference Protocol over gRPC; messages are sent on a plain HTTP/2 connection, without a gRPC client.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

#[allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    dead_code,
    unreachable_pub,
    reason = "generated code"
)]
mod proto {
    include!("../proto/inference.rs");
}

use std::time::Duration;

use bytes::Bytes;
use common::{Server, test_image};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use image::ImageFormat;
use prost::Message;
use proto::model_infer_request::InferInputTensor;
use proto::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, RepositoryIndexRequest, RepositoryIndexResponse,
    RepositoryModelLoadRequest, ServerReadyRequest, ServerReadyResponse,
};

const SERVICE: &str = "/inference.GRPCInferenceService/";

/// Sends one message; returns the response before its body is read.
async fn send(
    server: &Server,
    path: &str,
    message: &impl Message,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let executor = TokioExecutor::new();
    let io = TokioIo::new(stream);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let encoded = message.encode_to_vec();
    let mut body = vec![0];
    body.extend((encoded.len() as u32).to_be_bytes());
    body.extend(encoded);
    let mut request = Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
}

/// Makes a call; returns its status and its message.
async fn call<T: Message + Default>(
    server: &Server,
    path: &str,
    message: &impl Message,
    headers: &[(&str, &str)],
) -> (u32, T) {
    let reply = send(server, path, message, headers).await;
    let head = reply.headers().clone();
    let collected = reply.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let bytes = collected.to_bytes();
    let status = |headers: &HeaderMap| {
        headers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok())
    };
    let code = status(&trailers).or_else(|| status(&head)).expect("no status");
    let message = bytes.get(5..).map(|bytes| T::decode(bytes).unwrap()).unwrap_or_default();
    (code, message)
}

fn image(contents: Option<Vec<u8>>) -> InferInputTensor {
    InferInputTensor {
        name: "image".into(),
        datatype: "BYTES".into(),
        shape: vec![1],
        contents: contents.map(|file| InferTensorContents {
            bytes_contents: vec![file.into()],
            ..InferTensorContents::default()
        }),
        ..InferInputTensor::default()
    }
}

#[tokio::test]
async fn an_image_is_classified_in_each_form_and_invalid_calls_have_their_codes() {
    let server = Server::start(&[]);
    let file = test_image(ImageFormat::Jpeg);
    let element = [&(file.len() as u32).to_le_bytes()[..], &file].concat();
    let raw = ModelInferRequest {
        model_name: "cats-vs-dogs".into(),
        id: "4711".into(),
        inputs: vec![image(None)],
        raw_input_contents: vec![element.into()],
        ..ModelInferRequest::default()
    };
    let infer = format!("{SERVICE}ModelInfer");
    let (code, first): (u32, ModelInferResponse) = call(&server, &infer, &raw, &[]).await;
    assert_eq!((code, first.id.as_str()), (0, "4711"));
    let names: Vec<&str> = first.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["probabilities", "label", "prediction_id", "decision"]);
    let (values, _) = first.raw_output_contents[0].as_chunks();
    let sum: f32 = values.iter().map(|value| f32::from_le_bytes(*value)).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let typed = ModelInferRequest {
        inputs: vec![image(Some(file.clone()))],
        raw_input_contents: vec![],
        ..raw.clone()
    };
    let (code, second): (u32, ModelInferResponse) = call(&server, &infer, &typed, &[]).await;
    assert_eq!((code, &second.raw_output_contents[0]), (0, &first.raw_output_contents[0]));

    let unknown = ModelInferRequest { model_name: "other".into(), ..raw.clone() };
    let both = ModelInferRequest { inputs: vec![image(Some(file))], ..raw.clone() };
    let junk =
        ModelInferRequest { raw_input_contents: vec![vec![1, 0, 0, 0, 7].into()], ..raw.clone() };
    let none = ModelInferRequest { inputs: vec![], ..raw.clone() };
    for (request, expected) in [(unknown, 5), (both, 3), (junk, 3), (none, 3)] {
        let (code, _): (u32, ModelInferResponse) = call(&server, &infer, &request, &[]).await;
        assert_eq!(code, expected);
    }
    let late = [("grpc-timeout", "1n")];
    let (code, _): (u32, ModelInferResponse) = call(&server, &infer, &raw, &late).await;
    assert_eq!(code, 4, "the deadline has passed");
    let other = format!("{SERVICE}ModelStreamInfer");
    let (code, _): (u32, ModelInferResponse) = call(&server, &other, &raw, &[]).await;
    assert_eq!(code, 12);
    let load =
        RepositoryModelLoadRequest { model_name: "cats-vs-dogs".into(), ..Default::default() };
    let path = format!("{SERVICE}RepositoryModelLoad");
    let (code, _): (u32, ModelInferResponse) = call(&server, &path, &load, &[]).await;
    assert_eq!(code, 7, "nobody may load while no key is set");
    let metrics = server.metrics();
    let series =
        format!("api_requests_total{{endpoint=\"{infer}\",method=\"POST\",status=\"200\"}}");
    assert_eq!(metrics[&series], 2.0);
    assert!(metrics.keys().any(|name| name.contains(&infer) && name.contains("\"404\"")));
}

/// The repeated fields of a `ModelInferRequest` as bytes, so that items may be empty.
#[derive(Clone, PartialEq, Message)]
struct EncodedItems {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(bytes = "vec", repeated, tag = "5")]
    inputs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    outputs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

#[tokio::test]
async fn lists_of_small_items_are_refused_within_the_memory_budget() {
    const MEMORY: usize = 160;
    let server = Server::start(&["--memory", &MEMORY.to_string()]);
    let infer = format!("{SERVICE}ModelInfer");
    let message = || EncodedItems { model_name: "cats-vs-dogs".into(), ..EncodedItems::default() };
    let empty = |count: usize| vec![Vec::new(); count];
    let input =
        |input: InferInputTensor| EncodedItems { inputs: vec![input.encode_to_vec()], ..message() };
    let contents = |contents| input(InferInputTensor { contents: Some(contents), ..image(None) });
    // In memory, each takes more than the whole budget of buffers.
    let too_large = [
        EncodedItems { inputs: empty(1 << 20), ..message() },
        EncodedItems { outputs: empty(1 << 20), ..message() },
        EncodedItems { raw_input_contents: empty(1 << 20), ..message() },
        input(InferInputTensor { shape: vec![1; 1 << 20], ..image(None) }),
        contents(InferTensorContents { int64_contents: vec![1; 1 << 20], ..Default::default() }),
        contents(InferTensorContents {
            bytes_contents: vec![Bytes::new(); 1 << 20],
            ..Default::default()
        }),
    ];
    // These fit, and are refused for what they are.
    let wrong = [
        EncodedItems { inputs: empty(100), ..message() },
        EncodedItems { raw_input_contents: empty(100), ..input(image(None)) },
        input(InferInputTensor { shape: vec![1; 10_000], ..image(Some(vec![])) }),
        contents(InferTensorContents {
            bytes_contents: vec![Bytes::new(); 100],
            ..Default::default()
        }),
    ];
    let cases = too_large.iter().map(|message| (message, 8));
    for (number, (message, expected)) in cases.chain(wrong.iter().map(|m| (m, 3))).enumerate() {
        let (code, _): (u32, ModelInferResponse) = call(&server, &infer, message, &[]).await;
        assert_eq!(code, expected, "case {number}");
    }
    let peak = server.peak() >> 20;
    assert!(peak <= MEMORY, "{peak} MB");
}

#[tokio::test]
async fn states_and_models_are_reported_and_keys_are_required() {
    let digest = petnet::disk::sha256(b"secret");
    let server = Server::start(&["--api-keys-sha256", &digest]);
    let ready = format!("{SERVICE}ServerReady");
    let (code, state): (u32, ServerReadyResponse) =
        call(&server, &ready, &ServerReadyRequest {}, &[]).await;
    assert_eq!((code, state.ready), (0, true));
    let index = format!("{SERVICE}RepositoryIndex");
    let all = RepositoryIndexRequest::default();
    let (code, _): (u32, RepositoryIndexResponse) = call(&server, &index, &all, &[]).await;
    assert_eq!(code, 16);
    let key = [("authorization", "Bearer secret")];
    let (code, models): (u32, RepositoryIndexResponse) = call(&server, &index, &all, &key).await;
    let names: Vec<&str> = models.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!((code, names), (0, vec!["cats-vs-dogs", "cats-vs-dogs-pixels"]));
    let asked = ModelMetadataRequest { name: "cats-vs-dogs-pixels".into(), ..Default::default() };
    let metadata = format!("{SERVICE}ModelMetadata");
    let (code, metadata): (u32, ModelMetadataResponse) =
        call(&server, &metadata, &asked, &key).await;
    assert_eq!((code, metadata.inputs[0].shape.len()), (0, 4));
    let load =
        RepositoryModelLoadRequest { model_name: "cats-vs-dogs".into(), ..Default::default() };
    let path = format!("{SERVICE}RepositoryModelLoad");
    let (code, _): (u32, ServerReadyResponse) = call(&server, &path, &load, &key).await;
    assert_eq!(code, 0);
    let unload = format!("{SERVICE}RepositoryModelUnload");
    let (code, _): (u32, ServerReadyResponse) = call(&server, &unload, &load, &key).await;
    assert_eq!(code, 0);
    let (_, state): (u32, ServerReadyResponse) =
        call(&server, &ready, &ServerReadyRequest {}, &[]).await;
    assert!(!state.ready);
    let asked = ModelReadyRequest { name: "cats-vs-dogs".into(), ..Default::default() };
    let path = format!("{SERVICE}ModelReady");
    let (code, state): (u32, ServerReadyResponse) = call(&server, &path, &asked, &[]).await;
    assert_eq!((code, state.ready), (0, false));
    // `Check` of the health service: an empty request, and the status 2, NOT_SERVING.
    let path = "/grpc.health.v1.Health/Check";
    let (code, state): (u32, HealthState) = call(&server, path, &ServerReadyRequest {}, &[]).await;
    assert_eq!((code, state.status), (0, 2));
}

#[tokio::test]
async fn clients_that_watch_health_get_each_change() {
    let digest = petnet::disk::sha256(b"secret");
    let server =
        Server::start(&["--api-keys-sha256", &digest, "--drain-delay", "3s", "--grace", "3s"]);
    let watch = send(&server, "/grpc.health.v1.Health/Watch", &ServerReadyRequest {}, &[]).await;
    let mut body = watch.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(Duration::from_secs(30), body.frame());
        let data = frame.await.expect("no change was sent").unwrap().unwrap().into_data().unwrap();
        HealthState::decode(&data[5..]).unwrap().status
    };
    assert_eq!(next().await, 1, "serving");
    let key = [("authorization", "Bearer secret")];
    let model =
        RepositoryModelLoadRequest { model_name: "cats-vs-dogs".into(), ..Default::default() };
    let path = format!("{SERVICE}RepositoryModelUnload");
    let (code, _): (u32, ServerReadyResponse) = call(&server, &path, &model, &key).await;
    assert_eq!((code, next().await), (0, 2), "not serving");
    let path = format!("{SERVICE}RepositoryModelLoad");
    let (code, _): (u32, ServerReadyResponse) = call(&server, &path, &model, &key).await;
    assert_eq!((code, next().await), (0, 1), "serving again");
    server.signal("-TERM");
    assert_eq!(next().await, 2, "draining");
}

#[derive(Clone, PartialEq, Message)]
struct HealthState {
    #[prost(int32, tag = "1")]
    status: i32,
}
