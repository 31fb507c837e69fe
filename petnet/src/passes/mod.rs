//! Passes over a graph before anything runs: its weights' names and shapes, its operations, and which
//! nodes run as one step. Knows no values and no tensors.

mod count;
mod fuse;
mod weights;

pub(crate) use count::{conv_flops, flops};
pub(crate) use fuse::{Epilogue, Main, Step, fuse};
#[cfg(any(test, feature = "onnx", feature = "pytorch"))]
pub(crate) use weights::parameters;
pub(crate) use weights::validate;
