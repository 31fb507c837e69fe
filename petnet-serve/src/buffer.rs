//! Transfers of bodies: a buffer that claims memory before it grows, and limits on how slowly bytes may arrive or leave.

use std::time::Duration;

use bytes::Bytes;

use crate::memory::{Claim, Memory};
use crate::problem::Problem;
use crate::settings::Settings;

/// Initial capacity of a body's buffer, in bytes.
const INITIAL_CAPACITY: usize = 16 << 10;

/// A byte buffer that claims memory before it grows.
pub(crate) struct Buffer<'a> {
    memory: &'a Memory,
    claim: Claim,
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl<'a> Buffer<'a> {
    /// An empty buffer that grows to at most `max_bytes`.
    /// Errors: 503 when no memory is free.
    pub(crate) fn new(memory: &'a Memory, max_bytes: usize) -> Result<Self, Problem> {
        Ok(Self { memory, claim: memory.claim_buffer(0)?, bytes: Vec::new(), max_bytes })
    }

    /// Appends bytes.
    /// Errors: 413 above its maximum size, 503 when no memory is free.
    pub(crate) fn push(&mut self, data: &[u8]) -> Result<(), Problem> {
        let length = self.bytes.len() + data.len();
        if length > self.max_bytes {
            return Err(body_too_large(self.max_bytes));
        }
        if length > self.bytes.capacity() {
            let capacity = length
                .max(2 * self.bytes.capacity())
                .clamp(INITIAL_CAPACITY, self.max_bytes.max(INITIAL_CAPACITY));
            // Growing copies: the old and the new allocation exist at the same time.
            let claim = self.memory.claim_buffer(capacity)?;
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

/// Limits on how slowly bytes may be received or sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferLimits {
    /// Maximum pause between two transfers of bytes.
    pub(crate) max_pause: Duration,
    /// Minimum average rate in bytes per second, after an allowance of one pause.
    pub(crate) min_rate: u64,
}

impl TransferLimits {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self { max_pause: settings.transfer_timeout, min_rate: settings.min_rate }
    }

    /// Maximum wait for the next bytes, after `transferred` bytes in `elapsed`.
    pub(crate) fn remaining(&self, transferred: u64, elapsed: Duration) -> Duration {
        let allowed = self.max_pause + self.time_at_min_rate(transferred);
        allowed.saturating_sub(elapsed).min(self.max_pause)
    }

    /// Time in which a number of bytes is transferred at the minimum rate.
    pub(crate) fn time_at_min_rate(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.min_rate.max(1) as f64)
    }
}

pub(crate) fn body_too_large(max_bytes: usize) -> Problem {
    Problem::too_large(format!("the body is larger than {max_bytes} bytes"))
}
