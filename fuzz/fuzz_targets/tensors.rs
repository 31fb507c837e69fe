//! Requests of the Open Inference Protocol, JSON and raw tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Option<u16>, &[u8])| {
    let (head, body) = input;
    petnet_serve::fuzz::tensors(body, head.map(usize::from));
});
