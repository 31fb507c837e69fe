//! Sessions: distinct clients within some minutes, identified by a hash whose random key is not stored.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cookie::Cookie;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderMap};
use metrics::histogram;

use crate::telemetry::names;

/// Name of the page's cookie.
pub(crate) const SESSION_COOKIE: &str = "petnet_session";
/// Maximum number of concurrent sessions that are counted.
const MAX_CLIENTS: usize = 100_000;

/// Times of the first and the last request of a client.
type RequestTimes = (Instant, Instant);

/// Clients with an active session.
pub(crate) struct Sessions {
    idle_timeout: Duration,
    /// Has a random key, so that a hash cannot be traced to its client.
    hasher: RandomState,
    clients: Mutex<HashMap<u64, RequestTimes>>,
}

impl Sessions {
    pub(crate) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, hasher: RandomState::new(), clients: Mutex::default() }
    }

    /// Records a request of a client.
    pub(crate) fn record_request(&self, headers: &HeaderMap, peer: IpAddr, now: Instant) {
        let client = self.hasher.hash_one(Client::of(headers, peer));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let full = clients.len() >= MAX_CLIENTS;
        match clients.entry(client) {
            Entry::Occupied(mut times) => times.get_mut().1 = now,
            Entry::Vacant(entry) if !full => drop(entry.insert((now, now))),
            Entry::Vacant(_) => (),
        }
    }

    /// Ends sessions that are idle for too long, and returns the number of the others.
    pub(crate) fn active(&self, now: Instant) -> usize {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (first, last)| {
            let active = now.saturating_duration_since(*last) < self.idle_timeout;
            if !active {
                histogram!(names::USER_SESSION_DURATION_SECONDS).record(*last - *first);
            }
            active
        });
        clients.len()
    }
}

/// The identity of a client, the most specific first.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Client<'a> {
    Cookie(&'a str),
    Key(&'a [u8]),
    Forwarded(&'a str),
    Address(IpAddr),
}

impl<'a> Client<'a> {
    fn of(headers: &'a HeaderMap, peer: IpAddr) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let key = headers.get("x-api-key").or_else(|| headers.get(AUTHORIZATION));
        let forwarded = text("x-forwarded-for").and_then(|list| list.split(',').next());
        cookie(headers)
            .map(Self::Cookie)
            .or_else(|| key.map(|value| Self::Key(value.as_bytes())))
            .or_else(|| forwarded.map(|address| Self::Forwarded(address.trim())))
            .unwrap_or(Self::Address(peer))
    }
}

/// The value of the page's cookie, where the client sent it.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let cookies = lines.flat_map(Cookie::split_parse).filter_map(Result::ok);
    let ours = cookies.filter(|cookie| cookie.name() == SESSION_COOKIE);
    // The raw value borrows from the header and outlives the parsed cookie.
    ours.filter_map(|cookie| cookie.value_raw()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_identified_by_the_most_specific_header_and_its_session_ends_when_idle() {
        let header = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let peer = IpAddr::from([127, 0, 0, 1]);
        let sessions = Sessions::new(Duration::from_secs(40));
        let begin = Instant::now();
        for headers in [
            HeaderMap::new(),
            HeaderMap::new(),
            header("x-forwarded-for", "10.0.0.1, 10.0.0.9"),
            header("x-forwarded-for", "10.0.0.1"),
            header("x-api-key", "secret"),
            header("cookie", "a=b; petnet_session=4711"),
        ] {
            sessions.record_request(&headers, peer, begin);
        }
        assert_eq!(sessions.active(begin + Duration::from_secs(39)), 4);
        let later = begin + Duration::from_secs(40);
        sessions.record_request(&header("cookie", "petnet_session=4711"), peer, later);
        assert_eq!(sessions.active(later), 1);
    }
}
