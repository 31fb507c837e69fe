//! Passes over a graph: names and shapes of its weights, operation counts, fusion of nodes into steps, and programs of
//! one or two heads. Independent of values and tensors.

mod count;
mod fuse;
mod program;
mod weights;

pub(crate) use count::{conv_flops, flops};
#[cfg(feature = "burn")]
pub(crate) use fuse::FUSED_POOL;
pub(crate) use fuse::{FusedOps, FusedStep, MainOp, fuse};
pub(crate) use program::Program;
pub(crate) use weights::{parameters, validate};
