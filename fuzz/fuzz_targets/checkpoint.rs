//! A model file from anywhere: a model, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use petnet::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_bytes(bytes) {
        assert!(!checkpoint.info().labels.is_empty());
    }
});
