//! API keys, stored as SHA-256 and compared in constant time, with scopes and rate limits.

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
    /// SHA-256 in hex of keys with all scopes, of the setting `--api-keys-sha256`.
    unlimited: Vec<String>,
    file: Option<PathBuf>,
    current: ArcSwap<Vec<Arc<Key>>>,
}

impl Keys {
    /// # Errors
    /// When a declared key is invalid, or two have the same digest or name.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let (unlimited, file) = (settings.api_keys_sha256.clone(), settings.api_keys.clone());
        let keys = Self { unlimited, file, current: ArcSwap::default() };
        keys.load()?;
        Ok(keys)
    }

    /// Reads the file again; if it is invalid, the previous keys remain in use. Unchanged keys keep the state of their limits.
    pub(crate) fn reload(&self) {
        match self.load() {
            Ok(()) => tracing::info!(keys = self.current.load().len(), "keys are in use"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "the keys were refused"),
        }
    }

    fn load(&self) -> Result<()> {
        let unlimited = self.unlimited.iter().zip(1..);
        let mut all: Vec<Declared> =
            unlimited.map(|(sha256, number)| Declared::unlimited(number, sha256)).collect();
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
            ensure!(before.is_none(), "the key `{name}` has the digest of another key");
            let before = keys[..place].iter().find(|other| other.declared.name == *name);
            ensure!(before.is_none(), "two keys have the name `{name}`");
        }
        self.current.store(Arc::new(keys));
        Ok(())
    }

    /// True while no key is set.
    fn is_open(&self) -> bool {
        self.unlimited.is_empty() && self.file.is_none()
    }

    /// True for a request with a valid key.
    pub(crate) fn is_authenticated(&self, headers: &HeaderMap) -> bool {
        self.find(headers).is_some()
    }

    /// Checks a request to a path that is open while no key is set, and charges it to the key's limits.
    ///
    /// # Errors
    /// 401 without a valid key, 403 for a key without the scope, 429 for one whose limits are exceeded.
    pub(crate) fn check(&self, headers: &HeaderMap, scope: Scope) -> Result<Standing, Problem> {
        if self.is_open() { Ok(Standing::default()) } else { self.require(headers, scope) }
    }

    /// Checks a request to a path that always needs a key.
    ///
    /// # Errors
    /// As [`Keys::check`], and 403 while no key is set.
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
        // Every key is compared, so that the duration does not reveal which one matched.
        let keys = self.current.load();
        let same = |key: &Arc<Key>| bool::from(key.digest.ct_eq(&sent)).then(|| Arc::clone(key));
        keys.iter().fold(None, |found, key| same(key).or(found))
    }
}

/// The token of the scheme `Bearer`, whose name is case-insensitive (RFC 9110, section 11.1).
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
    fn any_of_the_keys_is_accepted_in_either_header() {
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
    fn without_keys_all_paths_are_open_but_those_that_always_need_one() {
        let open = keys(&[]).unwrap();
        assert!(open.check(&HeaderMap::new(), Scope::Predict).is_ok());
        let refused = open.require(&HeaderMap::new(), Scope::Admin).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(keys(&["secret".into()]).is_err());
    }
}
