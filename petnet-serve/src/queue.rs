//! A model's places, in which images wait to be decoded and classified, and the line of those that wait for a place.
//!
//! Each model has places of its own, so that many images for one do not keep those for another waiting. Batch callers share a
//! quarter of a model's places: an image of an interactive caller has at most so many of theirs before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;
use crate::standing::Priority;
use crate::telemetry::names;

/// Images in their places that make no progress for so long are stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Batch callers may take one of so many places.
const BATCH_SHARE: usize = 4;

/// A model's places.
pub(crate) struct Queue {
    name: String,
    places: Arc<Semaphore>,
    /// Of batch callers, taken beside a place.
    batch: Arc<Semaphore>,
    capacity: usize,
    /// Images of interactive callers that wait for a place.
    line: AtomicUsize,
    /// Those of batch callers.
    batch_line: AtomicUsize,
    /// Longest wait for a place.
    turn: Duration,
    progress: Progress,
    pace: Pace,
}

/// Number of images in their places, and when one of them last made progress.
struct Progress {
    start: Instant,
    active: AtomicUsize,
    /// Milliseconds from the start.
    last: AtomicU64,
}

impl Progress {
    fn note(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Moving mean of the time that an image takes.
struct Pace {
    start: Instant,
    /// Nanoseconds; 0 before the first image.
    mean: AtomicU64,
    /// End of the last batch, in nanoseconds from the start.
    ended: AtomicU64,
}

impl Pace {
    fn get(&self) -> Duration {
        Duration::from_nanos(self.mean.load(Ordering::Relaxed))
    }

    /// Notes the end of a batch, whose first image began to be decoded at `began`. While images wait, the time counts from the
    /// end of the last batch: decoding, or another model, may be what takes it.
    fn note(&self, began: Instant, images: usize) {
        let now = self.start.elapsed().as_nanos() as u64;
        let began = began.saturating_duration_since(self.start).as_nanos() as u64;
        let since = self.ended.swap(now, Ordering::Relaxed).max(began);
        let each = now.saturating_sub(since) / images as u64;
        let old = self.mean.load(Ordering::Relaxed);
        self.mean.store(if old == 0 { each } else { (old * 7 + each) / 8 }, Ordering::Relaxed);
    }
}

/// The right of one image to be decoded and classified.
pub(crate) struct Place {
    queue: Arc<Queue>,
    _permit: OwnedSemaphorePermit,
    _batch: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn new(
        queue: &Arc<Queue>,
        permit: OwnedSemaphorePermit,
        batch: Option<OwnedSemaphorePermit>,
    ) -> Self {
        if queue.progress.active.fetch_add(1, Ordering::Relaxed) == 0 {
            queue.progress.note();
        }
        Self { queue: Arc::clone(queue), _permit: permit, _batch: batch }
    }

    /// Notes that the image is decoded.
    pub(crate) fn note_progress(&self) {
        self.queue.progress.note();
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.progress.note();
        self.queue.progress.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One image more in the line, for as long as it waits.
struct Waiting<'a> {
    line: &'a AtomicUsize,
    ended: bool,
}

impl<'a> Waiting<'a> {
    fn new(line: &'a AtomicUsize) -> Self {
        line.fetch_add(1, Ordering::Relaxed);
        Self { line, ended: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.line.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            // Its client has left.
            counter!(names::PREDICTIONS_ABANDONED_TOTAL).increment(1);
        }
    }
}

impl Queue {
    /// Places for so many images of the model of that name; who would wait for one longer than `turn` is refused.
    pub(crate) fn new(name: &str, capacity: usize, turn: Duration) -> Self {
        let start = Instant::now();
        Self {
            name: name.into(),
            places: Arc::new(Semaphore::new(capacity)),
            batch: Arc::new(Semaphore::new(capacity.div_ceil(BATCH_SHARE))),
            capacity,
            line: AtomicUsize::new(0),
            batch_line: AtomicUsize::new(0),
            turn,
            progress: Progress { start, active: AtomicUsize::new(0), last: AtomicU64::new(0) },
            pace: Pace { start, mean: AtomicU64::new(0), ended: AtomicU64::new(0) },
        }
    }

    /// Refuses a request before its body is read, when its turn would come too late.
    ///
    /// # Errors
    /// 503 with the seconds until there should be room.
    pub(crate) fn check_line(&self, priority: Priority) -> Result<(), Problem> {
        if self.wait(priority) > self.turn { Err(self.overloaded(priority)) } else { Ok(()) }
    }

    /// Time until those who wait now have their places.
    fn wait(&self, priority: Priority) -> Duration {
        let interactive = self.line.load(Ordering::Relaxed);
        let ahead = match priority {
            Priority::Interactive => interactive,
            Priority::Batch => interactive + self.batch_line.load(Ordering::Relaxed),
        };
        self.pace.get() * ahead as u32
    }

    pub(crate) fn overloaded(&self, priority: Priority) -> Problem {
        Problem::overloaded(self.wait(priority).as_secs_f64().ceil().clamp(1.0, 60.0) as u64)
    }

    /// A place, in turn.
    ///
    /// # Errors
    /// 503 when the turn does not come within `patience`, or without one within the queue's own limit.
    pub(crate) async fn place(
        self: &Arc<Self>,
        priority: Priority,
        patience: Option<Duration>,
    ) -> Result<Place, Problem> {
        let line = match priority {
            Priority::Interactive => &self.line,
            Priority::Batch => &self.batch_line,
        };
        let mut waiting = Waiting::new(line);
        let permits = async {
            let batch = match priority {
                Priority::Interactive => None,
                Priority::Batch => Some(Arc::clone(&self.batch).acquire_owned().await?),
            };
            Ok::<_, tokio::sync::AcquireError>((
                Arc::clone(&self.places).acquire_owned().await?,
                batch,
            ))
        };
        let permits = tokio::time::timeout(patience.unwrap_or(self.turn), permits).await;
        waiting.ended = true;
        drop(waiting);
        match permits {
            Ok(Ok((permit, batch))) => Ok(Place::new(self, permit, batch)),
            Ok(Err(_)) | Err(_) => Err(self.overloaded(priority)),
        }
    }

    /// True where no image is in a place or waits for one.
    pub(crate) fn is_idle(&self) -> bool {
        self.progress.active.load(Ordering::Relaxed) + self.line.load(Ordering::Relaxed) == 0
    }

    /// True while images are in their places and have made no progress for some seconds.
    pub(crate) fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.progress.last.load(Ordering::Relaxed));
        self.progress.active.load(Ordering::Relaxed) > 0
            && self.progress.start.elapsed().saturating_sub(last) > STUCK
    }

    /// Notes a batch that has just ended.
    pub(crate) fn note_batch(&self, began: Instant, images: usize) {
        self.pace.note(began, images);
    }

    /// Sets the gauges.
    pub(crate) fn observe(&self) {
        let depth = self.capacity - self.places.available_permits().min(self.capacity);
        let waiting = [&self.line, &self.batch_line].map(|line| line.load(Ordering::Relaxed));
        let set = |name: &'static str, value: usize| {
            gauge!(name, "model" => self.name.clone()).set(value as f64);
        };
        set(names::BATCH_QUEUE_DEPTH, depth);
        set(names::BATCH_QUEUE_CAPACITY, self.capacity);
        set(names::BATCH_QUEUE_WAITING, waiting.iter().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn batch_callers_leave_places_to_interactive_ones() {
        let queue = Arc::new(Queue::new("m", 8, Duration::from_millis(20)));
        let held =
            [queue.place(Priority::Batch, None).await, queue.place(Priority::Batch, None).await];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(queue.place(Priority::Batch, None).await.err().unwrap().status, 503);
        let mut others = Vec::new();
        for _ in 0..6 {
            others.push(queue.place(Priority::Interactive, None).await.unwrap());
        }
        assert!(queue.place(Priority::Interactive, None).await.is_err());
        drop(held);
        assert!(queue.place(Priority::Batch, None).await.is_ok());
        assert!(!queue.is_idle());
        drop(others);
        assert!(queue.is_idle() && !queue.is_stuck());
    }
}
