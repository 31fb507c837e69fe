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

use crate::authorization::Authorization;
use crate::problem::{Kind, Problem};
use crate::settings::Settings;
use crate::telemetry::names;
pub(crate) use keys::Scope;
use keys::{Key, KeyConfig};

/// Access to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Needs no key.
    Open,
    /// Needs a key with the scope; open while no key is set.
    Key(Scope),
    /// Needs a key with the scope `admin`; refused while no key is set.
    Operator,
}

/// The accepted keys.
pub(crate) struct Keys {
    /// SHA-256 in hex of keys with all scopes, of the setting `--api-keys-sha256`.
    unlimited_digests: Vec<String>,
    file: Option<PathBuf>,
    current: ArcSwap<Vec<Arc<Key>>>,
}

impl Keys {
    /// Reads the keys of the settings and of the file.
    /// Errors: when a declared key is invalid, or two have the same digest or name.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let unlimited_digests = settings.api_keys_sha256.clone();
        let file = settings.api_keys.clone();
        let keys = Self { unlimited_digests, file, current: ArcSwap::default() };
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
        let unlimited = self.unlimited_digests.iter().zip(1..);
        let mut all: Vec<KeyConfig> =
            unlimited.map(|(sha256, number)| KeyConfig::unlimited(number, sha256)).collect();
        if let Some(file) = &self.file {
            all.extend(KeyConfig::read(file)?);
        }
        let old = self.current.load();
        let keys =
            all.into_iter().map(|config| match old.iter().find(|key| key.config == config) {
                Some(same) => Ok(Arc::clone(same)),
                None => Key::new(config).map(Arc::new),
            });
        let keys: Vec<Arc<Key>> = keys.collect::<Result<_>>()?;
        for (index, key) in keys.iter().enumerate() {
            let (earlier, name) = (&keys[..index], &key.config.name);
            let is_repeated = earlier.iter().any(|other| other.digest == key.digest);
            ensure!(!is_repeated, "the key `{name}` has the digest of another key");
            let is_repeated = earlier.iter().any(|other| other.config.name == *name);
            ensure!(!is_repeated, "two keys have the name `{name}`");
        }
        self.current.store(Arc::new(keys));
        Ok(())
    }

    /// True while no key is set.
    fn is_open(&self) -> bool {
        self.unlimited_digests.is_empty() && self.file.is_none()
    }

    /// True for a request with a valid key.
    pub(crate) fn is_authenticated(&self, headers: &HeaderMap) -> bool {
        self.find(headers).is_some()
    }

    /// Authorizes a request by its key, and charges it to the key's limits.
    /// Errors: 401 without a valid key, 403 for a key without the scope, 429 for one whose limits are exceeded; for
    /// [`Access::Operator`] also 403 while no key is set.
    pub(crate) fn authorize(
        &self,
        headers: &HeaderMap,
        access: Access,
    ) -> Result<Authorization, Problem> {
        let scope = match access {
            Access::Open => return Ok(Authorization::default()),
            Access::Key(_) if self.is_open() => return Ok(Authorization::default()),
            Access::Operator if self.is_open() => {
                let detail = "set PETNET_API_KEYS or PETNET_API_KEYS_SHA256 to use this path";
                return Err(Problem::new(StatusCode::FORBIDDEN, Kind::Forbidden, detail));
            }
            Access::Key(scope) => scope,
            Access::Operator => Scope::Admin,
        };
        let Some(key) = self.find(headers) else {
            let detail = "send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`";
            return Err(Problem::new(StatusCode::UNAUTHORIZED, Kind::Unauthorized, detail));
        };
        let name = key.config.name.clone();
        let count = |result: &'static str| {
            counter!(names::API_KEY_REQUESTS_TOTAL, "key" => name, "result" => result).increment(1);
        };
        if !key.has_scope(scope) {
            count("forbidden");
            let detail = format!("the key has no scope `{}`", scope.name());
            return Err(Problem::new(StatusCode::FORBIDDEN, Kind::Forbidden, detail));
        }
        let charged = key.charge();
        count(if charged.is_ok() { "allowed" } else { "limited" });
        charged.map_err(|(authorization, wait)| Problem::rate_limited(authorization, wait))
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
        let check = |headers: &HeaderMap| keys.authorize(headers, Access::Key(Scope::Predict));
        assert!(check(&headers("authorization", "Bearer secret")).is_ok());
        assert!(check(&headers("authorization", "bearer secret")).is_ok());
        assert!(keys.authorize(&headers("x-api-key", "secret"), Access::Operator).is_ok());
        let refused = check(&headers("x-api-key", "Secret")).unwrap_err();
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(check(&HeaderMap::new()).unwrap_err().status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn without_keys_all_paths_are_open_but_those_that_always_need_one() {
        let open = keys(&[]).unwrap();
        assert!(open.authorize(&HeaderMap::new(), Access::Key(Scope::Predict)).is_ok());
        let refused = open.authorize(&HeaderMap::new(), Access::Operator).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(keys(&["secret".into()]).is_err());
    }
}
