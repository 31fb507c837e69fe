//! Passes over a graph before anything runs: its weights' names and shapes, its operations, and which
//! nodes run as one step. Knows no values and no tensors.

mod count;
mod fuse;
mod program;
mod weights;

pub(crate) use count::{conv_flops, flops};
pub(crate) use fuse::{Epilogue, Main, Step, fuse};
pub(crate) use program::Program;
pub(crate) use weights::parameters;
pub(crate) use weights::validate;
