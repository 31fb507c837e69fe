//! Content negotiation (RFC 9110, section 12).

use headers_accept::Accept;
use hyper::header::{ACCEPT, HeaderMap};
use mediatype::names;

type MediaType = mediatype::MediaType<'static>;

pub(super) const JSON: MediaType = MediaType::new(names::APPLICATION, names::JSON);
pub(super) const HTML: MediaType = MediaType::new(names::TEXT, names::HTML);
pub(super) const PNG: MediaType = MediaType::new(names::IMAGE, names::PNG);

/// True where the client prefers a media type to the default one: not where `Accept` is missing, invalid or indifferent.
pub(super) fn prefers(headers: &HeaderMap, other: &MediaType, default: &MediaType) -> bool {
    let lines: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    let accept = lines.join(", ").parse::<Accept>();
    accept.is_ok_and(|accept| accept.negotiate([default, other]) == Some(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_pages_and_programs_json() {
        let prefers_html = |accept: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            prefers(&headers, &HTML, &JSON)
        };
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for accept in [browser, "text/*"] {
            assert!(prefers_html(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "application/json, text/html;q=0.5",
            "text/html;q=0, */*",
            "image/webp",
            "not a type",
        ] {
            assert!(!prefers_html(accept), "{accept}");
        }
        assert!(!prefers(&HeaderMap::new(), &JSON, &PNG));
    }
}
