//! The memory budget of requests, which claim memory before they allocate it: a third of the budget is for buffers (request
//! bodies, their decoded contents, responses that are not sent yet), two thirds for image decoding.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use metrics::gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;
use crate::settings::Settings;
use crate::telemetry::names;

/// Bytes reserved for the buffers and state of a connection.
const CONNECTION_BYTES: u64 = 32 << 10;
/// Minimum budget of requests in bytes.
const MIN_BUDGET_BYTES: u64 = 16 << 20;
/// Bytes that a permit of a pool's semaphore stands for.
const PERMIT_BYTES: u64 = 1 << 10;
/// Resident memory in bytes assumed on systems without `/proc`.
const ASSUMED_RESIDENT_BYTES: u64 = 96 << 20;

/// The memory budget of requests. All sizes are in bytes.
pub(crate) struct Memory {
    /// Limit of the whole process.
    limit: u64,
    /// Reserved for connections.
    connections: u64,
    /// Reserved for the prediction cache.
    cache: u64,
    /// Resident memory before the first model was loaded.
    initial_resident: u64,
    /// Additional peak memory while the first models were loaded.
    loading: AtomicU64,
    buffers: Pool,
    decoding: Pool,
}

/// The part of the budget for one purpose. Nothing can be claimed before it is opened.
struct Pool {
    /// Free permits of [`PERMIT_BYTES`] each.
    free: Arc<Semaphore>,
    /// Size in bytes.
    total: AtomicU64,
}

/// Claimed memory; dropping it returns the memory to the budget.
#[derive(Debug)]
pub(crate) struct Claim(OwnedSemaphorePermit);

impl Claim {
    /// Adds another claim on the same pool.
    pub(crate) fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }

    /// Returns all but `bytes` to the budget.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let spare = self.0.num_permits().saturating_sub(permits(bytes as u64) as usize);
        drop(self.0.split(spare));
    }
}

/// Bytes whose claim is dropped with the last reference to them.
struct ClaimedBytes {
    bytes: Vec<u8>,
    _claim: Claim,
}

impl AsRef<[u8]> for ClaimedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes together with their claim.
pub(crate) fn claimed_bytes(bytes: Vec<u8>, claim: Claim) -> Bytes {
    Bytes::from_owner(ClaimedBytes { bytes, _claim: claim })
}

impl Pool {
    fn empty() -> Self {
        Self { free: Arc::new(Semaphore::new(0)), total: AtomicU64::new(0) }
    }

    fn open(&self, bytes: u64) {
        // In whole permits: rounding up would let a claim for everything need one permit too many, and wait forever.
        let permits = (bytes / PERMIT_BYTES).min(u64::from(u32::MAX));
        self.total.store(permits * PERMIT_BYTES, Ordering::Relaxed);
        self.free.add_permits(permits as usize);
    }

    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn in_use(&self) -> u64 {
        self.total().saturating_sub(self.free.available_permits() as u64 * PERMIT_BYTES)
    }

    fn check_size(&self, bytes: u64) -> Result<u32, Problem> {
        if bytes > self.total() {
            let (needed, total) = (bytes.div_ceil(1 << 20), self.total() >> 20);
            let detail = format!("this takes {needed} MB of memory, {total} MB are available");
            return Err(Problem::too_large(detail));
        }
        Ok(permits(bytes))
    }
}

/// The number of permits for a number of bytes, rounded up.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

