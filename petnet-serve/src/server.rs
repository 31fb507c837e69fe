//! Listeners and connections: accepts them within limits, serves HTTP/1.1 and HTTP/2, ends idle ones, and drains at the end.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, sleep_until, timeout};

use crate::app::App;
use crate::body::Body;
use crate::buffer::TransferLimits;
use crate::problem::{Kind, Problem};
use crate::routes::{self, ListenerKind};
use crate::settings::Settings;
use crate::socket::{Activity, SocketHandle};
use crate::telemetry::names;
use crate::tls::Tls;

/// Flow-control window of an HTTP/2 stream and of a connection, in bytes.
const FLOW_CONTROL_WINDOW: u32 = 128 << 10;
/// Maximum number of concurrent HTTP/2 streams of a connection.
const MAX_STREAMS: u32 = 64;

/// All listeners and their connections.
pub(crate) struct Server {
    app: Arc<App>,
    limits: Vec<Arc<ConnectionLimit>>,
}

/// Limits of a listener's connections: in total, and of each IP address.
struct ConnectionLimit {
    free: Arc<Semaphore>,
    total: usize,
    per_address: usize,
    /// Open connections by IP address.
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// Counts a connection until it is dropped.
struct ConnectionGuard {
    limit: Arc<ConnectionLimit>,
    address: IpAddr,
    _free: OwnedSemaphorePermit,
}

impl ConnectionLimit {
    fn new(settings: &Settings) -> Self {
        let total = settings.connections();
        let (free, per_address) = (Arc::new(Semaphore::new(total)), settings.connections_of_one());
        Self { free, total, per_address, addresses: Mutex::default() }
    }

    /// `None` where the address has reached its limit.
    fn acquire(
        self: &Arc<Self>,
        address: IpAddr,
        free: OwnedSemaphorePermit,
    ) -> Option<ConnectionGuard> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(ConnectionGuard { limit: Arc::clone(self), address, _free: free })
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut addresses = self.limit.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

impl Server {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app, limits: Vec::new() }
    }

    /// Accepts connections until [`Phase::Closing`](crate::app::Phase::Closing).
    pub(crate) fn listen(
        &mut self,
        listener: TcpListener,
        kind: ListenerKind,
        tls: Option<Arc<Tls>>,
    ) {
        let limit = Arc::new(ConnectionLimit::new(&self.app.settings));
        self.limits.push(Arc::clone(&limit));
        let app = Arc::clone(&self.app);
        tokio::spawn(async move {
            loop {
                let Ok(free) = Arc::clone(&limit.free).acquire_owned().await else { return };
                let (stream, address) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
                        Err(error) => {
                            // Mostly because no file descriptor is free until another connection ends.
                            tracing::warn!(%error, "cannot accept a connection");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    },
                    () = app.wait_for_closing() => return,
                };
                let Some(guard) = limit.acquire(address, free) else {
                    counter!(names::CONNECTIONS_REFUSED_TOTAL).increment(1);
                    continue;
                };
                let connection = Connection {
                    app: Arc::clone(&app),
                    kind,
                    peer: address,
                    activity: Arc::new(Activity::new()),
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    let app = Arc::clone(&connection.app);
                    app.connections.fetch_add(1, Ordering::Relaxed);
                    connection.serve(stream, tls).await;
                    app.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(guard);
                });
            }
        });
    }

    /// Waits until all connections have ended, at most for `grace`.
    pub(crate) async fn finish(self, grace: Duration) {
        let all_ended = async {
            for limit in &self.limits {
                // All permits are free once the last connection has ended.
                let _ = limit.free.acquire_many(limit.total as u32).await;
            }
        };
        if timeout(grace, all_ended).await.is_err() {
            tracing::warn!("connections did not finish within the grace period");
        }
    }
}

struct Connection {
    app: Arc<App>,
    kind: ListenerKind,
    peer: IpAddr,
    activity: Arc<Activity>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        let settings = &self.app.settings;
        let limits = TransferLimits::of(settings);
        let socket = SocketHandle::new(stream, Arc::clone(&self.activity));
        let Some(tls) = tls else {
            let timed_out = self.run(socket.io(limits)).await;
            if timed_out {
                socket.send_text(&request_timeout());
            }
            return;
        };
        // A client whose handshake fails or times out cannot read an HTTP response. Nor does a late first request behind TLS
        // get a 408: hyper owns the TLS stream, and plain text on the socket would not be a TLS record.
        let handshake = timeout(settings.header_timeout, tls.acceptor().accept(socket.io(limits)));
        let handshake = tokio::select! {
            outcome = handshake => outcome,
            () = self.app.wait_for_closing() => return,
        };
        if let Ok(Ok(stream)) = handshake {
            self.run(stream).await;
        }
    }

    /// Serves a connection, and returns true if it ended because its first request did not arrive in time.
    async fn run<I>(&self, io: I) -> bool
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = &self.app.settings;
        let mut builder = Builder::new(TokioExecutor::new());
        // Idle connections are ended below, by one rule for both protocols.
        builder.http1().header_read_timeout(None).max_buf_size(settings.max_header.max(8192));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(settings.max_header).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(FLOW_CONTROL_WINDOW)
            .initial_connection_window_size(FLOW_CONTROL_WINDOW)
            .max_send_buf_size(FLOW_CONTROL_WINDOW as usize)
            .keep_alive_interval(settings.header_timeout)
            .keep_alive_timeout(settings.header_timeout);
        let service = service_fn(|request| self.respond(request));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            // Protocol errors of the client are not logged.
            _ = connection.as_mut() => return false,
            () = self.idle_for(settings.header_timeout) => {
                if !self.activity.state().has_requests {
                    return true;
                }
            }
            () = self.app.wait_for_closing() => (),
        }
        // No further request is accepted; open ones finish and their responses are sent. The time limit begins anew: HTTP/2's
        // shutdown takes a round trip.
        self.activity.state().idle_since = Instant::now();
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => (),
            () = self.idle_for(settings.header_timeout) => (),
        }
        false
    }

    /// Waits until the connection has been idle for `limit`.
    async fn idle_for(&self, limit: Duration) {
        loop {
            let since = self.activity.idle_since().unwrap_or_else(Instant::now);
            if since.elapsed() >= limit {
                return;
            }
            sleep_until((since + limit).into()).await;
        }
    }

    fn respond(
        &self,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
        self.activity.state().has_requests = true;
        let open = self.activity.open();
        let (app, kind, peer) = (Arc::clone(&self.app), self.kind, self.peer);
        async move {
            let response = routes::respond(&app, kind, peer, request).await;
            drop(open);
            Ok(response)
        }
    }
}

/// The response to a client whose first request's headers did not arrive in time.
fn request_timeout() -> String {
    let detail = "the headers did not arrive in time";
    let body = Problem::new(StatusCode::REQUEST_TIMEOUT, Kind::Timeout, detail).json().to_string();
    format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}
