//! `/shadow`: comparison of the shadow model with the default model, for operators.

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue, VARY};

use super::negotiate::{Form, preferred};
use super::{Reply, json, pages};
use crate::app::App;
use crate::problem::Problem;

/// A page for browsers, JSON for other clients.
///
/// # Errors
/// 404 where no shadow model is set.
pub(super) fn shadow(app: &App, headers: &HeaderMap) -> Result<Reply, Problem> {
    let shadow = app.shadow.as_ref().ok_or_else(|| {
        let detail = "there is no shadow model: start the server with --shadow NAME";
        Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
    })?;
    let mut reply = if preferred(headers, [Form::Json, Form::Html]) == Form::Html {
        pages::shadow()
    } else {
        json(StatusCode::OK, &shadow.json())
    };
    reply.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(reply)
}
