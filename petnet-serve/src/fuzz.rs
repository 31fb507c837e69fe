//! Entry points for fuzzing the parsers of untrusted input; compiled by `cargo fuzz` only.

use bytes::Bytes;

use crate::routes::parse_tensors;
use crate::upload::parse;

/// Parses a request of the Open Inference Protocol.
pub fn tensors(body: &[u8], json_len: Option<usize>) {
    let _ = parse_tensors(&Bytes::copy_from_slice(body), json_len);
}

/// Parses a multipart form, and JSON with base64.
pub fn uploads(body: &[u8]) {
    parse(&Bytes::copy_from_slice(body));
}
