//! Local HTTP server for the page, which saves decisions.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;

use super::corrections::{Action, Correction, Corrections};
use super::page::Page;

/// Largest body of a decision, in bytes.
const MAX_BODY_BYTES: usize = 4096;
/// Pause after a failed accept, which may be due to the limit of open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct Decision {
    sha256: String,
    /// `None` removes the decision.
    action: Option<Action>,
    label: Option<String>,
}

type Reply = Response<Full<Bytes>>;

/// Serves until the process ends.
pub(super) fn serve(address: SocketAddr, page: &Page, corrections: Corrections) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let html = Bytes::from(page.html(false)?);
    let site = Site { page, html, corrections: RefCell::new(corrections) };
    runtime.block_on(site.run(address))
}

/// State of the server. One thread is enough: an image takes milliseconds.
struct Site<'a> {
    page: &'a Page<'a>,
    html: Bytes,
    corrections: RefCell<Corrections>,
}

impl Site<'_> {
    async fn run(&self, address: SocketAddr) -> Result<()> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("--serve {address}"))?;
        let bound = listener.local_addr()?;
        say!("http://{bound}  (Ctrl-C ends it)");
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let service = service_fn(move |request| async move {
                            let reply = self.reply(request, bound).await;
                            let refuse = |e| plain(StatusCode::BAD_REQUEST, format!("{e:#}\n"));
                            Ok::<_, Infallible>(reply.unwrap_or_else(refuse))
                        });
                        let stream = TokioIo::new(stream);
                        connections.push(http1::Builder::new().serve_connection(stream, service));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    }
                },
                // Errors of a connection concern only its browser.
                Some(_) = connections.next(), if !connections.is_empty() => {}
            }
        }
    }

    async fn reply(&self, request: Request<Incoming>, bound: SocketAddr) -> Result<Reply> {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        if !host.is_some_and(|host| is_own_host(host, bound)) {
            return Err(anyhow!(
                "open the page as http://{bound} or http://localhost:{}",
                bound.port()
            ));
        }
        // Refuses requests from pages of other sites, which browsers mark with this header.
        let site = request.headers().get("sec-fetch-site");
        if site.is_some_and(|site| site != "same-origin" && site != "none") {
            return Err(anyhow!("requests from other sites are refused"));
        }
        let path = request.uri().path().to_string();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/") => Ok(typed("text/html; charset=utf-8", self.html.clone())),
            (&Method::GET, "/corrections") => {
                let corrections = self.corrections.borrow();
                let all: Vec<&Correction> = corrections.all().collect();
                Ok(typed("application/json", serde_json::to_vec(&all)?.into()))
            }
            (&Method::POST, "/decide") => {
                let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await;
                let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
                let decision: Decision = serde_json::from_slice(&body)?;
                let correction = correction(self.page, &decision)?;
                self.corrections.borrow_mut().decide(&decision.sha256, correction)?;
                Ok(typed("application/json", Bytes::from_static(b"{}")))
            }
            (&Method::GET, path) => {
                let number = path.strip_prefix("/image/").and_then(|number| number.parse().ok());
                match number.filter(|number: &usize| *number < self.page.dataset.len()) {
                    Some(number) => Ok(typed("image/jpeg", self.page.thumbnail(number)?.into())),
                    None => Ok(plain(StatusCode::NOT_FOUND, "no such page\n".into())),
                }
            }
            _ => Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "no such page\n".into())),
        }
    }
}

/// True for a `Host` header with the address that the server is bound to, or `localhost`, and its port. Another site may
/// have its name resolve to this address (DNS rebinding); for a browser, its pages are then of the same origin.
fn is_own_host(host: &str, bound: SocketAddr) -> bool {
    let Ok(host) = host.parse::<Authority>() else { return false };
    let ip = host.host().trim_matches(['[', ']']).parse::<IpAddr>();
    // A server on all addresses has any; no site's name is an address.
    let own_ip = ip.is_ok_and(|ip| ip == bound.ip() || bound.ip().is_unspecified());
    let own_name = own_ip || host.host().eq_ignore_ascii_case("localhost");
    own_name && host.port_u16().unwrap_or(80) == bound.port()
}

/// The row of a decision; `None` where it is removed.
fn correction(page: &Page, decision: &Decision) -> Result<Option<Correction>> {
    let Decision { sha256, action, label } = decision;
    let Some(action) = *action else { return Ok(None) };
    let sample = page.dataset.samples().iter().find(|sample| sample.sha256 == *sha256);
    let sample = sample.ok_or_else(|| anyhow!("no image has this digest"))?;
    let classes = page.dataset.classes();
    let label = match (action, label) {
        (Action::Keep | Action::Drop, _) => page.dataset.class_names(sample).join("|"),
        (Action::Relabel, Some(label)) if classes.contains(label) => label.clone(),
        (Action::Relabel, _) => return Err(anyhow!("the label is not one of the classes")),
    };
    let path = sample.path.display().to_string();
    Ok(Some(Correction { sha256: sha256.clone(), path, label, action }))
}

fn typed(kind: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn plain(status: StatusCode, text: String) -> Reply {
    let mut reply = typed("text/plain; charset=utf-8", text.into());
    *reply.status_mut() = status;
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_that_name_the_bound_address_are_answered() {
        let own = |host: &str, bound: &str| is_own_host(host, bound.parse().unwrap());
        for host in ["127.0.0.1:8123", "localhost:8123", "LocalHost:8123"] {
            assert!(own(host, "127.0.0.1:8123"), "{host}");
        }
        for host in [
            "rebound.example:8123",
            "localhost.rebound.example:8123",
            "127.0.0.1.rebound.example:8123",
            "127.0.0.1:8124",
            "127.0.0.2:8123",
            "localhost",
            "",
            "a b",
        ] {
            assert!(!own(host, "127.0.0.1:8123"), "{host}");
        }
        assert!(own("[::1]:8123", "[::1]:8123") && own("localhost:8123", "[::1]:8123"));
        assert!(!own("[::2]:8123", "[::1]:8123"));
        assert!(own("192.0.2.7:8123", "0.0.0.0:8123") && !own("pc.example:8123", "0.0.0.0:8123"));
        assert!(own("127.0.0.1", "127.0.0.1:80"), "browsers leave out the default port");
    }
}
