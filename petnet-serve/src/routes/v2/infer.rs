//! The inference requests of the protocol: input tensors to images, outputs to tensors.

use std::borrow::Cow;
use std::io::{Read, Write as _};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use petnet::Prediction;
use petnet::preprocess::Pixels;
use serde_json::json;
use uuid::Uuid;

use super::Format;
use super::tensor::{
    MAX_LISTS_MEMORY, Output, OutputParameters, OutputValues, PARSED_BYTES_PER_JSON_BYTE, Request,
    RequestedOutput, Values,
};
use crate::app::App;
use crate::batcher::ImageInput;
use crate::buffer::Buffer;
use crate::memory::Claim;
use crate::models::{Model, RequestModel};
use crate::outputs::{Classification, ModelOutput};
use crate::prediction::record_prediction;
use crate::problem::{Kind, Problem};
use crate::routes::{FullResponse, HandlerResult, HttpRequest, new_id, typed_response};
use crate::shadow::Samples;
use crate::telemetry::RequestDetails;

/// Maximum number of requested outputs; an output may be requested several times, with different parameters.
const MAX_OUTPUTS: usize = 16;

const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) async fn infer(
    app: &Arc<App>,
    target: &RequestModel,
    format: Format,
    request: &mut HttpRequest,
) -> HandlerResult {
    let began = Instant::now();
    let name = format.name(&target.model.name);
    let outcome = infer_images(app, target, format, request).await;
    app.stats.add(&name, began.elapsed(), outcome.as_ref().ok().map(|(_, details, _)| details));
    let (payload, details, samples) = outcome?;
    let mut response = payload.response(request.headers().get(ACCEPT_ENCODING))?;
    response.extensions_mut().insert(details);
    response.extensions_mut().insert(samples);
    Ok(response)
}

async fn infer_images(
    app: &Arc<App>,
    target: &RequestModel,
    format: Format,
    request: &mut HttpRequest,
) -> Result<(Payload, RequestDetails, Samples), Problem> {
    target.check_wait()?;
    let (body, claim) = app.uploads.read_bytes(request).await?;
    let bytes = body.len();
    let received = Some(Instant::now());
    let (headers, shared) = (request.headers().clone(), Arc::clone(app));
    // On a blocking thread: parsing megabytes of JSON would delay the runtime's other tasks.
    let parsed = tokio::task::spawn_blocking(move || {
        let (body, mut claim) = decompress(&shared, (body, claim), &headers)?;
        let json_len = header_length(&headers)?;
        let json = json_len.unwrap_or(body.len()).min(body.len());
        // Raw floats are copied, and converted to pixels of one byte.
        let values = PARSED_BYTES_PER_JSON_BYTE * json + (body.len() - json) * 5 / 4;
        claim.merge(shared.memory.claim_buffer(values + MAX_LISTS_MEMORY)?);
        let (request, binary) = Request::parse(&body, json_len, format.input())?;
        Ok::<_, Problem>((request, binary, claim))
    });
    let (mut request, mut binary, _claim) = parsed.await.map_err(|_| Problem::internal())??;
    let [input] = &mut request.inputs;
    if input.name != format.input() {
        let detail = format!("unknown input `{}`, must be `{}`", input.name, format.input());
        return Err(Problem::bad_request(detail));
    }
    let values = input.take_values(&mut binary, app.settings.max_parts)?;
    if !binary.is_empty() {
        return Err(Problem::bad_request("there are bytes after the last input"));
    }
    let Inference { classified, details, samples } = classify(app, target, format, values).await?;
    let payload = encode_response(&target.model, format, &request, &classified)?;
    Ok((payload, RequestDetails { received, bytes, ..details }, samples))
}

/// Outputs for images, with the ids of the predictions.
pub(crate) type ClassifiedImages = [(Uuid, ModelOutput<Classification>)];

/// The outputs for all images of a request.
pub(crate) struct Inference {
    pub(crate) classified: Vec<(Uuid, ModelOutput<Classification>)>,
    pub(crate) details: RequestDetails,
    pub(crate) samples: Samples,
}

