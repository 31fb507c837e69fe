//! `/shadow`: comparison of the shadow model with the default model, for operators.

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue, VARY};

use super::negotiate::{HTML, JSON, prefers};
use super::{HandlerResult, json_response, pages};
use crate::app::App;
use crate::problem::{Kind, Problem};

/// A page for browsers, JSON for other clients.
/// Errors: 404 where no shadow model is set.
pub(super) fn shadow(app: &App, headers: &HeaderMap) -> HandlerResult {
    let shadow = app.shadow.as_ref().ok_or_else(|| {
        let detail = "there is no shadow model: start the server with --shadow NAME";
        Problem::new(StatusCode::NOT_FOUND, Kind::NotFound, detail)
    })?;
    let mut response = if prefers(headers, &HTML, &JSON) {
        pages::SHADOW.response()
    } else {
        json_response(&shadow.json())
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}
