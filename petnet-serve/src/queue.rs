//! Admission control of a model: a limited number of images in flight, and the images that wait.
//!
//! An image holds a permit of a semaphore from decoding to output. Each model has its own permits, so that many images
//! for one model do not delay those for another. Bulk callers, those of [`Priority::Bulk`], share a quarter of a
//! model's permits, which bounds the number of their images that an image of an interactive caller waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authorization::Priority;
use crate::problem::Problem;
use crate::telemetry::names;

/// Time without progress after which the images in flight count as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// Bulk callers share the permits divided by this number.
const BULK_DIVISOR: usize = 4;

/// A model's permits, and the images that wait for them.
pub(crate) struct Queue {
    name: String,
    permits: Arc<Semaphore>,
    /// Second permit that an image of a bulk caller needs.
    bulk_permits: Arc<Semaphore>,
    capacity: usize,
    /// Number of bulk permits.
    bulk_capacity: usize,
    /// Number of waiting images of interactive callers.
    interactive_waiting: AtomicUsize,
    /// Number of waiting images of bulk callers.
    bulk_waiting: AtomicUsize,
    /// Maximum wait for a permit.
    timeout: Duration,
    in_flight: InFlight,
    pub(crate) service_time: ServiceTime,
}

/// Number of images in flight, and the time at which one of them last made progress.
struct InFlight {
    start: Instant,
    count: AtomicUsize,
    /// Milliseconds since `start`.
    last_progress: AtomicU64,
}

impl InFlight {
    fn record_progress(&self) {
        self.last_progress.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

/// Time per image under load, by which waits are estimated: an exponential moving average over batches (weight 1/8).
pub(crate) struct ServiceTime {
    start: Instant,
    /// 0 before the first batch.
    nanos_per_image: AtomicU64,
    /// Nanoseconds from `start` to the end of the last batch.
    last_batch_end: AtomicU64,
}

impl ServiceTime {
    /// Records a batch of the network that has just ended, the decoding of whose first image began at `decode_began`.
    ///
    /// The batch's time begins with the end of the previous batch, or with `decode_began` if that is later, as it is after an
    /// idle time. Under load it is therefore the time between the ends of two batches, whichever part of the service limits
    /// it: decoding, the network, or another model that runs in between.
    pub(crate) fn record(&self, decode_began: Instant, images: usize) {
        let end = self.start.elapsed().as_nanos() as u64;
        let decode_began = decode_began.saturating_duration_since(self.start).as_nanos() as u64;
        let begin = self.last_batch_end.swap(end, Ordering::Relaxed).max(decode_began);
        let new = end.saturating_sub(begin) / images as u64;
        let old = self.nanos_per_image.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.nanos_per_image.store(mean, Ordering::Relaxed);
    }
}

/// The right of one image to be decoded and classified.
pub(crate) struct Permit {
    pub(crate) queue: Arc<Queue>,
    _permit: OwnedSemaphorePermit,
    _bulk_permit: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Records that the image is decoded.
    pub(crate) fn record_progress(&self) {
        self.queue.in_flight.record_progress();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.in_flight.record_progress();
        self.queue.in_flight.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts an image as waiting until it is dropped.
struct WaitingGuard<'a> {
    count: &'a AtomicUsize,
    /// True once the image has its permit or is refused. Dropped while false, its client has disconnected.
    has_outcome: bool,
}

impl<'a> WaitingGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count, has_outcome: false }
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if !self.has_outcome {
            counter!(names::PREDICTIONS_ABANDONED_TOTAL).increment(1);
        }
    }
}

impl Queue {
    /// A queue with `capacity` permits for the model of that name; images that would wait longer than `timeout` are refused.
    pub(crate) fn new(name: &str, capacity: usize, timeout: Duration) -> Self {
        let start = Instant::now();
        let bulk_capacity = capacity.div_ceil(BULK_DIVISOR);
        Self {
            name: name.into(),
            permits: Arc::new(Semaphore::new(capacity)),
            bulk_permits: Arc::new(Semaphore::new(bulk_capacity)),
            capacity,
            bulk_capacity,
            interactive_waiting: AtomicUsize::new(0),
            bulk_waiting: AtomicUsize::new(0),
            timeout,
            in_flight: InFlight {
                start,
                count: AtomicUsize::new(0),
                last_progress: AtomicU64::new(0),
            },
            service_time: ServiceTime {
                start,
                nanos_per_image: AtomicU64::new(0),
                last_batch_end: AtomicU64::new(0),
            },
        }
    }

    /// Refuses a request before its body is read, if the estimated wait exceeds the timeout.
    /// Errors: 503 with the estimated wait in seconds.
    pub(crate) fn check_wait(&self, priority: Priority) -> Result<(), Problem> {
        let is_too_long = self.estimated_wait(priority) > self.timeout;
        if is_too_long { Err(self.overloaded(priority)) } else { Ok(()) }
    }