/// Classifies the values of a request's input.
/// Errors: 400 for values that are not images for the model, and the reason for which an image is refused.
pub(crate) async fn classify(
    app: &App,
    target: &RequestModel,
    format: Format,
    values: Values,
) -> Result<Inference, Problem> {
    let encoded = match &values {
        Values::Bytes(images) => images.clone(),
        Values::Floats { .. } => Vec::new(),
    };
    let images = images(&target.model, format, values)?;
    let outcomes = app.batcher.classify_all(target, images).await?;
    let classified = outcomes.into_iter().map(|outcome| Ok((new_id(), outcome?)));
    let classified = classified.collect::<Result<Vec<_>, Problem>>()?;
    let mut samples = Samples::default();
    for (index, (id, output)) in classified.iter().enumerate() {
        let prediction = &output.value.prediction;
        record_prediction(app, target, *id, (prediction, &output.metadata));
        if let Some(image) = encoded.get(index) {
            samples.offer(app.shadow.as_ref(), target, (*id, prediction), image);
        }
    }
    let timings = classified.iter().filter_map(|(_, output)| output.timings).collect();
    let details = RequestDetails { timings, images: classified.len(), ..Default::default() };
    Ok(Inference { classified, details, samples })
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || Problem::bad_request("Inference-Header-Content-Length is not a number");
    length.map(Some).ok_or_else(wrong)
}

/// Decompresses the body; the result is limited like an uncompressed body.
fn decompress(
    app: &App,
    (body, claim): (Bytes, Claim),
    headers: &HeaderMap,
) -> Result<(Bytes, Claim), Problem> {
    let coding = headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
    let mut reader: Box<dyn Read + '_> = match coding {
        None | Some(b"identity") => return Ok((body, claim)),
        Some(b"gzip") => Box::new(MultiGzDecoder::new(&body[..])),
        Some(b"deflate") => Box::new(ZlibDecoder::new(&body[..])),
        Some(_) => {
            let detail = "Content-Encoding must be gzip or deflate";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::MediaType, detail));
        }
    };
    let mut plain = Buffer::new(&app.memory, app.settings.max_body)?;
    let mut part = [0; 16 << 10];
    loop {
        let read = reader.read(&mut part);
        match read.map_err(|e| Problem::bad_request(format!("broken compression: {e}")))? {
            0 => return Ok(plain.finish()),
            length => plain.push(&part[..length])?,
        }
    }
}

/// The body of a response; `json_len` is the length of its JSON, where raw tensors follow it.
struct Payload {
    bytes: Vec<u8>,
    json_len: Option<usize>,
}

impl Payload {
    /// The response, compressed where `Accept-Encoding` is exactly `gzip` or `deflate`.
    fn response(self, received: Option<&HeaderValue>) -> HandlerResult {
        let (coding, bytes) = match received.map(HeaderValue::as_bytes) {
            Some(b"gzip") => {
                let mut to = GzEncoder::new(Vec::new(), Compression::fast());
                (Some("gzip"), to.write_all(&self.bytes).and_then(|()| to.finish()))
            }
            Some(b"deflate") => {
                let mut to = ZlibEncoder::new(Vec::new(), Compression::fast());
                (Some("deflate"), to.write_all(&self.bytes).and_then(|()| to.finish()))
            }
            _ => (None, Ok(self.bytes)),
        };
        let content_type =
            if self.json_len.is_some() { "application/octet-stream" } else { "application/json" };
        let mut response = typed_response(content_type, bytes.map_err(|_| Problem::internal())?);
        if let Some(length) = self.json_len {
            response.headers_mut().insert(HEADER_LENGTH, length.into());
        }
        if let Some(coding) = coding {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        Ok(response)
    }
}

fn images(model: &Model, format: Format, values: Values) -> Result<Vec<ImageInput>, Problem> {
    match (format, values) {
        (Format::Encoded, Values::Bytes(images)) => {
            Ok(images.into_iter().map(ImageInput::Encoded).collect())
        }
        (Format::Pixels, Values::Floats { shape, values }) => from_nchw(model, &shape, &values),
        _ => Err(Problem::bad_request(format!(
            "input `{}` must have datatype {}",
            format.input(),
            format.datatype()
        ))),
    }
}

/// Converts floats from 0 to 255 in NCHW, `[n, 3, size, size]`, to images of bytes, whose channels are interleaved (HWC).
fn from_nchw(model: &Model, shape: &[usize], values: &[f32]) -> Result<Vec<ImageInput>, Problem> {
    let size = model.classifier.info().preprocess.size;
    let plane = (size * size) as usize;
    let side = size as usize;
    if !matches!(*shape, [_, 3, height, width] if (height, width) == (side, side)) {
        return Err(Problem::bad_request(format!("the shape must be [n, 3, {size}, {size}]")));
    }
    if !values.iter().all(|value| (-0.5..=255.5).contains(value)) {
        return Err(Problem::bad_request("pixels must be RGB from 0 to 255, not normalised"));
    }
    let images = values.chunks_exact(3 * plane).map(|channels| {
        let bytes = (0..plane)
            .flat_map(|at| [0, 1, 2].map(|channel| channels[channel * plane + at].round() as u8));
        Pixels::new(size, size, bytes.collect())
            .map(ImageInput::Pixels)
            .ok_or_else(Problem::internal)
    });
    images.collect()
}

fn encode_response(
    model: &Model,
    format: Format,
    request: &Request,
    classified: &ClassifiedImages,
) -> Result<Payload, Problem> {
    let requested = requested_outputs(&request.outputs)?;
    let by_default = request.parameters.binary_data_output;
    let (mut tensors, mut binary) = (Vec::new(), Vec::new());
    let mut has_binary = false;
    for requested in &*requested {
        let output = output_tensor(model, requested, classified)?;
        let binary_data = requested.parameters.binary_data.or(by_default);
        let (tensor, raw) = output.write(binary_data.unwrap_or_default());
        tensors.push(tensor);
        has_binary |= raw.is_some();
        binary.extend(raw.unwrap_or_default());
    }
    let mut body = json!({
        "model_name": format.name(&model.name),
        "model_version": model.version,
        "outputs": tensors,
    });
    if let Some(id) = &request.id {
        body["id"] = id.as_str().into();
    }
    let json = body.to_string();
    let bytes = [json.as_bytes(), &binary].concat();
    Ok(Payload { bytes, json_len: has_binary.then_some(json.len()) })
}

/// The outputs that a request names, or the default ones.
/// Errors: 413 for too many.
pub(crate) fn requested_outputs(
    requested: &[RequestedOutput],
) -> Result<Cow<'_, [RequestedOutput]>, Problem> {
    if requested.len() > MAX_OUTPUTS {
        return Err(Problem::too_large(format!("more than {MAX_OUTPUTS} outputs")));
    }
    if !requested.is_empty() {
        return Ok(Cow::Borrowed(requested));
    }
    // Without `embedding`, which is hundreds of times longer than the others.
    let all = ["probabilities", "label", "prediction_id", "decision"];
    let all = all
        .map(|name| RequestedOutput { name: name.into(), parameters: OutputParameters::default() });
    Ok(Cow::Owned(all.into()))
}

