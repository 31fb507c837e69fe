//! Fetches images by URL from the hosts that the operator allows.
//!
//! A service that fetches URLs of clients can be made to send requests to hosts that only the service can reach (server-side
//! request forgery). Three rules prevent that: the parsed URL must match an entry of the allow list; every IP address that
//! its name resolves to must be globally reachable; and the connection uses an address that passed, without a second
//! resolution, which would permit DNS rebinding. The rules apply to redirects as well.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_ENCODING, HeaderMap, LOCATION};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::{Host, Url};

use crate::buffer::{Buffer, TransferLimits};
use crate::hosts::{AllowedHosts, AllowedUrl, FetchError, is_global};
use crate::memory::Claim;
use crate::problem::{Kind, Problem};
use crate::settings::Settings;

/// Maximum number of redirects.
const MAX_REDIRECTS: usize = 3;
/// Maximum length of a URL in bytes. Presigned URLs of object stores have up to about 2,500.
const MAX_URL: usize = 8 << 10;
/// Maximum number of a name's IP addresses that are tried.
const MAX_ADDRESSES: usize = 4;
/// Size of a connection's read buffer in bytes, which also limits the response headers.
const READ_BUFFER: usize = 64 << 10;

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        const UNREACHABLE_DETAIL: &str = "no connection to the host of `url` could be made";
        let (not_allowed, failed) = (Kind::UrlNotAllowed, Kind::UrlFailed);
        let (refused, gateway) = (StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_GATEWAY);
        let (status, kind, detail) = match error {
            FetchError::Malformed(detail) => return Self::bad_request(detail),
            FetchError::NotListed => {
                let detail = "images are not fetched from the host, port or scheme of `url`";
                (StatusCode::BAD_REQUEST, not_allowed, detail)
            }
            // One text for both, so that clients cannot find out which internal names exist.
            FetchError::NotPublic => (gateway, not_allowed, UNREACHABLE_DETAIL),
            FetchError::Unreachable => (gateway, failed, UNREACHABLE_DETAIL),
            FetchError::RedirectNotListed => {
                (refused, not_allowed, "`url` redirects to an address that is not allowed")
            }
            FetchError::TooManyRedirects => (refused, failed, "`url` redirects too often"),
            FetchError::Status(status) => {
                let code = if status.is_server_error() { gateway } else { refused };
                let detail = format!("the server of `url` answered {}", status.as_u16());
                return Self::new(code, failed, detail);
            }
            FetchError::Encoded => {
                (refused, failed, "the server of `url` answered with a Content-Encoding")
            }
            FetchError::TooLarge(max_bytes) => {
                let detail = format!("the image at `url` is larger than {max_bytes} bytes");
                return Self::too_large(detail);
            }
            FetchError::Broken => (gateway, failed, "the connection to the host of `url` broke"),
            FetchError::TimedOut => {
                let detail = "the image at `url` did not arrive in time";
                (StatusCode::GATEWAY_TIMEOUT, Kind::UrlTimeout, detail)
            }
            FetchError::Busy => return Self::overloaded(1),
        };
        Self::new(status, kind, detail)
    }
}

/// Name resolution and TCP connections; tests use another implementation.
#[async_trait]
trait Network: Send + Sync + 'static {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

struct SystemNetwork;

#[async_trait]
impl Network for SystemNetwork {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// Fetches images by URL.
pub(crate) struct Fetcher {
    hosts: AllowedHosts,
    settings: Settings,
    network: Arc<dyn Network>,
    tls: TlsConnector,
    permits: Arc<Semaphore>,
}

/// A response, with the task of the connection that its body is read from.
struct ConnectedResponse {
    response: Response<Incoming>,
    /// Dropping it ends the task.
    _connection: JoinSet<hyper::Result<()>>,
}

impl Fetcher {
    /// Fetches from `hosts`, with the limits of the settings.
    /// Errors: when TLS cannot be set up.
    pub(crate) fn new(hosts: AllowedHosts, settings: Settings) -> Result<Self> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self::with_network(hosts, settings, Arc::new(SystemNetwork), roots)
    }

