//! A client's socket, with a limit on how slowly the client may read responses, and a record of the connection's activity.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::buffer::TransferLimits;

/// First bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI";

/// The activity of a connection.
pub(crate) struct Activity(Mutex<ActivityState>);

pub(crate) struct ActivityState {
    pub(crate) has_requests: bool,
    /// Number of requests without a response, and of writes that wait for the client to read.
    open: usize,
    /// Time since which nothing is open, later by the time that writes since then take at the minimum rate.
    pub(crate) idle_since: Instant,
}

impl Activity {
    pub(crate) fn new() -> Self {
        let idle_since = Instant::now();
        Self(Mutex::new(ActivityState { has_requests: false, open: 0, idle_since }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ActivityState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since which the connection is idle; `None` while a request or a write is open.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.open == 0).then_some(state.idle_since)
    }

    pub(crate) fn open(self: &Arc<Self>) -> OpenGuard {
        self.state().open += 1;
        OpenGuard(Arc::clone(self))
    }
}

/// Keeps a request or a write open until it is dropped, which happens too when the client disconnects.
pub(crate) struct OpenGuard(Arc<Activity>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.idle_since = Instant::now();
    }
}

/// A handle to a client's socket; clones share one descriptor.
#[derive(Clone)]
pub(crate) struct SocketHandle {
    stream: Arc<TcpStream>,
    http2: Arc<AtomicBool>,
    activity: Arc<Activity>,
}

impl SocketHandle {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        // Nagle's algorithm would delay small responses.
        let _ = stream.set_nodelay(true);
        Self { stream: Arc::new(stream), http2: Arc::default(), activity }
    }

    /// A reader and writer that ends the connection when the client reads too slowly.
    pub(crate) fn io(&self, limits: TransferLimits) -> SocketIo {
        SocketIo {
            socket: self.clone(),
            limits,
            protocol_detected: false,
            written: 0,
            total_wait: Duration::ZERO,
            current_wait: None,
        }
    }

    /// Writes text to a client that does not use HTTP/2, without waiting: what the socket's buffer cannot take is dropped.
    pub(crate) fn send_text(&self, text: &str) {
        if !self.http2.load(Ordering::Relaxed) {
            // A client this slow may have closed the connection.
            let _ = self.stream.try_write(text.as_bytes());
        }
    }
}

/// The socket as hyper and rustls read and write it.
pub(crate) struct SocketIo {
    socket: SocketHandle,
    limits: TransferLimits,
    /// True once the protocol is known from the first bytes.
    protocol_detected: bool,
    written: u64,
    /// Total time for which writes have waited.
    total_wait: Duration,
    /// The current wait: its start, the timer that ends it, and the guard that lets it count as activity.
    current_wait: Option<(Instant, Pin<Box<Sleep>>, OpenGuard)>,
}

impl SocketIo {
    /// Waits for the socket to take more, and fails once the pause or the average rate is exceeded.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let remaining = self.limits.remaining(self.written, self.total_wait);
        let activity = &self.socket.activity;
        let begin = || (Instant::now(), Box::pin(tokio::time::sleep(remaining)), activity.open());
        let (_, timer, _) = self.current_wait.get_or_insert_with(begin);
        ready!(timer.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the answer is read too slowly"))
    }
}

impl AsyncRead for SocketIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.stream.poll_read_ready(context))?;
            match self.socket.stream.try_read(to.initialize_unfilled()) {
                Ok(length) => {
                    if !self.protocol_detected && length > 0 {
                        self.protocol_detected = true;
                        let first = &to.initialize_unfilled()[..length];
                        let http2 = first.starts_with(PREFACE);
                        self.socket.http2.store(http2, Ordering::Relaxed);
                    }
                    to.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for SocketIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.stream.poll_write_ready(context) {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => return self.poll_wait(context).map(Err),
            }
            match self.socket.stream.try_write(bytes) {
                Ok(length) => {
                    self.written += length as u64;
                    if let Some((since, ..)) = self.current_wait.take() {
                        self.total_wait += since.elapsed();
                    }
                    // A client that reads at the minimum rate is not idle; one that only answers HTTP/2's pings is.
                    let mut state = self.socket.activity.state();
                    let moved = state.idle_since + self.limits.time_at_min_rate(length as u64);
                    state.idle_since = moved.min(Instant::now());
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error means that the client has closed the connection already.
        let _ = rustix::net::shutdown(&*self.socket.stream, rustix::net::Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