/// An output for all images.
/// Errors: 400 for an unknown output.
pub(crate) fn output_tensor(
    model: &Model,
    requested: &RequestedOutput,
    classified: &ClassifiedImages,
) -> Result<Output, Problem> {
    let images = classified.len();
    let labels = model.classifier.labels();
    let predictions = classified.iter().map(|(_, output)| &output.value.prediction);
    let texts =
        |name, texts| Output { name, shape: vec![images], values: OutputValues::Texts(texts) };
    match (requested.name.as_str(), requested.parameters.classification) {
        ("probabilities", None) => {
            let values = predictions.flat_map(|p| p.probabilities().iter().copied()).collect();
            let shape = vec![images, labels.len()];
            Ok(Output { name: "probabilities", shape, values: OutputValues::Floats(values) })
        }
        ("probabilities", Some(count)) => {
            let count = (count as usize).clamp(1, labels.len());
            let ranked = predictions.flat_map(|p| ranking(p, labels, count)).collect();
            let shape = vec![images, count];
            Ok(Output { name: "probabilities", shape, values: OutputValues::Texts(ranked) })
        }
        ("label", None) => Ok(texts("label", predictions.map(|p| p.label_text()).collect())),
        ("embedding", None) => {
            let embeddings = classified.iter().flat_map(|(_, output)| &output.value.embedding);
            let shape = vec![images, model.classifier.embedding_len()];
            let values = OutputValues::Floats(embeddings.copied().collect());
            Ok(Output { name: "embedding", shape, values })
        }
        ("prediction_id", None) => {
            Ok(texts("prediction_id", classified.iter().map(|(id, _)| id.to_string()).collect()))
        }
        ("decision", None) => {
            Ok(texts("decision", predictions.map(|p| p.decision().to_string()).collect()))
        }
        (other, None) => Err(Problem::bad_request(format!("unknown output `{other}`"))),
        (other, Some(_)) => {
            Err(Problem::bad_request(format!("output `{other}` has no parameter `classification`")))
        }
    }
}

/// The most likely classes as `value:index:label`, the format of Triton's classification extension.
fn ranking(prediction: &Prediction, labels: &[String], count: usize) -> Vec<String> {
    let mut ranked: Vec<(usize, f32)> =
        prediction.probabilities().iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named = ranked.into_iter().take(count);
    named.map(|(index, value)| format!("{value:.6}:{index}:{}", labels[index])).collect()
}

/// An error in the protocol's format.
pub(crate) fn error(problem: &Problem) -> FullResponse {
    let mut response = problem.response();
    *response.body_mut() = json!({ "error": problem.detail }).to_string().into();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
