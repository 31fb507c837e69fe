//! Sockets and connections: accept, speak HTTP/1.1 or HTTP/2, refuse the slow, finish in order.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use crate::problem::Problem;
use crate::routes::{self, Face};
use crate::settings::Settings;
use crate::socket::{Client, Pace};
use crate::telemetry::names;
use crate::tls::Tls;

/// Bytes that a client of HTTP/2 may send before the server has read them, a stream and a connection.
const WINDOW: u32 = 128 << 10;
/// Most requests of a connection at a time.
const STREAMS: u32 = 64;

/// All listeners and their connections.
pub(crate) struct Server {
    app: Arc<App>,
    rooms: Vec<Arc<Room>>,
}

/// A listener's places for connections, in all and of each address.
struct Room {
    free: Arc<Semaphore>,
    places: usize,
    most_of_one: usize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place.
struct Place {
    room: Arc<Room>,
    address: IpAddr,
    _free: OwnedSemaphorePermit,
}

impl Room {
    fn new(settings: &Settings) -> Self {
        let places = settings.connections();
        let (free, most_of_one) = (Arc::new(Semaphore::new(places)), settings.connections_of_one());
        Self { free, places, most_of_one, addresses: Mutex::default() }
    }

    /// `None` for an address that has as many connections as it may have.
    fn enter(self: &Arc<Self>, address: IpAddr, free: OwnedSemaphorePermit) -> Option<Place> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= self.most_of_one {
            return None;
        }
        *count += 1;
        Some(Place { room: Arc::clone(self), address, _free: free })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.room.addresses.lock().unwrap_or_else(PoisonError::into_inner);
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
        Self { app, rooms: Vec::new() }
    }

    /// Accepts connections until [`Phase::Closing`](crate::app::Phase).
    pub(crate) fn listen(&mut self, listener: TcpListener, face: Face, tls: Option<Arc<Tls>>) {
        let room = Arc::new(Room::new(&self.app.settings));
        self.rooms.push(Arc::clone(&room));
        let app = Arc::clone(&self.app);
        tokio::spawn(async move {
            loop {
                let Ok(free) = Arc::clone(&room.free).acquire_owned().await else { return };
                let (stream, address) = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
                        Err(error) => {
                            // Out of file descriptors, mostly: others must close theirs first.
                            tracing::warn!(%error, "cannot accept a connection");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    },
                    () = app.closing() => return,
                };
                let Some(place) = room.enter(address, free) else {
                    counter!(names::CONNECTIONS_REFUSED_TOTAL).increment(1);
                    continue;
                };
                let connection = Connection {
                    app: Arc::clone(&app),
                    face,
                    peer: address,
                    state: Arc::new(State::new()),
                };
                let tls = tls.clone();
                tokio::spawn(async move {
                    let count = Arc::clone(&connection.app);
                    count.connections.fetch_add(1, Ordering::Relaxed);
                    connection.serve(stream, tls).await;
                    count.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(place);
                });
            }
        });
    }

    /// Lets open requests finish, for `grace` at most.
    pub(crate) async fn finish(self, grace: Duration) {
        let empty = async {
            for room in &self.rooms {
                // Every place is free once the last connection has ended.
                let _ = room.free.acquire_many(room.places as u32).await;
            }
        };
        if timeout(grace, empty).await.is_err() {
            tracing::warn!("gave up on connections that did not finish");
        }
    }
}

/// Requests of a connection.
struct State {
    begun: AtomicUsize,
    open: AtomicUsize,
    /// When the connection began, or its last request ended.
    quiet: Mutex<Instant>,
}

impl State {
    fn new() -> Self {
        let (begun, open) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { begun, open, quiet: Mutex::new(Instant::now()) }
    }

    /// Since when no request was open; `None` while one is.
    fn quiet_since(&self) -> Option<Instant> {
        let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        (self.open.load(Ordering::Acquire) == 0).then_some(quiet)
    }
}

/// An open request; also one whose client has left counts as ended when this is dropped.
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.begun.fetch_add(1, Ordering::Relaxed);
        state.open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *self.0.quiet.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Connection {
    app: Arc<App>,
    face: Face,
    peer: IpAddr,
    state: Arc<State>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<Arc<Tls>>) {
        let settings = &self.app.settings;
        let pace = Pace { pause: settings.transfer_timeout, rate: settings.min_rate };
        let client = Client::new(stream);
        let Some(tls) = tls else {
            let silent = self.run(client.io(pace)).await;
            if silent {
                client.tell(&timed_out());
            }
            return;
        };
        // Who fails the handshake, or takes too long for it, cannot be told in HTTP.
        let handshake = timeout(settings.header_timeout, tls.acceptor().accept(client.io(pace)));
        let handshake = tokio::select! {
            outcome = handshake => outcome,
            () = self.app.closing() => return,
        };
        if let Ok(Ok(stream)) = handshake {
            self.run(stream).await;
        }
    }

    /// Runs a connection; whether it was ended for a first request that did not come in time.
    async fn run<I>(&self, io: I) -> bool
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = &self.app.settings;
        let mut builder = Builder::new(TokioExecutor::new());
        // Quiet connections are ended below, so that one rule holds for both protocols.
        builder.http1().header_read_timeout(None).max_buf_size(settings.max_header.max(8192));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(settings.max_header).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buf_size(WINDOW as usize)
            .keep_alive_interval(settings.header_timeout)
            .keep_alive_timeout(settings.header_timeout);
        let service = service_fn(|request| self.answer(request));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            // The client's protocol errors are its own affair.
            _ = connection.as_mut() => return false,
            () = self.quiet_for(settings.header_timeout) => {
                if self.state.begun.load(Ordering::Relaxed) == 0 {
                    return true;
                }
            }
            () = self.app.closing() => (),
        }
        // No further request is taken; those that are open, and what they answer, finish.
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => (),
            () = self.quiet_for(settings.header_timeout) => (),
        }
        false
    }

    /// Waits until no request was open for so long.
    async fn quiet_for(&self, limit: Duration) {
        loop {
            let since = self.state.quiet_since().unwrap_or_else(Instant::now);
            if since.elapsed() >= limit {
                return;
            }
            sleep_until((since + limit).into()).await;
        }
    }

    fn answer(
        &self,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
        let open = Open::new(&self.state);
        let (app, face, peer) = (Arc::clone(&self.app), self.face, self.peer);
        async move {
            let reply = routes::handle(&app, face, peer, request).await;
            drop(open);
            Ok(reply)
        }
    }
}

/// The answer to a client that is slow with its headers.
fn timed_out() -> String {
    let detail = "the headers did not arrive in time";
    let body = Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail).json().to_string();
    format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}
