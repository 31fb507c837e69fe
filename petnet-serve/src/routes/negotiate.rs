//! Content negotiation (RFC 9110, section 12).

use headers_accept::Accept;
use hyper::header::{ACCEPT, HeaderMap};
use mediatype::MediaType;
use mediatype::names::{APPLICATION, HTML, IMAGE, JSON, PNG, TEXT};

/// Representations of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Representation {
    Json,
    Html,
    Png,
}

impl Representation {
    fn media_type(self) -> MediaType<'static> {
        match self {
            Self::Json => MediaType::new(APPLICATION, JSON),
            Self::Html => MediaType::new(TEXT, HTML),
            Self::Png => MediaType::new(IMAGE, PNG),
        }
    }
}

/// The one of two representations that the client prefers; the first where `Accept` is missing, invalid or indifferent.
pub(super) fn preferred(headers: &HeaderMap, available: [Representation; 2]) -> Representation {
    let lines: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    let Ok(accept) = lines.join(", ").parse::<Accept>() else { return available[0] };
    let media_types = available.map(Representation::media_type);
    let best = accept.negotiate(&media_types);
    let index = best.and_then(|best| media_types.iter().position(|media_type| media_type == best));
    available[index.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_pages_and_programs_json() {
        let of = |accept: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            preferred(&headers, [Representation::Json, Representation::Html])
        };
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert_eq!(of(browser), Representation::Html);
        assert_eq!(of("*/*"), Representation::Json);
        assert_eq!(of("application/json, text/html;q=0.5"), Representation::Json);
        assert_eq!(of("text/html;q=0, */*"), Representation::Json);
        assert_eq!(of("text/*"), Representation::Html);
        assert_eq!(
            (of("image/webp"), of("not a type")),
            (Representation::Json, Representation::Json)
        );
        assert_eq!(
            preferred(&HeaderMap::new(), [Representation::Png, Representation::Json]),
            Representation::Png
        );
    }
}
