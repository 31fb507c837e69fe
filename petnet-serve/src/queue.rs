//! Admission control of a model: a limited number of images in flight, and the images that wait.
//!
//! An image holds a permit of a semaphore from decoding to output. Each model has its own permits, so that many images
//! for one model do not delay those for another. Batch callers share a quarter of a model's permits, which bounds the number
//! of their images that an image of an interactive caller waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authorization::Priority;
use crate::problem::Problem;
use crate::telemetry::names;

/// Time without progress after which the images in flight count as stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Batch callers share the permits divided by this number.
const BATCH_DIVISOR: usize = 4;

/// A model's permits, and the images that wait for them.
pub(crate) struct Queue {
    name: String,
    permits: Arc<Semaphore>,
    /// Second permit that an image of a batch caller needs.
    batch: Arc<Semaphore>,
    capacity: usize,
    /// Number of waiting images of interactive callers.
    waiting: AtomicUsize,
    /// Number of waiting images of batch callers.
    batch_waiting: AtomicUsize,
    /// Maximum wait for a permit.
    timeout: Duration,
    progress: Progress,
    service_time: ServiceTime,
}

/// Number of images in flight, and the time at which one of them last made progress.
struct Progress {
    start: Instant,
    active: AtomicUsize,
    /// Milliseconds since `start`.
    last: AtomicU64,
}

impl Progress {
    fn record(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Exponential moving average (weight 1/8) of the time between two outputs under load, by which waits are estimated.
struct ServiceTime {
    start: Instant,
    /// Nanoseconds; 0 before the first image.
    mean: AtomicU64,
    /// End of the last batch, in nanoseconds since `start`.
    ended: AtomicU64,
}

impl ServiceTime {
    fn get(&self) -> Duration {
        Duration::from_nanos(self.mean.load(Ordering::Relaxed))
    }

    /// Records the end of a batch whose first image began to be decoded at `began`. While images wait, the time counts from
    /// the end of the previous batch: decoding, or another model, may be the bottleneck.
    fn record(&self, began: Instant, images: usize) {
        let now = self.start.elapsed().as_nanos() as u64;
        let began = began.saturating_duration_since(self.start).as_nanos() as u64;
        let since = self.ended.swap(now, Ordering::Relaxed).max(began);
        let each = now.saturating_sub(since) / images as u64;
        let old = self.mean.load(Ordering::Relaxed);
        self.mean.store(if old == 0 { each } else { (old * 7 + each) / 8 }, Ordering::Relaxed);
    }
}

/// The right of one image to be decoded and classified.
pub(crate) struct Permit {
    pub(crate) queue: Arc<Queue>,
    _permit: OwnedSemaphorePermit,
    _batch: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Records that the image is decoded.
    pub(crate) fn record_progress(&self) {
        self.queue.progress.record();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.progress.record();
        self.queue.progress.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts an image as waiting until it is dropped.
struct WaitingGuard<'a> {
    count: &'a AtomicUsize,
    /// True once the image has its permit or is refused; else its client has disconnected.
    ended: bool,
}

impl<'a> WaitingGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count, ended: false }
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            counter!(names::PREDICTIONS_ABANDONED_TOTAL).increment(1);
        }
    }
}

impl Queue {
    /// A queue with `capacity` permits for the model of that name; images that would wait longer than `timeout` are refused.
    pub(crate) fn new(name: &str, capacity: usize, timeout: Duration) -> Self {
        let start = Instant::now();
        Self {
            name: name.into(),
            permits: Arc::new(Semaphore::new(capacity)),
            batch: Arc::new(Semaphore::new(capacity.div_ceil(BATCH_DIVISOR))),
            capacity,
            waiting: AtomicUsize::new(0),
            batch_waiting: AtomicUsize::new(0),
            timeout,
            progress: Progress { start, active: AtomicUsize::new(0), last: AtomicU64::new(0) },
            service_time: ServiceTime { start, mean: AtomicU64::new(0), ended: AtomicU64::new(0) },
        }
    }

