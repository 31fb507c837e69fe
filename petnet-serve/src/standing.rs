//! A request's standing by its key: its priority, and what is left of the key's limits.

use hyper::header::{HeaderMap, HeaderValue};
use serde::Deserialize;

/// The urgency of a caller's images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Interactive,
    /// Nobody does: these images take a part of the places only.
    Batch,
}

/// A request's urgency by its key, and the key's limits as the fields `RateLimit-Policy` and `RateLimit` say them
/// (draft-ietf-httpapi-ratelimit-headers), which are empty for a key without limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Standing {
    pub(crate) policy: String,
    pub(crate) state: String,
    pub(crate) priority: Priority,
}

impl Standing {
    /// Adds the fields, where there are limits.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let fields = [("ratelimit-policy", &self.policy), ("ratelimit", &self.state)];
        for (name, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }
}
