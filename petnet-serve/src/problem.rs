//! Error responses: `application/problem+json` (RFC 9457).

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use petnet::{Error, ImageError};
use serde_json::json;

use crate::authorization::Authorization;

/// Declares [`Kind`], with the value of the label `error_type` of each kind.
macro_rules! kinds {
    ($($kind:ident = $name:literal,)+) => {
        /// The kind of a problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind {
            $($kind,)+
        }

        /// The values of the label `error_type`, in the order of [`Kind`].
        pub(crate) const KINDS: &[&str] = &[$($name,)+];
    };
}

kinds! {
    BadRequest = "bad_request",
    BrokenImage = "broken_image",
    DecodeTimeout = "decode_timeout",
    Draining = "draining",
    FeedbackOff = "feedback_off",
    Forbidden = "forbidden",
    Internal = "internal",
    Length = "length",
    MediaType = "media_type",
    Memory = "memory",
    Method = "method",
    ModelRefused = "model_refused",
    NotAnImage = "not_an_image",
    NotFound = "not_found",
    NotReady = "not_ready",
    Overloaded = "overloaded",
    RateLimited = "rate_limited",
    Timeout = "timeout",
    TooLarge = "too_large",
    Unauthorized = "unauthorized",
    UnknownLabel = "unknown_label",
    UnknownModel = "unknown_model",
    UnknownPrediction = "unknown_prediction",
    UrlFailed = "url_failed",
    UrlNotAllowed = "url_not_allowed",
    UrlTimeout = "url_timeout",
    Host = "host",
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        KINDS[self as usize]
    }
}

/// The reason for which a request was refused or failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    /// For metrics.
    pub(crate) kind: Kind,
    /// Seconds after which the client may try again, for the header field `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    allow: Option<&'static str>,
    /// State of the rate limits that the request was charged to.
    rate_limit: Option<Box<Authorization>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { status, detail, kind, retry_after: None, allow: None, rate_limit: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::BadRequest, detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Kind::TooLarge, detail)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Internal,
            "the server failed; see its log",
        )
    }

    /// A refusal for the state of the service; the client may try again after `seconds`.
    fn unavailable(kind: Kind, detail: impl Into<String>, seconds: u64) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    pub(crate) fn not_ready() -> Self {
        Self::unavailable(Kind::NotReady, "no model is loaded", 1)
    }

    pub(crate) fn overloaded(seconds: u64) -> Self {
        let detail = format!("too many images are waiting; try again in {seconds} s");
        Self::unavailable(Kind::Overloaded, detail, seconds)
    }

    pub(crate) fn out_of_memory() -> Self {
        Self::unavailable(Kind::Memory, "no memory is free for this request; try again in 1 s", 1)
    }

    /// The rate limit of a key is exceeded.
    pub(crate) fn rate_limited(authorization: Authorization, wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil() as u64;
        let detail = format!("the key has used up its requests; try again in {seconds} s");
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, Kind::RateLimited, detail);
        Self { rate_limit: Some(Box::new(authorization)), retry_after: Some(seconds), ..problem }
    }

    /// Adds the state of the rate limits that the refused request was charged to.
    pub(crate) fn with_authorization(self, authorization: Authorization) -> Self {
        Self { rate_limit: Some(Box::new(authorization)), ..self }
    }

    /// True for a refusal for the state of the service: the same request may succeed later.
    pub(crate) fn is_retriable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE && self.retry_after.is_some()
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let detail = format!("this path takes {allow}");
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, Kind::Method, detail);
        Self { allow: Some(allow), ..problem }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        })
    }

    pub(crate) fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(authorization) = &self.rate_limit {
            authorization.add_headers(headers);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        let detail = error.to_string();
        match error {
            ImageError::Empty | ImageError::UnknownFormat | ImageError::Compressed => {
                Self::new(StatusCode::BAD_REQUEST, Kind::NotAnImage, detail)
            }
            ImageError::UnsupportedFormat(_) => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::MediaType, detail)
            }
            ImageError::TooLarge { .. }
            | ImageError::TooLong { .. }
            | ImageError::TooManyPixels { .. }
            | ImageError::TooManyScans { .. }
            | ImageError::TooMuchMemory => Self::too_large(detail),
            _ => Self::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::BrokenImage, detail),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Image(error) => error.into(),
            other => {
                tracing::error!(error = %other, "the model failed");
                Self::internal()
            }
        }
    }
}
