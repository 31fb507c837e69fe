//! Request bodies to photos: multipart, a raw picture, or base64 in JSON; all within limits.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use hyper::{Request, StatusCode, Version};
use metrics::{counter, histogram};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;
use crate::settings::Settings;

/// Most bytes of a body that is no photo.
const SMALL: usize = 1 << 20;
const LATE: &str = "the body did not arrive in time";
const CUT: &str = "the body ended too early";

/// A photo as it came, or what was wrong with its part of the body.
pub(crate) struct Photo {
    pub(crate) name: Option<String>,
    pub(crate) bytes: Result<Bytes, Problem>,
}

/// Photos, and the claim on memory that they hold.
pub(crate) struct Upload {
    pub(crate) photos: Vec<Photo>,
    pub(crate) size: usize,
    _memory: OwnedSemaphorePermit,
}

/// Reads uploads; bounds how many bytes of them are in memory at a time.
pub(crate) struct Uploads {
    memory: Arc<Semaphore>,
}

impl Uploads {
    pub(crate) fn new(settings: &Settings) -> Self {
        let most = settings.max_buffered.clamp(settings.max_body, Semaphore::MAX_PERMITS);
        Self { memory: Arc::new(Semaphore::new(most)) }
    }

    /// Reads a whole request.
    ///
    /// # Errors
    /// 400, 408, 411, 413, 415, or 503 when too many bytes are in memory already.
    pub(crate) async fn read(
        &self,
        request: &mut Request<Incoming>,
        settings: &Settings,
    ) -> Result<Upload, Problem> {
        check_length(request, settings.max_body)?;
        let kind = content_type(request.headers());
        let form = Form::of(&kind)?;
        let reading = self.collect(request.body_mut(), settings.max_body);
        let (body, memory) = tokio::time::timeout(settings.body_timeout, reading)
            .await
            .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", LATE))??;
        let size = body.len();
        let began = Instant::now();
        let photos = match form {
            Form::Raw => Ok(vec![Photo { name: None, bytes: Ok(body) }]),
            Form::Json => {
                from_json(&body).map(|bytes| vec![Photo { name: None, bytes: Ok(bytes) }])
            }
            Form::Multipart(boundary) => multipart(body, boundary, settings.max_parts).await,
        };
        histogram!("validation_duration_seconds").record(began.elapsed());
        let photos = photos?;
        let taken = photos.iter().flat_map(|photo| &photo.bytes).map(Bytes::len).sum::<usize>();
        counter!("input_image_size_total").increment(taken as u64);
        Ok(Upload { photos, size, _memory: memory })
    }

    /// Reads a whole body as it is; the permit is its claim on memory.
    ///
    /// # Errors
    /// 400, 408, 411, 413, or 503 when too many bytes are in memory already.
    pub(crate) async fn read_bytes(
        &self,
        request: &mut Request<Incoming>,
        settings: &Settings,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
        check_length(request, settings.max_body)?;
        let reading = self.collect(request.body_mut(), settings.max_body);
        let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", LATE);
        tokio::time::timeout(settings.body_timeout, reading).await.map_err(late)?
    }

    async fn collect(
        &self,
        body: &mut Incoming,
        most: usize,
    ) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
        let claim = |bytes: usize| {
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
            Arc::clone(&self.memory)
                .try_acquire_many_owned(permits)
                .map_err(|_| Problem::overloaded(1))
        };
        let mut memory = claim(0)?;
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::bad_request(CUT))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(over(most));
            }
            memory.merge(claim(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), memory))
    }
}

/// Reads a small JSON body.
///
/// # Errors
/// 400, 408, 411, 413, 415.
pub(crate) async fn read_json<T: DeserializeOwned>(
    request: &mut Request<Incoming>,
    settings: &Settings,
) -> Result<T, Problem> {
    check_length(request, SMALL)?;
    if !matches!(Form::of(&content_type(request.headers()))?, Form::Json) {
        let detail = "send application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail));
    }
    let whole = Limited::new(request.body_mut(), SMALL).collect();
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", LATE);
    let body = tokio::time::timeout(settings.body_timeout, whole).await.map_err(late)?;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() { over(SMALL) } else { Problem::bad_request(CUT) }
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Problem::bad_request(format!("the JSON is not as it should be: {error}")))
}