impl Memory {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            limit: settings.memory_limit(),
            connections: settings.connections() as u64 * CONNECTION_BYTES,
            cache: settings.cache_bytes(),
            initial_resident: read_resident("VmRSS:").unwrap_or(0),
            loading: AtomicU64::new(0),
            buffers: Pool::empty(),
            decoding: Pool::empty(),
        }
    }

    /// Opens the budget: the limit less an eighth, which the allocator may keep as free blocks, less the resident memory with
    /// the models, less connections and cache.
    /// Errors: when that is less than [`MIN_BUDGET_BYTES`].
    pub(crate) fn open(&self) -> Result<()> {
        let resident = read_resident("VmRSS:").unwrap_or(ASSUMED_RESIDENT_BYTES);
        let peak = read_resident("VmHWM:").unwrap_or(resident);
        self.loading.store(peak.saturating_sub(self.initial_resident), Ordering::Relaxed);
        let needed = resident + self.connections + self.cache;
        let spare = (self.limit - self.limit / 8).saturating_sub(needed);
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        ensure!(
            spare >= MIN_BUDGET_BYTES,
            "--memory {}: the model, connections and --cache take {} MB, so that at least {} MB are needed",
            megabytes(self.limit),
            megabytes(needed),
            megabytes((needed + MIN_BUDGET_BYTES) * 8 / 7),
        );
        let (buffers, decoding) = (spare / 3, spare - spare / 3);
        self.buffers.open(buffers);
        self.decoding.open(decoding);
        tracing::info!(
            limit_mb = megabytes(self.limit),
            resident_mb = megabytes(resident),
            buffers_mb = megabytes(buffers),
            decoding_mb = megabytes(decoding),
            "memory budget set"
        );
        Ok(())
    }

    /// True once requests may claim memory.
    pub(crate) fn is_open(&self) -> bool {
        self.decoding.total() > 0
    }

    /// Claims memory for a buffer.
    /// Errors: 413 for more than the whole pool, 503 for more than is free.
    pub(crate) fn claim_buffer(&self, bytes: usize) -> Result<Claim, Problem> {
        let permits = self.buffers.check_size(bytes as u64)?;
        let free = Arc::clone(&self.buffers.free).try_acquire_many_owned(permits);
        free.map(Claim).map_err(|_| Problem::out_of_memory())
    }

    /// Claims memory for decoding, in order of arrival.
    /// Errors: 413 for more than the whole pool, 503 when it is not free within `timeout`.
    pub(crate) async fn claim_decoding(
        &self,
        bytes: u64,
        timeout: Duration,
    ) -> Result<Claim, Problem> {
        let permits = self.decoding.check_size(bytes)?;
        let free = Arc::clone(&self.decoding.free).acquire_many_owned(permits);
        match tokio::time::timeout(timeout, free).await {
            Ok(Ok(permit)) => Ok(Claim(permit)),
            Ok(Err(_)) | Err(_) => Err(Problem::out_of_memory()),
        }
    }

    /// Claims memory for loading a model, in order of arrival: as much as the first load took, at most the whole pool.
    pub(crate) async fn claim_loading(&self) -> Option<Claim> {
        let bytes = self.loading.load(Ordering::Relaxed).min(self.decoding.total());
        let free = Arc::clone(&self.decoding.free).acquire_many_owned(permits(bytes));
        free.await.ok().map(Claim)
    }

    pub(crate) fn set_gauges(&self) {
        gauge!(names::MEMORY_LIMIT_BYTES).set(self.limit as f64);
        for (purpose, pool) in [("buffers", &self.buffers), ("decoding", &self.decoding)] {
            gauge!(names::MEMORY_BUDGET_BYTES, "purpose" => purpose).set(pool.total() as f64);
            gauge!(names::MEMORY_CLAIMED_BYTES, "purpose" => purpose).set(pool.in_use() as f64);
        }
    }
}

/// Resident memory of this process in bytes: the current (`VmRSS:`) or the peak (`VmHWM:`).
fn read_resident(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: u64) -> Memory {
        let (buffers, decoding) = (Pool::empty(), Pool::empty());
        let loading = AtomicU64::new(0);
        Memory { limit, connections: 0, cache: 0, initial_resident: 0, loading, buffers, decoding }
    }

    #[tokio::test]
    async fn a_claim_is_returned_with_the_last_reference() {
        let memory = memory(1 << 30);
        assert_eq!(memory.claim_buffer(1).unwrap_err().status, 413, "nothing before it is opened");
        memory.buffers.open(10 << 20);
        // Not a whole number of permits.
        memory.decoding.open((10 << 20) + 1);
        let mut claim = memory.claim_buffer(6 << 20).unwrap();
        assert_eq!(memory.claim_buffer(6 << 20).unwrap_err().status, 503);
        claim.shrink(1 << 20);
        let more = memory.claim_buffer(6 << 20).unwrap();
        claim.merge(more);
        assert_eq!(memory.buffers.in_use(), 7 << 20);
        let bytes = claimed_bytes(vec![7; 3], claim);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!((memory.buffers.in_use(), &slice[..]), (7 << 20, &[7, 7][..]));
        drop(slice);
        assert_eq!(memory.buffers.in_use(), 0);
        let timeout = Duration::from_millis(20);
        let all = memory.claim_decoding(10 << 20, timeout).await.unwrap();
        assert_eq!(memory.claim_decoding(1, timeout).await.unwrap_err().status, 503);
        drop(all);
        assert!(memory.claim_decoding(1, timeout).await.is_ok());
        memory.loading.store(1 << 30, Ordering::Relaxed);
        let loading = tokio::time::timeout(timeout, memory.claim_loading()).await.unwrap();
        assert_eq!(memory.claim_decoding(1, timeout).await.unwrap_err().status, 503);
        drop(loading);
    }

    #[test]
    fn a_limit_that_is_too_small_is_refused_with_the_smallest_that_would_do() {
        let error = memory(1 << 20).open().unwrap_err().to_string();
        assert!(
            error.starts_with("--memory 1: the model, connections and --cache take"),
            "{error}"
        );
    }
}
