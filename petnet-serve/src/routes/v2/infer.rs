//! The inference requests of the protocol: input tensors to images, outputs to tensors.

use std::borrow::Cow;
use std::io::{Read, Write as _};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use hyper::{Request as HttpRequest, StatusCode};
use petnet::Prediction;
use petnet::preprocess::Pixels;
use serde_json::json;
use uuid::Uuid;

use super::tensor::{Computed, Input, Output, OutputParameters, Request, RequestedOutput, Values};
use super::{Form, Reply};
use crate::answer::remember;
use crate::app::App;
use crate::batcher::ImageInput;
use crate::buffer::Buffer;
use crate::memory::Claim;
use crate::models::{Model, Target};
use crate::outputs::{Answer, Classified};
use crate::problem::Problem;
use crate::routes::{new_id, text};
use crate::shadow::Samples;
use crate::telemetry::Note;

/// Maximum bytes of parsed values per byte of JSON: the two bytes `1,` are a float of four, in a vector whose capacity may be
/// twice its length.
const VALUES: usize = 5;
/// Maximum number of requested outputs; an output may be requested several times, with different parameters.
const MAX_OUTPUTS: usize = 16;

const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) async fn infer(
    app: &Arc<App>,
    target: &Target,
    form: Form,
    request: &mut HttpRequest<Incoming>,
) -> Result<Reply, Problem> {
    let began = Instant::now();
    let name = form.name(&target.model.name);
    let outcome = answer(app, target, form, request).await;
    app.stats.add(&name, began.elapsed(), outcome.as_ref().ok().map(|(_, note, _)| note));
    let (payload, note, samples) = outcome?;
    let mut reply = payload.reply(request.headers().get(ACCEPT_ENCODING))?;
    reply.extensions_mut().insert(note);
    reply.extensions_mut().insert(samples);
    Ok(reply)
}

async fn answer(
    app: &Arc<App>,
    target: &Target,
    form: Form,
    request: &mut HttpRequest<Incoming>,
) -> Result<(Payload, Note, Samples), Problem> {
    target.check_wait()?;
    let (body, claim) = app.uploads.read_bytes(request, &app.settings).await?;
    let bytes = body.len();
    let accepted = Some(Instant::now());
    let (headers, parsing) = (request.headers().clone(), Arc::clone(app));
    // On a blocking thread: parsing megabytes of JSON would delay the runtime's other tasks.
    let parsed = tokio::task::spawn_blocking(move || {
        let (body, mut claim) = expand(&parsing, (body, claim), &headers)?;
        let head = header_length(&headers)?;
        let json = head.unwrap_or(body.len()).min(body.len());
        // Raw floats are copied, and converted to pixels of one byte.
        claim.merge(parsing.memory.buffer(VALUES * json + (body.len() - json) * 5 / 4)?);
        let (request, binary) = Request::parse(&body, head, form.input())?;
        Ok::<_, Problem>((request, binary, claim))
    });
    let (mut request, mut binary, _claim) = parsed.await.map_err(|_| Problem::internal())??;
    let inputs = <[Input; 1]>::try_from(std::mem::take(&mut request.inputs));
    let [input] = inputs.map_err(|_| {
        Problem::bad_request(format!("there must be one input, `{}`", form.input()))
    })?;
    if input.name != form.input() {
        let detail = format!("unknown input `{}`, must be `{}`", input.name, form.input());
        return Err(Problem::bad_request(detail));
    }
    let values = input.values(&mut binary, app.settings.max_parts)?;
    if !binary.is_empty() {
        return Err(Problem::bad_request("there are bytes after the last input"));
    }
    let Inferred { answers, note, samples } = classify(app, target, form, values).await?;
    let payload = respond(&target.model, form, &request, &answers)?;
    Ok((payload, Note { accepted, bytes, ..note }, samples))
}

/// Answers with the ids of their predictions.
pub(in crate::routes) type Answers = [(Uuid, Answer<Classified>)];

/// The outputs for all images of a request.
pub(in crate::routes) struct Inferred {
    pub(in crate::routes) answers: Vec<(Uuid, Answer<Classified>)>,
    pub(in crate::routes) note: Note,
    pub(in crate::routes) samples: Samples,
}

/// Classifies the values of a request's input.
///
/// # Errors
/// 400 for values that are not images for the model, and the reason for which an image is refused.
pub(in crate::routes) async fn classify(
    app: &App,
    target: &Target,
    form: Form,
    values: Values,
) -> Result<Inferred, Problem> {
    let encoded = match &values {
        Values::Bytes(images) => images.clone(),
        Values::Floats { .. } => Vec::new(),
    };
    let images = images(&target.model, form, values)?;
    let outcomes = app.batcher.classify_all(target, images).await?;
    let answers = outcomes.into_iter().map(|outcome| Ok((new_id(), outcome?)));
    let answers = answers.collect::<Result<Vec<_>, Problem>>()?;
    let mut samples = Samples::default();
    for (place, (id, answer)) in answers.iter().enumerate() {
        let prediction = &answer.value.prediction;
        remember(app, target, *id, (prediction, &answer.facts));
        if let Some(image) = encoded.get(place) {
            samples.offer(app.shadow.as_ref(), target, (*id, prediction), image);
        }
    }
    let timings = answers.iter().filter_map(|(_, answer)| answer.timings).collect();
    let note = Note { timings, images: answers.len(), ..Note::default() };
    Ok(Inferred { answers, note, samples })
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || Problem::bad_request("Inference-Header-Content-Length is not a number");
    length.map(Some).ok_or_else(wrong)
}

