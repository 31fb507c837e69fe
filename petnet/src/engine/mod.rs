//! Runs a trained network on a CPU: a fixed plan over plain memory. Knows weights and shapes;
//! nothing of training, tensors or files.
//!
//! When a plan is made, batch norm is folded into the convolutions and weights are packed in the
//! order in which they are read; 3x3 convolutions of stride 1 on large maps go the way of Winograd.
//! Maps lie as `[height, width, channel]` within a border of zeros, as wide as the next kernel needs, so
//! that every convolution reads the same taps everywhere. Each photo has a pass of its own: a lone one
//! on all cores, many on one core each, which measured no slower than passes that share weights.

mod compile;
mod head;
mod layer;
mod plan;
mod pool;
mod winograd;

pub(crate) use compile::compile;
pub(crate) use plan::{Outputs, Plan};

#[cfg(all(test, feature = "flex"))]
mod tests;
