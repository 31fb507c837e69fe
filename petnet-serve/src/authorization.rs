//! The result of authorizing a request by its API key: the priority of its images, and the state of the key's rate limits.

use hyper::header::{HeaderMap, HeaderValue};
use serde::Deserialize;

/// Scheduling priority of a caller's images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    /// A person waits for the response.
    #[default]
    Interactive,
    /// Bulk work, which may use only a quarter of a model's permits; `batch` in the file of keys.
    #[serde(rename = "batch")]
    Bulk,
}

/// The priority of a request by its key, and the values of the header fields `RateLimit-Policy` and `RateLimit`
/// (draft-ietf-httpapi-ratelimit-headers); both are empty for a key without limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Authorization {
    pub(crate) rate_limit_policy: String,
    pub(crate) rate_limit: String,
    pub(crate) priority: Priority,
}

impl Authorization {
    /// Adds the header fields, unless they are empty.
    pub(crate) fn add_headers(&self, headers: &mut HeaderMap) {
        let fields =
            [("ratelimit-policy", &self.rate_limit_policy), ("ratelimit", &self.rate_limit)];
        for (name, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }
}
