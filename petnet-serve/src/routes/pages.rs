//! The web page, the operator's page, the API's description and its viewer.

use std::io::Read as _;
use std::sync::{LazyLock, OnceLock};

use base64::Engine as _;
use bytes::Bytes;
use cookie::{Cookie, SameSite};
use flate2::read::GzDecoder;
use hyper::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderMap,
    HeaderName, HeaderValue, REFERRER_POLICY, SET_COOKIE, VARY, X_FRAME_OPTIONS,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::negotiate::{HTML, JSON, prefers};
use super::{FullResponse, TABLE, json_response, typed_response};
use crate::app::App;
use crate::sessions::{SESSION_COOKIE, cookie};

pub(super) const OPENAPI: &str = include_str!("../../assets/openapi.json");

static HOME: LazyLock<Page> = LazyLock::new(|| {
    let html = include_str!("../../assets/page.html")
        .replacen("/*page.css*/", include_str!("../../assets/page.css"), 1)
        .replacen("/*page.js*/", include_str!("../../assets/page.js"), 1);
    Page::new(html, "")
});
/// The operator's page for the shadow model.
pub(super) static SHADOW: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("../../assets/shadow.html").to_string(), ""));
pub(super) static DOCS: LazyLock<Page> =
    LazyLock::new(|| Page::new(include_str!("../../assets/docs.html").to_string(), " 'self'"));

/// The script of the viewer in `/docs`.
pub(super) static VIEWER_SCRIPT: CompressedFile = CompressedFile::new(
    "text/javascript; charset=utf-8",
    include_bytes!("../../assets/vendor/swagger-ui-bundle.js.gz"),
);
/// The style sheet of the viewer in `/docs`.
pub(super) static VIEWER_STYLE: CompressedFile = CompressedFile::new(
    "text/css; charset=utf-8",
    include_bytes!("../../assets/vendor/swagger-ui.css.gz"),
);

/// `/`: the web page for browsers, JSON for other clients.
pub(super) fn home(app: &App, headers: &HeaderMap) -> FullResponse {
    let mut response = if prefers(headers, &HTML, &JSON) {
        let mut response = HOME.response();
        if cookie(headers).is_none()
            && let Ok(cookie) = HeaderValue::from_str(&new_cookie(app))
        {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    } else {
        let endpoints: Vec<&str> = TABLE.iter().map(|entry| entry.path).collect();
        let body = json!({
            "name": "petnet",
            "version": env!("CARGO_PKG_VERSION"),
            "model": app.models.default().name(),
            "models": app.models.iter().map(|served| served.name()).collect::<Vec<_>>(),
            "endpoints": endpoints,
        });
        json_response(&body)
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// A session cookie, by which the clients of the page are counted.
fn new_cookie(app: &App) -> String {
    Cookie::build((SESSION_COOKIE, uuid::Uuid::new_v4().to_string()))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(app.settings.tls_cert.is_some())
        .to_string()
}

/// A page, and its content security policy, which permits its own script and style only.
pub(super) struct Page {
    html: Bytes,
    policy: HeaderValue,
}

impl Page {
    /// `sources` are further permitted sources of scripts and styles.
    fn new(html: String, sources: &str) -> Self {
        let policy = security_policy(&html, sources);
        Self { html: html.into(), policy }
    }

    pub(super) fn response(&self) -> FullResponse {
        let mut response = typed_response("text/html; charset=utf-8", self.html.clone());
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(
            HeaderName::from_static("permissions-policy"),
            HeaderValue::from_static("camera=(self), microphone=(), geolocation=()"),
        );
        response
    }
}

fn security_policy(html: &str, sources: &str) -> HeaderValue {
    let hash = |tag: &str| {
        let inside = html
            .split_once(&format!("<{tag}>"))
            .and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")))
            .map_or("", |(inside, _)| inside);
        base64::engine::general_purpose::STANDARD.encode(Sha256::digest(inside))
    };
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'{sources}; style-src 'sha256-{}'{sources}; \
         img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'self'; \
         frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    );
    HeaderValue::from_str(&policy)
        .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

/// A file in the program's binary, compressed with gzip.
pub(super) struct CompressedFile {
    content_type: &'static str,
    gzip: &'static [u8],
    /// The decompressed file, set by the first client that does not accept gzip.
    plain: OnceLock<Bytes>,
}

impl CompressedFile {
    const fn new(content_type: &'static str, gzip: &'static [u8]) -> Self {
        Self { content_type, gzip, plain: OnceLock::new() }
    }

    pub(super) fn response(&self, headers: &HeaderMap) -> FullResponse {
        let compressed = accepts_gzip(headers);
        let body = if compressed { Bytes::from_static(self.gzip) } else { self.plain() };
        let mut response = typed_response(self.content_type, body);
        let headers = response.headers_mut();
        if compressed {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        response
    }

    fn plain(&self) -> Bytes {
        let decompress = || {
            let mut plain = Vec::new();
            let read = GzDecoder::new(self.gzip).read_to_end(&mut plain);
            read.map_or_else(|_| Bytes::new(), |_| plain.into())
        };
        self.plain.get_or_init(decompress).clone()
    }
}

/// True where the client accepts gzip; a weight of 0 refuses it.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    accept.unwrap_or_default().split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_none_or(|weight| weight > 0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;

    #[test]
    fn the_page_has_its_style_and_its_script_in_their_places() {
        let html = std::str::from_utf8(&HOME.html).unwrap();
        assert!(!html.contains("/*page."));
        for part in [include_str!("../../assets/page.css"), include_str!("../../assets/page.js")] {
            assert!(html.contains(part));
        }
    }

    #[test]
    fn clients_without_gzip_get_the_viewer_decompressed() {
        let header =
            |value| HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(value))]);
        for accepts in ["gzip", "br, GZIP;q=0.5", "deflate,gzip"] {
            let response = VIEWER_SCRIPT.response(&header(accepts));
            assert_eq!(response.headers()[CONTENT_ENCODING], "gzip", "{accepts}");
            assert_eq!(response.body()[..2], [0x1f, 0x8b]);
        }
        for refuses in ["", "br", "gzip;q=0", "identity, gzip; q=0.0"] {
            let response = VIEWER_SCRIPT.response(&header(refuses));
            assert!(!response.headers().contains_key(CONTENT_ENCODING), "{refuses}");
            assert!(response.body().starts_with(b"/*! For license information"));
        }
        let style = VIEWER_STYLE.response(&HeaderMap::new());
        assert!(std::str::from_utf8(style.body()).unwrap().contains(".swagger-ui"));
    }

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
            let operation = &paths[entry.path][method];
            assert!(operation.is_object(), "{method} {}", entry.path);
            let free = json!({});
            let security = operation["security"].as_array();
            let (keyed, optional) = match entry.access {
                Access::Open => (false, true),
                Access::Key(_) => (true, true),
                Access::Operator => (true, false),
            };
            assert_eq!(security.is_some(), keyed, "security of {}", entry.path);
            let without = security.is_none_or(|ways| ways.contains(&free));
            assert_eq!(without, optional, "security of {}", entry.path);
            for status in ["401", "403", "429"] {
                let described = operation["responses"].get(status).is_some();
                assert_eq!(described, keyed, "{status} of {}", entry.path);
            }
        }
    }
}
