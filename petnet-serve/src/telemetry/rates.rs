//! Requests, errors and batches of the last minutes, counted per second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;

use crate::telemetry::names;

/// Length of the longest window in seconds.
const MAX_WINDOW_SECONDS: usize = 300;

/// Counts within a window of time: one second, or several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct WindowCounts {
    pub(crate) requests: u64,
    /// Requests with a status of 500 or above.
    pub(crate) errors: u64,
    pub(crate) batches: u64,
    /// Images in the batches.
    pub(crate) images: u64,
}

/// Counts of each of the last seconds.
pub(crate) struct Rates {
    began: Instant,
    /// A ring buffer: counts of the second that each slot names. Second `n` is in slot `n % MAX_WINDOW_SECONDS`.
    ring: Mutex<[(u64, WindowCounts); MAX_WINDOW_SECONDS]>,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            ring: Mutex::new([(0, WindowCounts::default()); MAX_WINDOW_SECONDS]),
        }
    }
}

impl Rates {
    pub(crate) fn record_request(&self, failed: bool) {
        self.add(self.began.elapsed(), |counts| {
            counts.requests += 1;
            counts.errors += u64::from(failed);
        });
    }

    pub(crate) fn record_batch(&self, images: usize) {
        self.add(self.began.elapsed(), |counts| {
            counts.batches += 1;
            counts.images += images as u64;
        });
    }

    pub(crate) fn set_gauges(&self) {
        let now = self.began.elapsed();
        let (minute, minutes) = (self.sum(now, 60), self.sum(now, 300));
        gauge!(names::REQUESTS_PER_MINUTE).set(minute.requests as f64);
        if minutes.requests > 0 {
            gauge!(names::API_ERROR_RATE).set(minutes.errors as f64 / minutes.requests as f64);
        }
        if minutes.batches > 0 {
            gauge!(names::BATCH_SIZE_AVG).set(minutes.images as f64 / minutes.batches as f64);
        }
        if minute.images > 0 {
            gauge!(names::BATCH_THROUGHPUT_IMAGES_PER_SECOND).set(minute.images as f64 / 60.0);
        }
    }

    fn add(&self, at: Duration, change: impl FnOnce(&mut WindowCounts)) {
        let second = at.as_secs();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut ring[second as usize % MAX_WINDOW_SECONDS];
        if slot.0 != second {
            *slot = (second, WindowCounts::default());
        }
        change(&mut slot.1);
    }

    /// Sums over the last `seconds`, the current one included.
    fn sum(&self, now: Duration, seconds: u64) -> WindowCounts {
        let now = now.as_secs();
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = ring.iter().filter(|(second, _)| *second <= now && now - second < seconds);
        recent.fold(WindowCounts::default(), |sum, (_, counts)| WindowCounts {
            requests: sum.requests + counts.requests,
            errors: sum.errors + counts.errors,
            batches: sum.batches + counts.batches,
            images: sum.images + counts.images,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_leave_the_window_one_by_one_and_slots_are_reused() {
        let rates = Rates::default();
        let at = Duration::from_secs;
        for second in 0..1000 {
            rates.add(at(second), |counts| counts.requests += second);
        }
        assert_eq!(rates.sum(at(999), 3).requests, 999 + 998 + 997);
        assert_eq!(rates.sum(at(1001), 3).requests, 999);
        assert_eq!(rates.sum(at(999), 300).requests, (700..1000).sum::<u64>());
        assert_eq!(rates.sum(at(2000), 300), WindowCounts::default());
    }
}
