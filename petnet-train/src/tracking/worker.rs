//! Threads beside a training: one sends the run, another samples system metrics.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{Builder, JoinHandle};

/// Handle of a thread that works until the run has ended.
pub(super) struct Worker<T> {
    /// Dropped to signal that the run has ended.
    alive: SyncSender<()>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread. Nothing is sent over its channel, which is closed when the run ends.
    pub(super) fn start(
        name: &str,
        work: impl FnOnce(&Receiver<()>) -> T + Send + 'static,
    ) -> std::io::Result<Self> {
        let (alive, ended) = mpsc::sync_channel(0);
        let thread = Builder::new().name(name.into()).spawn(move || work(&ended))?;
        Ok(Self { alive, thread })
    }

    /// Waits for the thread to end; `None` after a panic, which must not stop a training.
    pub(super) fn finish(self) -> Option<T> {
        drop(self.alive);
        self.thread.join().ok()
    }
}
