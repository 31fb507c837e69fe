//! Reads images from request bodies, within limits: multipart forms, raw images, and base64 or a URL in JSON.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use hyper::{Request, StatusCode, Version};
use metrics::{counter, histogram};
use petnet::preprocess::{FileKind, recognise};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::buffer::{Buffer, TransferLimits, body_too_large};
use crate::memory::{Claim, Memory};
use crate::problem::{Kind, Problem};
use crate::remote::Fetcher;
use crate::settings::Settings;
use crate::telemetry::names;

/// Maximum size of a body without images, in bytes.
const MAX_JSON_BYTES: usize = 1 << 20;
const BODY_TIMEOUT: &str = "the body did not arrive in time";
const BODY_INCOMPLETE: &str = "the body ended too early";

/// An encoded image, and the file name that a multipart form gives it.
pub(crate) struct UploadedImage {
    pub(crate) name: Option<String>,
    pub(crate) bytes: Bytes,
}

/// The images of a request, and the claim on their memory.
pub(crate) struct Upload {
    pub(crate) images: Vec<UploadedImage>,
    /// Name of the model that the body requests.
    pub(crate) model: Option<String>,
    /// Length of the body in bytes.
    pub(crate) body_len: usize,
    _memory: Claim,
}

impl Upload {
    /// The bytes of the only image.
    /// Errors: 400 for several images.
    pub(crate) fn only_image(&self) -> Result<Bytes, Problem> {
        match &self.images[..] {
            [image] => Ok(image.bytes.clone()),
            images => Err(Problem::bad_request(format!(
                "the body has {} images: send one, or several to /predict/batch",
                images.len()
            ))),
        }
    }
}

/// Reads request bodies within the memory budget.
pub(crate) struct Uploads {
    settings: Settings,
    memory: Arc<Memory>,
    /// `None` where images are not fetched by URL.
    remote: Option<Fetcher>,
}

impl Uploads {
    pub(crate) fn new(settings: Settings, memory: Arc<Memory>, remote: Option<Fetcher>) -> Self {
        Self { settings, memory, remote }
    }