    /// Estimated time until the images that wait now have their permits.
    ///
    /// A permit is held for about the service time per image, times the number of images in flight. Of these, bulk callers
    /// have at most `bulk_capacity`, so that their waiting images get permits at that share of the rate.
    fn estimated_wait(&self, priority: Priority) -> Duration {
        let interactive = self.interactive_waiting.load(Ordering::Relaxed);
        let ahead = match priority {
            Priority::Interactive => interactive,
            Priority::Bulk => {
                let in_flight = self.in_flight.count.load(Ordering::Relaxed);
                let bulk_waiting = self.bulk_waiting.load(Ordering::Relaxed);
                interactive + bulk_waiting * in_flight.max(self.bulk_capacity) / self.bulk_capacity
            }
        };
        let nanos_per_image = self.service_time.nanos_per_image.load(Ordering::Relaxed);
        Duration::from_nanos(nanos_per_image) * ahead as u32
    }

    pub(crate) fn overloaded(&self, priority: Priority) -> Problem {
        let seconds = self.estimated_wait(priority).as_secs_f64().ceil();
        Problem::overloaded(seconds.clamp(1.0, 60.0) as u64)
    }

    /// Waits for a permit, in order of arrival.
    /// Errors: 503 when none is free within `timeout`, or within that of the queue where it is `None`.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        priority: Priority,
        timeout: Option<Duration>,
    ) -> Result<Permit, Problem> {
        let count = match priority {
            Priority::Interactive => &self.interactive_waiting,
            Priority::Bulk => &self.bulk_waiting,
        };
        let mut waiting = WaitingGuard::new(count);
        let permits = async {
            let bulk_permit = match priority {
                Priority::Interactive => None,
                Priority::Bulk => Some(Arc::clone(&self.bulk_permits).acquire_owned().await?),
            };
            let permit = Arc::clone(&self.permits).acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>((permit, bulk_permit))
        };
        let permits = tokio::time::timeout(timeout.unwrap_or(self.timeout), permits).await;
        waiting.has_outcome = true;
        drop(waiting);
        match permits {
            Ok(Ok((_permit, _bulk_permit))) => {
                if self.in_flight.count.fetch_add(1, Ordering::Relaxed) == 0 {
                    self.in_flight.record_progress();
                }
                Ok(Permit { queue: Arc::clone(self), _permit, _bulk_permit })
            }
            Ok(Err(_)) | Err(_) => Err(self.overloaded(priority)),
        }
    }

    /// True while no image is in flight, and none of an interactive caller waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.count.load(Ordering::Relaxed)
            + self.interactive_waiting.load(Ordering::Relaxed)
            == 0
    }

    /// True while images are in flight and none has made progress for [`STUCK_AFTER`].
    pub(crate) fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.in_flight.last_progress.load(Ordering::Relaxed));
        self.in_flight.count.load(Ordering::Relaxed) > 0
            && self.in_flight.start.elapsed().saturating_sub(last) > STUCK_AFTER
    }

    pub(crate) fn set_gauges(&self) {
        let depth = self.capacity - self.permits.available_permits().min(self.capacity);
        let waiting = [&self.interactive_waiting, &self.bulk_waiting]
            .map(|count| count.load(Ordering::Relaxed));
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
    async fn bulk_callers_leave_permits_to_interactive_ones() {
        let queue = Arc::new(Queue::new("m", 8, Duration::from_millis(20)));
        let held =
            [queue.acquire(Priority::Bulk, None).await, queue.acquire(Priority::Bulk, None).await];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(queue.acquire(Priority::Bulk, None).await.err().unwrap().status, 503);
        let mut others = Vec::new();
        for _ in 0..6 {
            others.push(queue.acquire(Priority::Interactive, None).await.unwrap());
        }
        assert!(queue.acquire(Priority::Interactive, None).await.is_err());
        drop(held);
        assert!(queue.acquire(Priority::Bulk, None).await.is_ok());
        assert!(!queue.is_idle());
        drop(others);
        assert!(queue.is_idle() && !queue.is_stuck());
    }

    #[tokio::test]
    async fn the_wait_of_bulk_callers_is_estimated_with_their_share_of_the_permits() {
        let queue = Arc::new(Queue::new("m", 8, Duration::from_secs(1)));
        queue.service_time.nanos_per_image.store(100_000_000, Ordering::Relaxed);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(queue.acquire(Priority::Bulk, None).await.unwrap());
        }
        queue.bulk_waiting.store(6, Ordering::Relaxed);
        assert!(queue.check_wait(Priority::Bulk).is_ok(), "0.6 s: all in flight are theirs");
        for _ in 0..6 {
            held.push(queue.acquire(Priority::Interactive, None).await.unwrap());
        }
        let problem = queue.check_wait(Priority::Bulk).unwrap_err();
        assert_eq!(problem.retry_after, Some(3), "2.4 s: two of eight in flight are theirs");
        assert!(queue.check_wait(Priority::Interactive).is_ok());
    }
}
