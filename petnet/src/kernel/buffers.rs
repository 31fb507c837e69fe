//! A pool of buffers for the outputs of training's operations: the page faults of new buffers of tens of megabytes
//! take longer than the arithmetic that fills them.

use std::sync::{Mutex, PoisonError};

/// Maximum number of bytes in the pool.
#[cfg(feature = "train")]
const MAX_BYTES: usize = 1 << 30;

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer of `len` values with unspecified contents; the caller writes all of them.
pub(crate) fn acquire_buffer(len: usize) -> Vec<f32> {
    let mut free = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match free.iter().rposition(|buffer| buffer.len() == len) {
        Some(index) => free.remove(index),
        None => {
            drop(free);
            vec![0.0; len]
        }
    }
}

/// Returns a buffer to the pool; above [`MAX_BYTES`] the oldest ones are freed.
#[cfg(feature = "train")]
pub(crate) fn release_buffer(buffer: Vec<f32>) {
    let mut free = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    free.push(buffer);
    let mut bytes: usize = free.iter().map(|buffer| buffer.len() * 4).sum();
    while bytes > MAX_BYTES {
        bytes -= free.remove(0).len() * 4;
    }
}

/// Frees all buffers of the pool.
#[cfg(feature = "train")]
pub(crate) fn free_buffers() {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
