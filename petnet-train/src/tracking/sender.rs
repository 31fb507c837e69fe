//! Sends a run to its server while it is written, and never keeps it waiting.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use petnet::mlflow::{Failure, Server};

use super::run::Run;
use super::sync::sync;

/// Longest time between two looks at what is new.
const LOOK: Duration = Duration::from_secs(5);
/// Waits between tries that fail, doubled up to the second.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a finished run tries to send its rest.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that sends.
pub(super) struct Sender {
    /// Dropped to say that the run has ended.
    alive: SyncSender<()>,
    thread: JoinHandle<bool>,
}

impl Sender {
    pub(super) fn start(run: &Run, server: Server) -> std::io::Result<Self> {
        let run = run.share();
        let (alive, ended) = mpsc::sync_channel(0);
        let name = "tracking".to_string();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || send(&run, &server, &ended))?;
        Ok(Self { alive, thread })
    }

    /// Lets the thread send the rest; whether all was sent.
    pub(super) fn finish(self) -> bool {
        drop(self.alive);
        self.thread.join().unwrap_or(false)
    }
}

/// Sends until the run has ended and all is sent, or nothing more can be done.
fn send(run: &Run, server: &Server, ended: &Receiver<()>) -> bool {
    let mut wait = Duration::ZERO;
    let mut failing = false;
    let mut end: Option<Instant> = None;
    loop {
        if end.is_none() {
            // Nothing is ever sent on the channel: it tells time, and when the other end is gone.
            let pause = if wait.is_zero() { LOOK } else { wait };
            if ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                end = Some(Instant::now() + PATIENCE);
            }
        } else {
            std::thread::sleep(wait.min(Duration::from_secs(2)));
        }
        // The writer's own copy of the description is the newest.
        let now = run.fresh().unwrap_or_else(|_| run.share());
        match sync(&now, server) {
            Ok(_) if end.is_some() => return true,
            Ok(_) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(server = server.uri(), "the tracking server is back");
                }
                wait = Duration::ZERO;
            }
            Err(error) => {
                let transient = error.downcast_ref::<Failure>().is_some_and(Failure::is_transient);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "tracking: the run is kept here, to be sent later"
                    );
                }
                if !transient || end.is_some_and(|end| Instant::now() > end) {
                    return false;
                }
                wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
            }
        }
    }
}
