//! API keys: known by their SHA-256 only, compared in constant time; with scopes and limits where a file gives them.

mod keys;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use arc_swap::ArcSwap;
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap};
use metrics::counter;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::problem::Problem;
use crate::settings::Settings;
use crate::standing::Standing;
use crate::telemetry::names;
pub(crate) use keys::Scope;
use keys::{Declared, Key};

/// The accepted keys.
pub(crate) struct Keys {
    /// SHA-256 of keys that open everything.
    given: Vec<String>,
    file: Option<PathBuf>,
    current: ArcSwap<Vec<Arc<Key>>>,
}

impl Keys {
    /// # Errors
    /// Names what is no key.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let (given, file) = (settings.api_keys_sha256.clone(), settings.api_keys.clone());
        let keys = Self { given, file, current: ArcSwap::default() };
        keys.load()?;
        Ok(keys)
    }

    /// Reads the file anew; one that is damaged changes nothing. Keys whose lines are the same keep what is left of their limits.
    pub(crate) fn reload(&self) {
        match self.load() {
            Ok(()) => tracing::info!(keys = self.current.load().len(), "keys are in use"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "the keys were refused"),
        }
    }

    fn load(&self) -> Result<()> {
        let given = self.given.iter().zip(1..);
        let mut all: Vec<Declared> =
            given.map(|(sha256, number)| Declared::unlimited(number, sha256)).collect();
        if let Some(file) = &self.file {
            all.extend(Declared::read(file)?);
        }
        let old = self.current.load();
        let keys =
            all.into_iter().map(|declared| match old.iter().find(|key| key.declared == declared) {
                Some(same) => Ok(Arc::clone(same)),
                None => Key::new(declared).map(Arc::new),
            });
        let keys: Vec<Arc<Key>> = keys.collect::<Result<_>>()?;
        for (place, key) in keys.iter().enumerate() {
            let before = keys[..place].iter().find(|other| other.digest == key.digest);
            let name = &key.declared.name;
            ensure!(before.is_none(), "the key `{name}` is another one as well");
            let before = keys[..place].iter().find(|other| other.declared.name == *name);
            ensure!(before.is_none(), "the name `{name}` stands twice among the keys");
        }
        self.current.store(Arc::new(keys));
        Ok(())
    }

    /// True while no key is set.
    fn is_open(&self) -> bool {
        self.given.is_empty() && self.file.is_none()
    }

    /// True for a request with a valid key.
    pub(crate) fn is_sent(&self, headers: &HeaderMap) -> bool {
        self.find(headers).is_some()
    }

    /// For paths that are open while no key is set; takes a request from the key's limits.
    ///
    /// # Errors
    /// 401 without a key, 403 for one without the scope, 429 for one that has used up its requests.
    pub(crate) fn check(&self, headers: &HeaderMap, scope: Scope) -> Result<Standing, Problem> {
        if self.is_open() { Ok(Standing::default()) } else { self.require(headers, scope) }
    }

    /// For paths that always need a key.
    ///
    /// # Errors
    /// As [`Keys::check`], and 403 when no key is set that could be sent.
    pub(crate) fn require(&self, headers: &HeaderMap, scope: Scope) -> Result<Standing, Problem> {
        if self.is_open() {
            let detail = "set PETNET_API_KEYS or PETNET_API_KEYS_SHA256 to use this path";
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
        }
        let Some(key) = self.find(headers) else {
            let detail = "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
        };
        let name = key.declared.name.clone();
        let count = |result: &'static str| {
            counter!(names::API_KEY_REQUESTS_TOTAL, "key" => name, "result" => result).increment(1);
        };
        if !key.has(scope) {
            count("forbidden");
            let detail = format!("the key has no scope `{}`", scope.name());
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
        }
        match key.take() {
            Ok(standing) => {
                count("allowed");
                Ok(standing)
            }
            Err((standing, wait)) => {
                count("limited");
                Err(Problem::limited(standing, wait))
            }
        }
    }

    fn find(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let sent = bearer.or_else(|| headers.get("x-api-key").map(|v| v.as_bytes()))?;
        let sent = Sha256::digest(sent);
        // Every key is compared, so that the time tells nothing.
        let keys = self.current.load();
        let same = |key: &Arc<Key>| bool::from(key.digest.ct_eq(&sent)).then(|| Arc::clone(key));
        keys.iter().fold(None, |found, key| same(key).or(found))
    }
}

/// The token behind the scheme, whose name is the same in upper and lower case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    // printf %s secret | sha256sum
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn keys(hashes: &[String]) -> Result<Keys> {
        Keys::new(&Settings { api_keys_sha256: hashes.to_vec(), ..Settings::default() })
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn any_of_the_keys_opens_by_either_header() {
        let keys = keys(&["0".repeat(64), SECRET.into()]).unwrap();
        let check = |headers: &HeaderMap| keys.check(headers, Scope::Predict);
        assert!(check(&headers("authorization", "Bearer secret")).is_ok());
        assert!(check(&headers("authorization", "bearer secret")).is_ok());
        assert!(keys.require(&headers("x-api-key", "secret"), Scope::Admin).is_ok());
        let refused = check(&headers("x-api-key", "Secret")).unwrap_err();
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(check(&HeaderMap::new()).unwrap_err().status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn without_keys_all_is_open_but_what_always_needs_one() {
        let open = keys(&[]).unwrap();
        assert!(open.check(&HeaderMap::new(), Scope::Predict).is_ok());
        let refused = open.require(&HeaderMap::new(), Scope::Admin).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(keys(&["secret".into()]).is_err());
    }
}