    /// Refuses a request before its body is read, if the estimated wait exceeds the timeout.
    ///
    /// # Errors
    /// 503 with the estimated wait in seconds.
    pub(crate) fn check_wait(&self, priority: Priority) -> Result<(), Problem> {
        let is_too_long = self.estimated_wait(priority) > self.timeout;
        if is_too_long { Err(self.overloaded(priority)) } else { Ok(()) }
    }

    /// Estimated time until the images that wait now have their permits.
    fn estimated_wait(&self, priority: Priority) -> Duration {
        let interactive = self.waiting.load(Ordering::Relaxed);
        let ahead = match priority {
            Priority::Interactive => interactive,
            Priority::Batch => interactive + self.batch_waiting.load(Ordering::Relaxed),
        };
        self.service_time.get() * ahead as u32
    }

    pub(crate) fn overloaded(&self, priority: Priority) -> Problem {
        let seconds = self.estimated_wait(priority).as_secs_f64().ceil();
        Problem::overloaded(seconds.clamp(1.0, 60.0) as u64)
    }

    /// Waits for a permit, in order of arrival.
    ///
    /// # Errors
    /// 503 when none is free within `timeout`, or within that of the queue where it is `None`.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        priority: Priority,
        timeout: Option<Duration>,
    ) -> Result<Permit, Problem> {
        let count = match priority {
            Priority::Interactive => &self.waiting,
            Priority::Batch => &self.batch_waiting,
        };
        let mut waiting = WaitingGuard::new(count);
        let permits = async {
            let batch = match priority {
                Priority::Interactive => None,
                Priority::Batch => Some(Arc::clone(&self.batch).acquire_owned().await?),
            };
            Ok::<_, tokio::sync::AcquireError>((
                Arc::clone(&self.permits).acquire_owned().await?,
                batch,
            ))
        };
        let permits = tokio::time::timeout(timeout.unwrap_or(self.timeout), permits).await;
        waiting.ended = true;
        drop(waiting);
        match permits {
            Ok(Ok((permit, batch))) => {
                if self.progress.active.fetch_add(1, Ordering::Relaxed) == 0 {
                    self.progress.record();
                }
                Ok(Permit { queue: Arc::clone(self), _permit: permit, _batch: batch })
            }
            Ok(Err(_)) | Err(_) => Err(self.overloaded(priority)),
        }
    }

    /// True while no image is in flight, and none of an interactive caller waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.progress.active.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed) == 0
    }

    /// True while images are in flight and none has made progress for [`STUCK`].
    pub(crate) fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.progress.last.load(Ordering::Relaxed));
        self.progress.active.load(Ordering::Relaxed) > 0
            && self.progress.start.elapsed().saturating_sub(last) > STUCK
    }

    /// Records a batch that has just ended.
    pub(crate) fn record_batch(&self, began: Instant, images: usize) {
        self.service_time.record(began, images);
    }

    pub(crate) fn set_gauges(&self) {
        let depth = self.capacity - self.permits.available_permits().min(self.capacity);
        let waiting =
            [&self.waiting, &self.batch_waiting].map(|count| count.load(Ordering::Relaxed));
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
    async fn batch_callers_leave_permits_to_interactive_ones() {
        let queue = Arc::new(Queue::new("m", 8, Duration::from_millis(20)));
        let held = [
            queue.acquire(Priority::Batch, None).await,
            queue.acquire(Priority::Batch, None).await,
        ];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(queue.acquire(Priority::Batch, None).await.err().unwrap().status, 503);
        let mut others = Vec::new();
        for _ in 0..6 {
            others.push(queue.acquire(Priority::Interactive, None).await.unwrap());
        }
        assert!(queue.acquire(Priority::Interactive, None).await.is_err());
        drop(held);
        assert!(queue.acquire(Priority::Batch, None).await.is_ok());
        assert!(!queue.is_idle());
        drop(others);
        assert!(queue.is_idle() && !queue.is_stuck());
    }
}
