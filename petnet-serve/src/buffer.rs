//! Bodies that are being received: a buffer that claims memory before it grows, and limits on how slowly bytes may arrive.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::memory::{Claim, Memory};
use crate::problem::Problem;

/// Initial capacity of a body's buffer, in bytes.
const INITIAL_CAPACITY: usize = 16 << 10;

/// A byte buffer that claims memory before it grows.
pub(crate) struct Buffer<'a> {
    memory: &'a Memory,
    claim: Claim,
    bytes: Vec<u8>,
    most: usize,
}

impl<'a> Buffer<'a> {
    /// # Errors
    /// 503 when no memory is free.
    pub(crate) fn new(memory: &'a Memory, most: usize) -> Result<Self, Problem> {
        Ok(Self { memory, claim: memory.buffer(0)?, bytes: Vec::new(), most })
    }

    /// # Errors
    /// 413 above its maximum size, 503 when no memory is free.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<(), Problem> {
        let length = self.bytes.len() + data.len();
        if length > self.most {
            return Err(over(self.most));
        }
        if length > self.bytes.capacity() {
            let capacity = length
                .max(2 * self.bytes.capacity())
                .clamp(INITIAL_CAPACITY, self.most.max(INITIAL_CAPACITY));
            // Growing copies: the old and the new allocation exist at the same time.
            let claim = self.memory.buffer(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
            self.claim = claim;
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    pub(crate) fn finish(self) -> (Bytes, Claim) {
        (self.bytes.into(), self.claim)
    }
}

/// Limits for a body that is being received: the longest pause, and the lowest average rate after that allowance.
pub(crate) struct Pace {
    pause: Duration,
    min_rate: u64,
    began: Instant,
    pub(crate) received: usize,
}

impl Pace {
    pub(crate) fn new(pause: Duration, min_rate: u64) -> Self {
        Self { pause, min_rate, began: Instant::now(), received: 0 }
    }

    /// The maximum wait for the next bytes.
    pub(crate) fn patience(&self) -> Duration {
        let earned = Duration::from_secs_f64(self.received as f64 / self.min_rate as f64);
        (self.pause + earned).saturating_sub(self.began.elapsed()).min(self.pause)
    }
}

pub(crate) fn over(most: usize) -> Problem {
    Problem::too_large(format!("the body is larger than {most} bytes"))
}
