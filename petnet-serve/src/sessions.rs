//! Who is here: distinct clients within some minutes, known by a hash that ends with the process.

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
/// Clients that are told apart at a time; more are not counted.
const MOST: usize = 100_000;

/// First and last request of a client.
type Seen = (Instant, Instant);

/// The clients of the last minutes.
pub(crate) struct Sessions {
    idle: Duration,
    secret: RandomState,
    clients: Mutex<HashMap<u64, Seen>>,
}

impl Sessions {
    pub(crate) fn new(idle: Duration) -> Self {
        Self { idle, secret: RandomState::new(), clients: Mutex::default() }
    }

    /// Notes a request of a client.
    pub(crate) fn touch(&self, headers: &HeaderMap, peer: IpAddr) {
        let client = self.secret.hash_one(Client::of(headers, peer));
        let now = Instant::now();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let full = clients.len() >= MOST;
        match clients.entry(client) {
            Entry::Occupied(mut seen) => seen.get_mut().1 = now,
            Entry::Vacant(place) if !full => drop(place.insert((now, now))),
            Entry::Vacant(_) => (),
        }
    }

    /// Ends the sessions of those who left; the number of those who are here.
    pub(crate) fn active(&self) -> usize {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, (first, last)| {
            let here = last.elapsed() < self.idle;
            if !here {
                histogram!(names::USER_SESSION_DURATION_SECONDS).record(*last - *first);
            }
            here
        });
        clients.len()
    }
}

/// What tells one client from another, the surest first.
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
    // The value is part of the header, not of the cookie that was read from it.
    ours.filter_map(|cookie| cookie.value_raw()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_what_tells_most_and_leaves_after_the_idle_time() {
        let header = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let here = IpAddr::from([127, 0, 0, 1]);
        let sessions = Sessions::new(Duration::from_millis(40));
        let empty = HeaderMap::new();
        sessions.touch(&empty, here);
        sessions.touch(&empty, here);
        sessions.touch(&header("x-forwarded-for", "10.0.0.1, 10.0.0.9"), here);
        sessions.touch(&header("x-forwarded-for", "10.0.0.1"), here);
        sessions.touch(&header("x-api-key", "secret"), here);
        sessions.touch(&header("cookie", "a=b; petnet_session=4711"), here);
        assert_eq!(sessions.active(), 4);
        std::thread::sleep(Duration::from_millis(50));
        sessions.touch(&header("cookie", "petnet_session=4711"), here);
        assert_eq!(sessions.active(), 1);
    }
}
