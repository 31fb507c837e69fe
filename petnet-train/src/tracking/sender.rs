//! Sends a run to its server from a separate thread while it is recorded, without delaying the training.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use petnet::mlflow::{RequestError, Server};

use super::run::Run;
use super::sync::sync;
use super::worker::Worker;

/// Time between two transfers while all goes well.
const SEND_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest and longest wait after a failure; it doubles with each one.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// Longest time in which the rest of a finished run is sent.
const FINAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the sending thread, which returns true if everything was sent.
pub(super) fn start(run: &Run, server: Server) -> std::io::Result<Worker<bool>> {
    let run = run.share();
    Worker::start("tracking", move |ended| send(&run, &server, ended))
}

/// Sends until the run has ended and everything is sent; false after a failure that is permanent or lasts too long.
fn send(run: &Run, server: &Server, ended: &Receiver<()>) -> bool {
    let mut wait = Duration::ZERO;
    let mut failing = false;
    let mut end: Option<Instant> = None;
    loop {
        if end.is_none() {
            // Nothing is sent over the channel: it serves as a timer that ends early when the run ends.
            let pause = if wait.is_zero() { SEND_INTERVAL } else { wait };
            if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                end = Some(Instant::now() + FINAL_TIMEOUT);
            }
        } else {
            std::thread::sleep(wait.min(Duration::from_secs(2)));
        }
        // The status is read from the file, which the thread that records the run updates.
        let now = run.reread().unwrap_or_else(|_| run.share());
        match sync(&now, server) {
            Ok(_) if end.is_some() => return true,
            Ok(_) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(server = server.uri(), "the tracking server is reachable again");
                }
                wait = Duration::ZERO;
            }
            Err(error) => {
                let transient =
                    error.downcast_ref::<RequestError>().is_some_and(RequestError::is_transient);
                let error = format!("{error:#}");
                if !transient {
                    tracing::warn!(
                        error,
                        "tracking: sending has ended; the run is recorded locally, for `petnet-train runs sync`"
                    );
                    return false;
                }
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error,
                        "tracking: the server is unreachable; the run is recorded locally and sent later"
                    );
                }
                if end.is_some_and(|end| Instant::now() > end) {
                    return false;
                }
                wait = (wait * 2).clamp(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
            }
        }
    }
}
