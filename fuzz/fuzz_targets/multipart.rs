//! Multipart forms and base64 in JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| petnet_serve::fuzz::uploads(body));
