//! A client's socket, with a limit on how slowly the client may read responses.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::buffer::TransferLimits;

/// First bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI";

/// A handle to a client's socket; clones share one descriptor.
#[derive(Clone)]
pub(crate) struct SocketHandle {
    stream: Arc<TcpStream>,
    http2: Arc<AtomicBool>,
}

impl SocketHandle {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Nagle's algorithm would delay small responses.
        let _ = stream.set_nodelay(true);
        Self { stream: Arc::new(stream), http2: Arc::default() }
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
    /// The current wait: its start, and the timer that ends it.
    current_wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl SocketIo {
    /// Waits for the socket to take more, and fails once the pause or the average rate is exceeded.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let remaining = self.limits.remaining(self.written, self.total_wait);
        let begin = || (Instant::now(), Box::pin(tokio::time::sleep(remaining)));
        let (_, timer) = self.current_wait.get_or_insert_with(begin);
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
                    if let Some((since, _)) = self.current_wait.take() {
                        self.total_wait += since.elapsed();
                    }
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