    fn with_network(
        hosts: AllowedHosts,
        settings: Settings,
        network: Arc<dyn Network>,
        roots: RootCertStore,
    ) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let permits = Arc::new(Semaphore::new(settings.max_fetches.min(Semaphore::MAX_PERMITS)));
        Ok(Self { hosts, settings, network, tls: Arc::new(config).into(), permits })
    }

    /// The image at a URL, with the claim on its memory.
    ///
    /// # Errors
    /// - 400 for a URL that is malformed or not on the list.
    /// - 413 for an image that is too large.
    /// - 422 for a status other than 200 or 5xx, a response with a Content-Encoding, and a redirect that is not followed.
    /// - 502 when the host cannot be reached, its name resolves to an address that is not public, the connection breaks,
    ///   or the status is 5xx.
    /// - 503 when no memory is free, or no permit is free in time.
    /// - 504 when the image does not arrive in time.
    pub(crate) async fn fetch(
        &self,
        url: &str,
        buffer: Buffer<'_>,
    ) -> Result<(Bytes, Claim), Problem> {
        if url.len() > MAX_URL {
            return Err(FetchError::Malformed("`url` is too long").into());
        }
        let url = Url::parse(url).map_err(|_| FetchError::Malformed("`url` is no absolute URL"))?;
        let target = self.hosts.check(url)?;
        let began = tokio::time::Instant::now();
        let (queued, end) =
            (began + self.settings.fetch_header_timeout, began + self.settings.fetch_timeout);
        let permit = timeout_at(queued.min(end), Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(FetchError::Busy)?;
        let image = self.receive(target, Arc::new(permit), buffer);
        timeout_at(end, image).await.map_err(|_| FetchError::TimedOut)?
    }

    async fn receive(
        &self,
        target: AllowedUrl,
        permit: Arc<OwnedSemaphorePermit>,
        mut buffer: Buffer<'_>,
    ) -> Result<(Bytes, Claim), Problem> {
        let connected = timeout(self.settings.fetch_header_timeout, self.follow(target, &permit));
        let ConnectedResponse { response, _connection } =
            connected.await.map_err(|_| FetchError::TimedOut)??;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()).into());
        }
        if is_encoded(response.headers()) {
            return Err(FetchError::Encoded.into());
        }
        let mut body = response.into_body();
        let max_bytes = self.settings.max_body;
        if body.size_hint().lower() > max_bytes as u64 {
            return Err(FetchError::TooLarge(max_bytes).into());
        }
        let limits = TransferLimits::of(&self.settings);
        let (began, mut received) = (Instant::now(), 0);
        loop {
            let limit = limits.remaining(received as u64, began.elapsed());
            let frame = timeout(limit, body.frame()).await.map_err(|_| FetchError::TimedOut)?;
            let Some(frame) = frame else { return Ok(buffer.finish()) };
            let Ok(data) = frame.map_err(|_| FetchError::Broken)?.into_data() else { continue };
            received += data.len();
            if received > max_bytes {
                return Err(FetchError::TooLarge(max_bytes).into());
            }
            buffer.push(&data)?;
        }
    }

    /// Follows redirects; returns the first response that is none.
    async fn follow(
        &self,
        mut target: AllowedUrl,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Result<ConnectedResponse, FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let connected = self.send(&target, permit).await?;
            let Some(location) = location(&connected.response) else { return Ok(connected) };
            let url = target.url.join(location).map_err(|_| FetchError::RedirectNotListed)?;
            target = self.hosts.check(url).map_err(|_| FetchError::RedirectNotListed)?;
        }
        Err(FetchError::TooManyRedirects)
    }

    async fn send(
        &self,
        target: &AllowedUrl,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Result<ConnectedResponse, FetchError> {
        let request = target.request()?;
        let stream = self.connect(target, permit).await?;
        if target.url.scheme() == "http" {
            return send_request(stream, request).await;
        }
        let stream = self.tls.connect(target.server_name()?, stream).await.map_err(|error| {
            tracing::debug!(host = %target.host, %error, "TLS with the host of an image failed");
            FetchError::Unreachable
        })?;
        send_request(stream, request).await
    }

    async fn connect(
        &self,
        target: &AllowedUrl,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Result<TcpStream, FetchError> {
        let addresses = match &target.host {
            Host::Domain(name) => self.resolve(name, permit).await?,
            Host::Ipv4(ip) => vec![IpAddr::from(*ip)],
            Host::Ipv6(ip) => vec![IpAddr::from(*ip)],
        };
        // An unresponsive address must leave time for the others.
        let connect_timeout = self.settings.fetch_header_timeout / addresses.len().max(1) as u32;
        let mut last_error = FetchError::Unreachable;
        for ip in addresses {
            let address = SocketAddr::new(ip, target.port);
            match timeout(connect_timeout, self.network.connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    tracing::debug!(host = %target.host, %address, %error, "no connection");
                }
                Err(_) => last_error = FetchError::TimedOut,
            }
        }
        Err(last_error)
    }

    /// Resolves a name once; all of its addresses must be public.
    async fn resolve(
        &self,
        name: &str,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Vec<IpAddr>, FetchError> {
        let (network, host, permit) =
            (Arc::clone(&self.network), name.to_string(), Arc::clone(permit));
        // The system's resolver cannot be cancelled: a resolution that outlasts its fetch keeps the permit, which limits the
        // number of threads that wait for an unresponsive name server.
        let resolved = tokio::spawn(async move {
            let addresses = network.resolve(&host).await;
            drop(permit);
            addresses
        });
        let mut addresses = match resolved.await {
            Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
            Ok(_) | Err(_) => return Err(FetchError::Unreachable),
        };
        if !addresses.iter().all(|ip| is_global(*ip)) {
            tracing::warn!(
                host = name,
                "the name of an allowed host resolves to an address that is not public"
            );
            return Err(FetchError::NotPublic);
        }
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }
}

/// Sends a request on a connection of its own.
async fn send_request<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<ConnectedResponse, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut client = http1::Builder::new();
    client.max_buf_size(READ_BUFFER);
    let opened = client.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = opened.map_err(|_| FetchError::Broken)?;
    let mut task = JoinSet::new();
    task.spawn(connection);
    let response = sender.send_request(request).await.map_err(|_| FetchError::Broken)?;
    Ok(ConnectedResponse { response, _connection: task })
}

/// The target of a redirect.
fn location(response: &Response<Incoming>) -> Option<&str> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    response.headers().get(LOCATION).filter(|_| redirects)?.to_str().ok()
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let identity = |coding: &[u8]| coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    !headers.get_all(CONTENT_ENCODING).iter().all(|coding| identity(coding.as_bytes()))
}

#[cfg(test)]
mod tests;
