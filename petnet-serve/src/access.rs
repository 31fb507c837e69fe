//! API keys: known by their SHA-256 only, compared in constant time.

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::problem::Problem;

/// The accepted keys.
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// # Errors
    /// Names what is no SHA-256 in hex.
    pub(crate) fn new(hashes: &[String]) -> anyhow::Result<Self> {
        hashes.iter().map(|text| parse(text.trim())).collect::<anyhow::Result<_>>().map(Self)
    }

    /// True for a request with a valid key.
    pub(crate) fn is_sent(&self, headers: &HeaderMap) -> bool {
        !self.0.is_empty() && self.require(headers).is_ok()
    }

    /// For paths that are open while no key is set.
    ///
    /// # Errors
    /// 401.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { self.require(headers) }
    }

    /// For paths that always need a key.
    ///
    /// # Errors
    /// 401, or 403 when no key is set that could be sent.
    pub(crate) fn require(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.0.is_empty() {
            let detail = "set PETNET_API_KEYS_SHA256 to use this path";
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
        }
        let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let sent = bearer.or_else(|| headers.get("x-api-key").map(|v| v.as_bytes()));
        let sent = Sha256::digest(sent.unwrap_or_default());
        // Every key is compared, so that the time tells nothing.
        let known = self.0.iter().fold(0, |any, key| any | key.ct_eq(&sent).unwrap_u8());
        if known == 1 {
            return Ok(());
        }
        let detail = "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
        Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail))
    }
}

/// The token behind the scheme, whose name is the same in upper and lower case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

fn parse(text: &str) -> anyhow::Result<[u8; 32]> {
    let wrong = || anyhow::anyhow!("`{text}` is no SHA-256 in hex (64 digits)");
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut key = [0; 32];
    for (byte, place) in key.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[place..place + 2], 16).map_err(|_| wrong())?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn any_of_the_keys_opens_by_either_header() {
        let keys = Keys::new(&["0".repeat(64), SECRET.into()]).unwrap();
        assert!(keys.check(&headers("authorization", "Bearer secret")).is_ok());
        assert!(keys.check(&headers("authorization", "bearer secret")).is_ok());
        assert!(keys.require(&headers("x-api-key", "secret")).is_ok());
        let refused = keys.check(&headers("x-api-key", "Secret")).unwrap_err();
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(keys.check(&HeaderMap::new()).unwrap_err().status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn without_keys_all_is_open_but_what_always_needs_one() {
        let keys = Keys::new(&[]).unwrap();
        assert!(keys.check(&HeaderMap::new()).is_ok());
        assert_eq!(keys.require(&HeaderMap::new()).unwrap_err().status, StatusCode::FORBIDDEN);
        assert!(Keys::new(&["secret".into()]).is_err());
    }
}
