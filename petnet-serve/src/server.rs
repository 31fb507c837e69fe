//! Sockets and connections: accept, speak HTTP/1.1 or HTTP/2, refuse the slow, finish in order.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::app::App;
use crate::problem::Problem;
use crate::routes;

/// Which paths a listener shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Face {
    /// All of them.
    Api,
    /// `/metrics` alone.
    Metrics,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// All listeners and their connections.
pub(crate) struct Server {
    app: Arc<App>,
    /// A listener's places for connections.
    rooms: Vec<Arc<Semaphore>>,
}

impl Server {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { app, rooms: Vec::new() }
    }

    /// Accepts connections until [`Phase::Closing`](crate::app::Phase).
    pub(crate) fn listen(&mut self, listener: TcpListener, face: Face, tls: Option<TlsAcceptor>) {
        let app = Arc::clone(&self.app);
        let room = Arc::new(Semaphore::new(app.settings.max_connections));
        self.rooms.push(Arc::clone(&room));
        tokio::spawn(async move {
            loop {
                let place = Arc::clone(&room).acquire_owned().await;
                let (stream, peer) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            // Out of file descriptors, mostly: others must close theirs first.
                            tracing::warn!(%error, "cannot accept a connection");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    },
                    () = app.closing() => return,
                };
                let (app, peer) = (Arc::clone(&app), peer.ip());
                let connection = Connection { app, face, peer, requests: Arc::default() };
                let tls = tls.clone();
                tokio::spawn(async move {
                    connection.serve(stream, tls).await;
                    drop(place);
                });
            }
        });
    }

    /// Lets open requests finish, for `grace` at most.
    pub(crate) async fn finish(self, grace: Duration) {
        let all = self.app.settings.max_connections as u32;
        let empty = async {
            for room in &self.rooms {
                // Every place is free once the last connection has ended.
                let _ = room.acquire_many(all).await;
            }
        };
        if timeout(grace, empty).await.is_err() {
            tracing::warn!("gave up on connections that did not finish");
        }
    }
}

struct Connection {
    app: Arc<App>,
    face: Face,
    peer: IpAddr,
    requests: Arc<AtomicUsize>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Small answers must not wait for the next packet.
        let _ = stream.set_nodelay(true);
        let patience = self.app.settings.header_timeout;
        let Some(tls) = tls else {
            return match self.while_open(timeout(patience, speaks_http2(&stream))).await {
                Some(Ok(Ok(true))) => self.http2(TokioIo::new(stream)).await,
                Some(Ok(Ok(false))) => self.http1(stream).await,
                Some(Err(_)) => tell_timeout(&stream),
                Some(Ok(Err(_))) | None => (),
            };
        };
        // Who fails the handshake, or takes too long for it, cannot be told in HTTP.
        let handshake = self.while_open(timeout(patience, tls.accept(stream))).await;
        if let Some(Ok(Ok(stream))) = handshake {
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                self.http2(TokioIo::new(stream)).await;
            } else {
                // A timeout ends the connection; there is no socket to write plain text on.
                let _ = self.http1_on(TokioIo::new(stream)).await;
            }
        }
    }

    async fn http1(self, stream: TcpStream) {
        let requests = Arc::clone(&self.requests);
        let spare = std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned();
        let outcome = self.http1_on(TokioIo::new(stream)).await;
        let silent = requests.load(Ordering::Relaxed) == 0;
        if let (Err(error), Ok(spare), true) = (outcome, spare, silent)
            && error.is_timeout()
        {
            let mut socket = std::net::TcpStream::from(spare);
            let _ = socket.write_all(timed_out().as_bytes());
        }
    }

    async fn http1_on<I>(self, io: I) -> hyper::Result<()>
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let settings = &self.app.settings;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(settings.max_header.max(8192))
            .serve_connection(io, service_fn(|request| self.answer(request)));
        self.until_closing(connection).await
    }

    async fn http2<I>(self, io: I)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let settings = &self.app.settings;
        let header = u32::try_from(settings.max_header).unwrap_or(u32::MAX);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(header)
            .max_concurrent_streams(128)
            .keep_alive_interval(settings.header_timeout)
            .keep_alive_timeout(settings.header_timeout)
            .serve_connection(io, service_fn(|request| self.answer(request)));
        // The client's protocol errors are its own affair.
        let _ = self.until_closing(connection).await;
    }

    /// `None` when [`Phase::Closing`](crate::app::Phase) comes first.
    async fn while_open<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            outcome = work => Some(outcome),
            () = self.app.closing() => None,
        }
    }

    /// Runs a connection; from [`Phase::Closing`](crate::app::Phase) on it takes no further request.
    async fn until_closing<C: GracefulConnection>(&self, connection: C) -> Result<(), C::Error> {
        let mut connection = pin!(connection);
        if let Some(outcome) = self.while_open(connection.as_mut()).await {
            return outcome;
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    }

    fn answer(
        &self,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> impl Future<Output = Result<routes::Reply, Infallible>> + use<> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (app, face, peer) = (Arc::clone(&self.app), self.face, self.peer);
        async move { Ok(routes::handle(&app, face, peer, request).await) }
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(&first[..seen]) {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // `peek` answers at once while it has a byte; look again a little later.
        sleep(Duration::from_millis(5)).await;
    }
}

fn tell_timeout(stream: &TcpStream) {
    // Best effort: a client this slow may be gone.
    let _ = stream.try_write(timed_out().as_bytes());
}

/// hyper closes the connection of a client that is slow with its headers, and says nothing.
fn timed_out() -> String {
    let detail = "the headers did not arrive in time";
    let body = Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail).json().to_string();
    format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}