    /// Reads the images of a request.
    /// Errors: 400, 408, 411, 413, 415, or 503 when no memory is free; for `url` those of [`Fetcher::fetch`] as well.
    pub(crate) async fn read(&self, request: &mut Request<Incoming>) -> Result<Upload, Problem> {
        check_length(request, self.settings.max_body)?;
        if let Some(coding) = request.headers().get(CONTENT_ENCODING) {
            let coding = String::from_utf8_lossy(coding.as_bytes());
            let detail =
                format!("Content-Encoding `{coding}` is not supported: send the image without");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::MediaType, detail));
        }
        let format = BodyFormat::of(&content_type(request.headers()))?;
        let (body, mut claim) = self.collect(request, self.settings.max_body).await?;
        let body_len = body.len();
        let began = Instant::now();
        let parsed = match format {
            BodyFormat::Image => Ok(Parsed::of(body)),
            // The content type may be wrong or missing: the format is recognised from the bytes.
            BodyFormat::Other(content_type) => match recognise(&body) {
                FileKind::Image | FileKind::Unsupported(_) => Ok(Parsed::of(body)),
                FileKind::NoImage => Err(unsupported(&content_type)),
            },
            BodyFormat::Json => {
                // For a text with escapes: serde's buffer, whose capacity doubles, and its copy; then the copy, the text
                // without white space, and its decoded bytes.
                claim.merge(self.memory.claim_buffer(3 * body_len)?);
                match from_json(&body) {
                    Err(problem) => Err(problem),
                    Ok((JsonImage::Bytes(bytes), model)) => {
                        Ok(Parsed { model, ..Parsed::of(bytes) })
                    }
                    Ok((JsonImage::Url(url), model)) => {
                        drop(body);
                        // The body's memory must not be held while a slow host responds.
                        claim.shrink(0);
                        let (bytes, fetched) = self.fetch(&url).await?;
                        claim.merge(fetched);
                        Ok(Parsed { model, ..Parsed::of(bytes) })
                    }
                }
            }
            BodyFormat::Multipart(boundary) => {
                // For the parser's own buffer, and for the parts.
                claim.merge(self.memory.claim_buffer(2 * body_len)?);
                multipart(body, boundary, self.settings.max_parts).await
            }
        };
        histogram!(names::VALIDATION_DURATION_SECONDS).record(began.elapsed());
        let Parsed { images, model } = parsed?;
        let bytes = images.iter().map(|image| image.bytes.len()).sum::<usize>();
        claim.shrink(bytes);
        counter!(names::INPUT_IMAGE_SIZE_TOTAL).increment(bytes as u64);
        Ok(Upload { images, model, body_len, _memory: claim })
    }

    /// Fetches an image by URL.
    /// Errors: 400 without an allow list of hosts; else those of [`Fetcher::fetch`].
    async fn fetch(&self, url: &str) -> Result<(Bytes, Claim), Problem> {
        let Some(remote) = &self.remote else {
            let detail = "images are not fetched by `url` here: see --image-hosts";
            return Err(Problem::new(StatusCode::BAD_REQUEST, Kind::UrlNotAllowed, detail));
        };
        remote.fetch(url, Buffer::new(&self.memory, self.settings.max_body)?).await
    }

    /// Reads the bytes of a body, with the claim on their memory.
    /// Errors: 400, 408, 411, 413, or 503 when no memory is free.
    pub(crate) async fn read_bytes(
        &self,
        request: &mut Request<Incoming>,
    ) -> Result<(Bytes, Claim), Problem> {
        check_length(request, self.settings.max_body)?;
        self.collect(request, self.settings.max_body).await
    }

    /// Reads a JSON body of at most [`MAX_JSON_BYTES`] bytes.
    /// Errors: 400, 408, 411, 413, 415, or 503 when no memory is free.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        request: &mut Request<Incoming>,
    ) -> Result<T, Problem> {
        check_length(request, MAX_JSON_BYTES)?;
        if !matches!(BodyFormat::of(&content_type(request.headers()))?, BodyFormat::Json) {
            let detail = "send application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::MediaType, detail));
        }
        let (body, mut claim) = self.collect(request, MAX_JSON_BYTES).await?;
        // serde parses untagged enums to generic values: each `1,` becomes one of 32 bytes, in a vector whose old and doubled
        // allocation exist at the same time.
        claim.merge(self.memory.claim_buffer(3 * 32 * body.len() / 2)?);
        serde_json::from_slice(&body)
            .map_err(|error| Problem::bad_request(format!("the JSON is invalid: {error}")))
    }

    /// Receives the body, at most `max_bytes` of it, within [`TransferLimits`].
    async fn collect(
        &self,
        request: &mut Request<Incoming>,
        max_bytes: usize,
    ) -> Result<(Bytes, Claim), Problem> {
        let body = request.body_mut();
        let mut buffer = Buffer::new(&self.memory, max_bytes)?;
        let limits = TransferLimits::of(&self.settings);
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, Kind::Timeout, BODY_TIMEOUT);
            let limit = limits.remaining(received, began.elapsed());
            let frame = tokio::time::timeout(limit, body.frame()).await.map_err(late)?;
            let Some(frame) = frame else { return Ok(buffer.finish()) };
            let frame = frame.map_err(|_| Problem::bad_request(BODY_INCOMPLETE))?;
            if let Ok(data) = frame.into_data() {
                received += data.len() as u64;
                buffer.push(&data)?;
            }
        }
    }
}

/// The contents of a body.
struct Parsed {
    images: Vec<UploadedImage>,
    model: Option<String>,
}

impl Parsed {
    fn of(bytes: Bytes) -> Self {
        Self { images: vec![UploadedImage { name: None, bytes }], model: None }
    }
}

/// The format that a body's content type names.
enum BodyFormat {
    Multipart(String),
    Image,
    Json,
    /// Any other content type, in lower case; empty where there is none.
    Other(String),
}

impl BodyFormat {
    fn of(content_type: &str) -> Result<Self, Problem> {
        let essence =
            content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "multipart/form-data" => multer::parse_boundary(content_type)
                .map(Self::Multipart)
                .map_err(|_| Problem::bad_request("the multipart boundary is missing")),
            "application/json" => Ok(Self::Json),
            "application/octet-stream" => Ok(Self::Image),
            image if image.starts_with("image/") => Ok(Self::Image),
            _ => Ok(Self::Other(essence)),
        }
    }
}

fn unsupported(content_type: &str) -> Problem {
    let reason = match content_type {
        "" => "there is no Content-Type, and the body is no image".to_string(),
        _ => format!("the Content-Type `{content_type}` is not supported"),
    };
    let detail = format!(
        "{reason}: send multipart/form-data with a field `file`, an image, or JSON with a base64 `image` or a `url`"
    );
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::MediaType, detail)
}