/// What the body claims to be.
enum Form {
    Multipart(String),
    Raw,
    Json,
}

impl Form {
    fn of(kind: &str) -> Result<Self, Problem> {
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "multipart/form-data" => multer::parse_boundary(kind)
                .map(Self::Multipart)
                .map_err(|_| Problem::bad_request("the multipart boundary is missing")),
            "application/json" => Ok(Self::Json),
            "application/octet-stream" => Ok(Self::Raw),
            image if image.starts_with("image/") => Ok(Self::Raw),
            other => {
                let detail = format!(
                    "`{other}` is not taken: send multipart/form-data with a field `file`, an \
                     image/* body, or JSON with a base64 `image`"
                );
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", detail))
            }
        }
    }
}

fn check_length(request: &Request<Incoming>, most: usize) -> Result<(), Problem> {
    let headers = request.headers();
    let known = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    if request.version() < Version::HTTP_2 && !known {
        let detail = "send Content-Length or Transfer-Encoding: chunked";
        return Err(Problem::new(StatusCode::LENGTH_REQUIRED, "length", detail));
    }
    if request.body().size_hint().lower() > most as u64 {
        return Err(over(most));
    }
    Ok(())
}

fn over(most: usize) -> Problem {
    Problem::too_large(format!("the body is larger than {most} bytes"))
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
}

fn from_json(body: &[u8]) -> Result<Bytes, Problem> {
    #[derive(Deserialize)]
    struct Base64 {
        image: String,
    }
    let Base64 { image } = serde_json::from_slice(body)
        .map_err(|e| Problem::bad_request(format!("the JSON is not {{\"image\": base64}}: {e}")))?;
    from_base64(&image)
}

/// Bytes of a text that may have `data:image/jpeg;base64,` in front, as browsers put it.
pub(crate) fn from_base64(image: &str) -> Result<Bytes, Problem> {
    let text = match image.split_once("base64,") {
        Some((head, text)) if head.starts_with("data:") => text,
        _ => image,
    };
    base64::engine::general_purpose::STANDARD
        .decode(text.trim())
        .map(Bytes::from)
        .map_err(|e| Problem::bad_request(format!("`image` is not base64: {e}")))
}

/// The parts named `file`.
async fn multipart(body: Bytes, boundary: String, most: usize) -> Result<Vec<Photo>, Problem> {
    let broken = |e: multer::Error| Problem::bad_request(format!("broken multipart body: {e}"));
    let whole = futures_util::stream::once(async move { Ok::<_, std::io::Error>(body) });
    let mut parts = multer::Multipart::new(whole, boundary);
    let mut photos = Vec::new();
    let mut seen = 0;
    while let Some(field) = parts.next_field().await.map_err(broken)? {
        seen += 1;
        if seen > most {
            return Err(Problem::too_large(format!("more than {most} parts")));
        }
        if field.name() != Some("file") {
            continue;
        }
        let kind = field.content_type().map(|kind| kind.essence_str().to_ascii_lowercase());
        let name = field.file_name().map(ToString::to_string);
        let bytes = field.bytes().await.map_err(broken)?;
        let bytes = match kind {
            Some(kind) if !kind.starts_with("image/") && kind != "application/octet-stream" => {
                let detail = format!("the part `file` is {kind}, not an image");
                Err(Problem::new(StatusCode::BAD_REQUEST, "not_an_image", detail))
            }
            _ => Ok(bytes),
        };
        photos.push(Photo { name, bytes });
    }
    if photos.is_empty() {
        return Err(Problem::bad_request("the multipart field `file` is missing"));
    }
    Ok(photos)
}
