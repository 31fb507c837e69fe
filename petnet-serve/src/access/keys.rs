//! Declared API keys: names, digests, scopes and rate limits.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::Deserialize;

use crate::authorization::{Authorization, Priority};

/// Maximum number of keys in a file: each is a label value of metrics.
const MAX_KEYS: usize = 256;
const DAY: Duration = Duration::from_hours(24);

/// Declares [`Scope`], with the name of each scope in the file of keys.
macro_rules! scopes {
    ($($scope:ident = $name:literal,)+) => {
        /// A group of paths that a key may use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
        pub(crate) enum Scope {
            $(#[serde(rename = $name)] $scope,)+
        }

        impl Scope {
            const ALL: &[Self] = &[$(Self::$scope,)+];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$scope => $name,)+
                }
            }
        }
    };
}

scopes! {
    Predict = "predict",
    Feedback = "feedback",
    Export = "export",
    Metrics = "metrics",
    Admin = "admin",
}

/// The configuration of a key in the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyConfig {
    pub(super) name: String,
    /// SHA-256 of the key, in hex.
    sha256: String,
    #[serde(default = "default_scopes")]
    scopes: Vec<Scope>,
    requests_per_second: Option<NonZeroU32>,
    requests_per_day: Option<NonZeroU32>,
    #[serde(default)]
    pub(super) priority: Priority,
}

/// Scopes of a key that declares none.
fn default_scopes() -> Vec<Scope> {
    vec![Scope::Predict, Scope::Feedback]
}

impl KeyConfig {
    /// A key of the setting `--api-keys-sha256`: it has all scopes and no limits.
    pub(super) fn unlimited(number: usize, sha256: &str) -> Self {
        Self {
            name: format!("key-{number}"),
            sha256: sha256.trim().into(),
            scopes: Scope::ALL.to_vec(),
            requests_per_second: None,
            requests_per_day: None,
            priority: Priority::default(),
        }
    }

    /// Reads the keys of a file.
    /// Errors: when the file cannot be read or is not a list of valid keys.
    pub(super) fn read(path: &Path) -> Result<Vec<Self>> {
        let name = || format!("--api-keys {}", path.display());
        let text = std::fs::read_to_string(path).with_context(name)?;
        let keys: Vec<Self> = serde_yaml::from_str(&text).with_context(name)?;
        ensure!(keys.len() <= MAX_KEYS, "{}: {} keys, of {MAX_KEYS} at most", name(), keys.len());
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        for Self { name: key, .. } in &keys {
            let valid = (1..=64).contains(&key.len()) && key.chars().all(is_allowed);
            ensure!(
                valid,
                "{}: the name `{key}` is invalid, must be 1 to 64 of a-z, A-Z, 0-9, `.`, `_`, `-`",
                name()
            );
        }
        Ok(keys)
    }
}

/// A key in use.
pub(crate) struct Key {
    pub(super) config: KeyConfig,
    pub(super) digest: [u8; 32],
    limits: Vec<RateLimit>,
    /// All limits, in the format of [`Authorization::rate_limit_policy`].
    policy: String,
}

impl Key {
    /// A key with unused limits.
    /// Errors: when the digest is not a SHA-256 in hex.
    pub(super) fn new(config: KeyConfig) -> Result<Self> {
        let digest = digest(&config.sha256)?;
        let second = config.requests_per_second.map(|count| {
            RateLimit::new("second", count, Duration::from_secs(1), Quota::per_second(count))
        });
        let day = config.requests_per_day.and_then(|count| {
            let quota = Quota::with_period(DAY / count.get())?.allow_burst(count);
            Some(RateLimit::new("day", count, DAY, quota))
        });
        let limits: Vec<RateLimit> = second.into_iter().chain(day).collect();
        let policies = limits.iter().map(RateLimit::policy);
        let policy = policies.collect::<Vec<_>>().join(", ");
        Ok(Self { config, digest, limits, policy })
    }

    pub(super) fn has_scope(&self, scope: Scope) -> bool {
        self.config.scopes.contains(&scope)
    }

    /// Charges one request to each limit, and stops at the first that is exceeded: a request that is refused by the limit per
    /// second must not count for the day.
    /// Errors: the state of the limits up to the exceeded one, and the wait until it allows a request.
    pub(super) fn charge(&self) -> Result<Authorization, (Authorization, Duration)> {
        let (mut states, mut wait) = (Vec::new(), None);
        for limit in &self.limits {
            let (remaining, until) = limit.charge();
            states.push(format!("\"{}\";r={remaining}", limit.name));
            wait = until;
            if wait.is_some() {
                break;
            }
        }
        let authorization = Authorization {
            rate_limit_policy: self.policy.clone(),
            rate_limit: states.join(", "),
            priority: self.config.priority,
        };
        match wait {
            None => Ok(authorization),
            Some(wait) => Err((authorization, wait)),
        }
    }
}

/// A limit of `max_requests` per window, by the generic cell rate algorithm (GCRA, as implemented by `governor`): bursts of
/// `max_requests` are allowed, and requests become available again at an even rate.
struct RateLimit {
    name: &'static str,
    max_requests: NonZeroU32,
    window: Duration,
    limiter: RateLimiter<NotKeyed, InMemoryState, MonotonicClock, StateInformationMiddleware>,
}

impl RateLimit {
    fn new(name: &'static str, max_requests: NonZeroU32, window: Duration, quota: Quota) -> Self {
        let limiter = RateLimiter::direct_with_clock(quota, MonotonicClock)
            .with_middleware::<StateInformationMiddleware>();
        Self { name, max_requests, window, limiter }
    }

    fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.max_requests, self.window.as_secs())
    }

    /// Charges a request: the number of requests left, and the wait where the limit is exceeded.
    fn charge(&self) -> (u32, Option<Duration>) {
        match self.limiter.check() {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(until) => (0, Some(until.wait_time_from(MonotonicClock.now()))),
        }
    }
}

fn digest(text: &str) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    let decoded = hex::decode_to_slice(text, &mut key);
    decoded.with_context(|| format!("`{text}` is not a SHA-256 in hex (64 digits)"))?;
    Ok(key)
}