fn check_length(request: &Request<Incoming>, max_bytes: usize) -> Result<(), Problem> {
    let headers = request.headers();
    let has_length =
        headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    if request.version() < Version::HTTP_2 && !has_length {
        let detail = "send Content-Length or Transfer-Encoding: chunked";
        return Err(Problem::new(StatusCode::LENGTH_REQUIRED, Kind::Length, detail));
    }
    if request.body().size_hint().lower() > max_bytes as u64 {
        return Err(body_too_large(max_bytes));
    }
    Ok(())
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
}

/// The image of a JSON body.
enum JsonImage {
    Bytes(Bytes),
    Url(String),
}

/// The image of a JSON body, and the model that it names.
fn from_json(body: &[u8]) -> Result<(JsonImage, Option<String>), Problem> {
    /// Text that is borrowed unless it has escapes; serde borrows for `Cow`, but not for `Option<Cow>`.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        image: Option<Text<'a>>,
        #[serde(borrow)]
        url: Option<Text<'a>>,
        model: Option<String>,
    }
    let Fields { image, url, model } = serde_json::from_slice(body).map_err(|e| {
        let forms = "neither {\"image\": base64} nor {\"url\": address}";
        Problem::bad_request(format!("the JSON is {forms}: {e}"))
    })?;
    let image = match (image, url) {
        (Some(Text(image)), None) => from_base64(&image).map(JsonImage::Bytes)?,
        (None, Some(Text(url))) => JsonImage::Url(url.into_owned()),
        (None, None) | (Some(_), Some(_)) => {
            let detail = "the JSON must have either `image` (base64) or `url`";
            return Err(Problem::bad_request(detail));
        }
    };
    Ok((image, model))
}

/// Decodes base64 in the standard or the URL-safe alphabet (RFC 4648), with or without white space and padding; the text
/// may be a `data:` URL, which browsers produce.
pub(crate) fn from_base64(image: &str) -> Result<Bytes, Problem> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&STANDARD, CONFIG);
    let text = match image.split_once("base64,") {
        Some((head, text)) if head.starts_with("data:") => text,
        _ => image,
    };
    // Not collected, which would double the capacity while it grows.
    let mut plain = Vec::with_capacity(text.len());
    plain.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    }));
    let bytes = ENGINE.decode(&plain);
    bytes.map(Bytes::from).map_err(|e| Problem::bad_request(format!("`image` is not base64: {e}")))
}

/// Parses a body as JSON and as a multipart form, for fuzzing.
#[cfg(fuzzing)]
pub(crate) fn parse(body: &Bytes) {
    let _ = from_json(body);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    if let Ok(runtime) = runtime {
        let _ = runtime.block_on(multipart(body.clone(), "X".into(), 8));
    }
}

/// Reads the parts named `file`, and the one named `model`.
async fn multipart(body: Bytes, boundary: String, max_parts: usize) -> Result<Parsed, Problem> {
    /// Maximum length of a model's name in bytes.
    const MAX_NAME: usize = 256;
    let broken = |e: multer::Error| Problem::bad_request(format!("broken multipart body: {e}"));
    let whole = futures_util::stream::once(async move { Ok::<_, std::io::Error>(body) });
    let mut parts = multer::Multipart::new(whole, boundary);
    let (mut images, mut model) = (Vec::new(), None);
    let mut part_count = 0;
    while let Some(field) = parts.next_field().await.map_err(broken)? {
        part_count += 1;
        if part_count > max_parts {
            return Err(Problem::too_large(format!("more than {max_parts} parts")));
        }
        match field.name() {
            Some("file") => {
                let name = field.file_name().map(ToString::to_string);
                let bytes = field.bytes().await.map_err(broken)?;
                images.push(UploadedImage { name, bytes });
            }
            Some("model") => {
                let name = field.bytes().await.map_err(broken)?;
                let name = std::str::from_utf8(&name).ok().filter(|name| name.len() <= MAX_NAME);
                let name = name.ok_or_else(|| Problem::bad_request("`model` is not a name"))?;
                // An HTML form sends fields that were not filled in.
                model = Some(name.to_string()).filter(|name| !name.is_empty());
            }
            Some(_) | None => (),
        }
    }
    if images.is_empty() {
        return Err(Problem::bad_request("the multipart field `file` is missing"));
    }
    Ok(Parsed { images, model })
}
