//! Doors for fuzzing to what reads strangers' bytes; compiled by `cargo fuzz` alone.

use bytes::Bytes;

use crate::routes::parse_tensors;
use crate::upload::parse;

/// Reads a request of the Open Inference Protocol.
pub fn tensors(body: &[u8], head: Option<usize>) {
    let _ = parse_tensors(&Bytes::copy_from_slice(body), head);
}

/// Reads a multipart form, and JSON with base64.
pub fn uploads(body: &[u8]) {
    parse(&Bytes::copy_from_slice(body));
}
