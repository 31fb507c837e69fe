//! Content negotiation (RFC 9110, section 12).

use headers_accept::Accept;
use hyper::header::{ACCEPT, HeaderMap};
use mediatype::MediaType;
use mediatype::names::{APPLICATION, HTML, IMAGE, JSON, PNG, TEXT};

/// Representations of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Html,
    Png,
}

impl Form {
    fn media_type(self) -> MediaType<'static> {
        match self {
            Self::Json => MediaType::new(APPLICATION, JSON),
            Self::Html => MediaType::new(TEXT, HTML),
            Self::Png => MediaType::new(IMAGE, PNG),
        }
    }
}

/// The one of two representations that the client prefers; the first where `Accept` is missing, invalid or indifferent.
pub(super) fn preferred(headers: &HeaderMap, forms: [Form; 2]) -> Form {
    let lines: Vec<&str> =
        headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    let Ok(accept) = lines.join(", ").parse::<Accept>() else { return forms[0] };
    let available = forms.map(Form::media_type);
    let best = accept.negotiate(&available);
    match best.and_then(|best| available.iter().position(|kind| kind == best)) {
        Some(place) => forms[place],
        None => forms[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_pages_and_programs_json() {
        let of = |accept: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            preferred(&headers, [Form::Json, Form::Html])
        };
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert_eq!(of(browser), Form::Html);
        assert_eq!(of("*/*"), Form::Json);
        assert_eq!(of("application/json, text/html;q=0.5"), Form::Json);
        assert_eq!(of("text/html;q=0, */*"), Form::Json);
        assert_eq!(of("text/*"), Form::Html);
        assert_eq!((of("image/webp"), of("not a type")), (Form::Json, Form::Json));
        assert_eq!(preferred(&HeaderMap::new(), [Form::Png, Form::Json]), Form::Png);
    }
}
