//! Buffers that are used again: fresh ones of tens of megabytes cost more in page faults than the
//! arithmetic that fills them.

use std::sync::{Mutex, PoisonError};

/// Most bytes that wait for their next use.
#[cfg(feature = "train")]
const LIMIT: usize = 1 << 30;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer of `len` values, whatever they are; the caller writes all of them.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    match free.iter().rposition(|buffer| buffer.len() == len) {
        Some(place) => free.swap_remove(place),
        None => {
            drop(free);
            vec![0.0; len]
        }
    }
}

/// Hands a buffer back; the oldest give way when too many wait.
#[cfg(feature = "train")]
pub(crate) fn give(buffer: Vec<f32>) {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    free.push(buffer);
    let mut bytes: usize = free.iter().map(|buffer| buffer.len() * 4).sum();
    while bytes > LIMIT {
        bytes -= free.remove(0).len() * 4;
    }
}