/// Decompresses the body; the result is limited like an uncompressed body.
fn expand(
    app: &App,
    (body, claim): (Bytes, Claim),
    headers: &HeaderMap,
) -> Result<(Bytes, Claim), Problem> {
    let mut reader: Box<dyn Read + '_> =
        match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => return Ok((body, claim)),
            Some(b"gzip") => Box::new(MultiGzDecoder::new(&body[..])),
            Some(b"deflate") => Box::new(ZlibDecoder::new(&body[..])),
            Some(_) => {
                let detail = "Content-Encoding must be gzip or deflate";
                return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail));
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

/// The body of a response; `head` is the length of its JSON, where raw tensors follow it.
struct Payload {
    bytes: Vec<u8>,
    head: Option<usize>,
}

impl Payload {
    /// The response, compressed where `Accept-Encoding` is exactly `gzip` or `deflate`.
    fn reply(self, accepted: Option<&HeaderValue>) -> Result<Reply, Problem> {
        let accepted = accepted.map(HeaderValue::as_bytes);
        let (coding, bytes) = match accepted {
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
        let kind =
            if self.head.is_some() { "application/octet-stream" } else { "application/json" };
        let mut reply = text(kind, bytes.map_err(|_| Problem::internal())?);
        if let Some(length) = self.head {
            reply.headers_mut().insert(HEADER_LENGTH, length.into());
        }
        if let Some(coding) = coding {
            reply.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        Ok(reply)
    }
}

type Images = Vec<Result<ImageInput, Problem>>;

fn images(model: &Model, form: Form, values: Values) -> Result<Images, Problem> {
    match (form, values) {
        (Form::Encoded, Values::Bytes(images)) => {
            Ok(images.into_iter().map(|image| Ok(ImageInput::Encoded(image))).collect())
        }
        (Form::Pixels, Values::Floats { shape, values }) => from_nchw(model, &shape, &values),
        _ => Err(Problem::bad_request(format!(
            "input `{}` must have datatype {}",
            form.input(),
            form.datatype()
        ))),
    }
}

/// Converts floats from 0 to 255 in NCHW, `[n, 3, size, size]`, to images of bytes, whose channels are interleaved (HWC).
fn from_nchw(model: &Model, shape: &[usize], values: &[f32]) -> Result<Images, Problem> {
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
            .map(ImageInput::Ready)
            .ok_or_else(Problem::internal)
    });
    Ok(images.collect())
}

fn respond(
    model: &Model,
    form: Form,
    request: &Request,
    answers: &Answers,
) -> Result<Payload, Problem> {
    let requested = requested_outputs(&request.outputs)?;
    let by_default = request.parameters.binary_data_output;
    let (mut tensors, mut binary) = (Vec::new(), Vec::new());
    let mut any = false;
    for requested in &*requested {
        let output = compute(model, requested, answers)?;
        let binary_data = requested.parameters.binary_data.or(by_default);
        let (tensor, raw) = output.write(binary_data.unwrap_or_default());
        tensors.push(tensor);
        any |= raw.is_some();
        binary.extend(raw.unwrap_or_default());
    }
    let mut body = json!({
        "model_name": form.name(&model.name),
        "model_version": model.version,
        "outputs": tensors,
    });
    if let Some(id) = &request.id {
        body["id"] = id.as_str().into();
    }
    let head = body.to_string();
    let bytes = [head.as_bytes(), &binary].concat();
    Ok(Payload { bytes, head: any.then_some(head.len()) })
}

/// The outputs that a request names, or the default ones.
///
/// # Errors
/// 413 for too many.
pub(in crate::routes) fn requested_outputs(
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
///
/// # Errors
/// 400 for an unknown output.
pub(in crate::routes) fn compute(
    model: &Model,
    requested: &RequestedOutput,
    answers: &Answers,
) -> Result<Output, Problem> {
    let images = answers.len();
    let labels = model.classifier.labels();
    let predictions = answers.iter().map(|(_, answer)| &answer.value.prediction);
    let texts = |name, texts| Output { name, shape: vec![images], values: Computed::Texts(texts) };
    match (requested.name.as_str(), requested.parameters.classification) {
        ("probabilities", None) => {
            let values = predictions.flat_map(|p| p.probabilities().iter().copied()).collect();
            let shape = vec![images, labels.len()];
            Ok(Output { name: "probabilities", shape, values: Computed::Floats(values) })
        }
        ("probabilities", Some(most)) => {
            let most = (most as usize).clamp(1, labels.len());
            let ranked = predictions.flat_map(|p| ranking(p, labels, most)).collect();
            let shape = vec![images, most];
            Ok(Output { name: "probabilities", shape, values: Computed::Texts(ranked) })
        }
        ("label", None) => Ok(texts("label", predictions.map(|p| p.label_text()).collect())),
        ("embedding", None) => {
            let embeddings = answers.iter().flat_map(|(_, answer)| &answer.value.embedding);
            let shape = vec![images, model.classifier.embedding_len()];
            let values = Computed::Floats(embeddings.copied().collect());
            Ok(Output { name: "embedding", shape, values })
        }
        ("prediction_id", None) => {
            Ok(texts("prediction_id", answers.iter().map(|(id, _)| id.to_string()).collect()))
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
fn ranking(prediction: &Prediction, labels: &[String], most: usize) -> Vec<String> {
    let mut ranked: Vec<(usize, f32)> =
        prediction.probabilities().iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named = ranked.into_iter().take(most);
    named.map(|(index, value)| format!("{value:.6}:{index}:{}", labels[index])).collect()
}

/// An error in the protocol's format.
pub(in crate::routes) fn error(problem: &Problem) -> Reply {
    let mut reply = problem.response();
    *reply.body_mut() = json!({ "error": problem.detail }).to_string().into();
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
