//! Bytes to pixels, within limits that keep a run fast.
#![no_main]

use libfuzzer_sys::fuzz_target;
use petnet::preprocess::{Limits, Preprocess, Resize};

const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_side: 4096,
    max_pixels: 1_000_000,
    max_scans: 100,
    max_alloc: 64 << 20,
};

fuzz_target!(|bytes: &[u8]| {
    for resize in [Resize::Squeeze, Resize::CenterCrop] {
        let preprocess = Preprocess { size: 32, resize };
        let announced = preprocess.memory(bytes, &LIMITS);
        let outcome = preprocess.run(bytes, &LIMITS);
        assert!(announced.is_ok() || outcome.is_err(), "decoded what the header refuses");
        if let Ok(pixels) = outcome {
            assert_eq!((pixels.width(), pixels.height()), (32, 32));
        }
    }
});
