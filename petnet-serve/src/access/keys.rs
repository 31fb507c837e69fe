//! The file of keys: names, digests, scopes and limits.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use serde::Deserialize;

use crate::standing::{Priority, Standing};

/// Most keys of a file: each is a label of metrics.
const MOST: usize = 256;
const DAY: Duration = Duration::from_hours(24);

/// Paths that a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    Predict,
    Feedback,
    Export,
    Metrics,
    Admin,
}

impl Scope {
    pub(crate) const ALL: [Self; 5] =
        [Self::Predict, Self::Feedback, Self::Export, Self::Metrics, Self::Admin];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::Feedback => "feedback",
            Self::Export => "export",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// A key as the file has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declared {
    pub(super) name: String,
    /// SHA-256 of the key, in hex.
    sha256: String,
    #[serde(default = "usual")]
    scopes: Vec<Scope>,
    requests_per_second: Option<NonZeroU32>,
    requests_per_day: Option<NonZeroU32>,
    #[serde(default)]
    pub(super) priority: Priority,
}

/// The scopes of a key that names none.
fn usual() -> Vec<Scope> {
    vec![Scope::Predict, Scope::Feedback]
}

impl Declared {
    /// A key of the setting `--api-keys-sha256`, which opens everything.
    pub(super) fn unlimited(number: usize, sha256: &str) -> Self {
        Self {
            name: format!("key-{number}"),
            sha256: sha256.trim().into(),
            scopes: Scope::ALL.into(),
            requests_per_second: None,
            requests_per_day: None,
            priority: Priority::default(),
        }
    }

    /// The keys of a file.
    ///
    /// # Errors
    /// For what cannot be read, and for what is not a list of keys.
    pub(super) fn read(path: &Path) -> Result<Vec<Self>> {
        let name = || format!("--api-keys {}", path.display());
        let text = std::fs::read_to_string(path).with_context(name)?;
        let keys: Vec<Self> = serde_yaml::from_str(&text).with_context(name)?;
        ensure!(keys.len() <= MOST, "{}: {} keys, of {MOST} at most", name(), keys.len());
        let fit = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        for Self { name: key, .. } in &keys {
            let valid = (1..=64).contains(&key.len()) && key.chars().all(fit);
            ensure!(
                valid,
                "{}: `{key}` is no name: 1 to 64 of a-z, A-Z, 0-9, `.`, `_`, `-`",
                name()
            );
        }
        Ok(keys)
    }
}

/// A key in use.
pub(crate) struct Key {
    pub(super) declared: Declared,
    pub(super) digest: [u8; 32],
    limits: Vec<Limit>,
    /// All limits, as [`Standing::policy`] has them.
    policy: String,
}

impl Key {
    /// # Errors
    /// For what is no SHA-256 in hex.
    pub(super) fn new(declared: Declared) -> Result<Self> {
        let digest = digest(&declared.sha256)?;
        let second = declared.requests_per_second.map(|most| {
            Limit::new("second", most, Duration::from_secs(1), Quota::per_second(most))
        });
        let day = declared.requests_per_day.and_then(|most| {
            let quota = Quota::with_period(DAY / most.get())?.allow_burst(most);
            Some(Limit::new("day", most, DAY, quota))
        });
        let limits: Vec<Limit> = second.into_iter().chain(day).collect();
        let policies = limits.iter().map(Limit::policy);
        let policy = policies.collect::<Vec<_>>().join(", ");
        Ok(Self { declared, digest, limits, policy })
    }

    pub(super) fn has(&self, scope: Scope) -> bool {
        self.declared.scopes.contains(&scope)
    }

    /// Takes one request from each limit in turn, up to one that has none left: a request that is refused for the second must not
    /// use up the day.
    ///
    /// # Errors
    /// The standing of the limits that were asked, with the wait until a request is free.
    pub(super) fn take(&self) -> Result<Standing, (Standing, Duration)> {
        let (mut states, mut wait) = (Vec::new(), None);
        for limit in &self.limits {
            let (left, until) = limit.take();
            states.push(format!("\"{}\";r={left}", limit.name));
            wait = until;
            if wait.is_some() {
                break;
            }
        }
        let standing = Standing {
            policy: self.policy.clone(),
            state: states.join(", "),
            priority: self.declared.priority,
        };
        match wait {
            None => Ok(standing),
            Some(wait) => Err((standing, wait)),
        }
    }
}

/// So many requests at once, given back evenly over a window (GCRA, by `governor`).
struct Limit {
    name: &'static str,
    most: NonZeroU32,
    window: Duration,
    limiter: RateLimiter<NotKeyed, InMemoryState, MonotonicClock, StateInformationMiddleware>,
}

impl Limit {
    fn new(name: &'static str, most: NonZeroU32, window: Duration, quota: Quota) -> Self {
        let limiter = RateLimiter::direct_with_clock(quota, MonotonicClock)
            .with_middleware::<StateInformationMiddleware>();
        Self { name, most, window, limiter }
    }

    fn policy(&self) -> String {
        format!("\"{}\";q={};w={}", self.name, self.most, self.window.as_secs())
    }

    /// Requests that are left, and the wait where there was none.
    fn take(&self) -> (u32, Option<Duration>) {
        match self.limiter.check() {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(until) => (0, Some(until.wait_time_from(MonotonicClock.now()))),
        }
    }
}

fn digest(text: &str) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    let decoded = hex::decode_to_slice(text, &mut key);
    decoded.with_context(|| format!("`{text}` is no SHA-256 in hex (64 digits)"))?;
    Ok(key)
}
