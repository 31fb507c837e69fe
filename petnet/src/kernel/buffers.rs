//! A pool of buffers for the outputs of training's operations: the page faults of new buffers of tens of megabytes
//! take longer than the arithmetic that fills them.

use std::sync::{Mutex, PoisonError};

/// Maximum number of bytes in the pool.
#[cfg(feature = "train")]
const LIMIT: usize = 1 << 30;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer of `len` values with unspecified contents; the caller writes all of them.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    match free.iter().rposition(|buffer| buffer.len() == len) {
        Some(index) => free.swap_remove(index),
        None => {
            drop(free);
            vec![0.0; len]
        }
    }
}

/// Returns a buffer to the pool; above [`LIMIT`] the oldest ones are freed.
#[cfg(feature = "train")]
pub(crate) fn give(buffer: Vec<f32>) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    free.push(buffer);
    let mut bytes: usize = free.iter().map(|buffer| buffer.len() * 4).sum();
    while bytes > LIMIT {
        bytes -= free.remove(0).len() * 4;
    }
}
