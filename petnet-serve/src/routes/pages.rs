//! What people look at: the page, the documentation, the API's description.

use std::sync::OnceLock;

use base64::Engine as _;
use cookie::{Cookie, SameSite};
use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, SET_COOKIE, VARY,
    X_FRAME_OPTIONS,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::negotiate::{Form, preferred};
use super::{Reply, TABLE, json as json_reply, text};
use crate::app::App;
use crate::sessions::{SESSION_COOKIE, cookie};

const OPENAPI: &str = include_str!("../../assets/openapi.json");

/// JSON for clients, the page for browsers.
pub(super) fn home(app: &App, headers: &HeaderMap) -> Reply {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    let mut reply = if preferred(headers, [Form::Json, Form::Html]) == Form::Html {
        let mut reply = page(include_str!("../../assets/page.html"), &POLICY);
        if cookie(headers).is_none()
            && let Ok(cookie) = HeaderValue::from_str(&new_cookie(app))
        {
            reply.headers_mut().insert(SET_COOKIE, cookie);
        }
        reply
    } else {
        let endpoints: Vec<&str> = TABLE.iter().map(|entry| entry.path).collect();
        let body = json!({
            "name": "petnet",
            "version": env!("CARGO_PKG_VERSION"),
            "model": app.models.default().name(),
            "models": app.models.iter().map(|served| served.name()).collect::<Vec<_>>(),
            "endpoints": endpoints,
        });
        json_reply(hyper::StatusCode::OK, &body)
    };
    reply.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    reply
}

/// Tells one visitor from another, for as long as the browser runs.
fn new_cookie(app: &App) -> String {
    Cookie::build((SESSION_COOKIE, uuid::Uuid::new_v4().to_string()))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(app.settings.tls_cert.is_some())
        .to_string()
}

pub(super) fn docs() -> Reply {
    static POLICY: OnceLock<HeaderValue> = OnceLock::new();
    page(include_str!("../../assets/docs.html"), &POLICY)
}

pub(super) fn openapi() -> Reply {
    text("application/json", OPENAPI)
}

pub(super) fn page(html: &'static str, policy: &'static OnceLock<HeaderValue>) -> Reply {
    let mut reply = text("text/html; charset=utf-8", html);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy.get_or_init(|| security_policy(html)).clone());
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(self), microphone=(), geolocation=()"),
    );
    reply
}

/// Lets a page run its own script and style and nothing else.
fn security_policy(html: &str) -> HeaderValue {
    let hash = |tag: &str| {
        let inside = html
            .split_once(&format!("<{tag}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")))
            .map_or("", |(inside, _)| inside);
        base64::engine::general_purpose::STANDARD.encode(Sha256::digest(inside))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src blob: data:; \
         connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    );
    HeaderValue::from_str(&policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_knows_every_path_and_method_and_no_other() {
        let described: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(described["info"]["version"], env!("CARGO_PKG_VERSION"));
        let paths = described["paths"].as_object().unwrap();
        let mut ours: Vec<&str> = TABLE.iter().map(|entry| entry.path).collect();
        let mut theirs: Vec<&str> = paths.keys().map(String::as_str).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        for entry in TABLE {
            let method = if entry.allow == "POST" { "post" } else { "get" };
            assert!(paths[entry.path].get(method).is_some(), "{method} {}", entry.path);
        }
    }
}
