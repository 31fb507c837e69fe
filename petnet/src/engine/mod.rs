//! Runs a trained network on a CPU: a fixed plan over plain memory. Knows graphs, weights and shapes;
//! nothing of architectures, training, tensors or files.
//!
//! When a plan is made, batch norm is folded into the convolutions and weights are packed in the order in which they
//! are read; 3x3 convolutions of stride 1 on large maps use Winograd's algorithm. Maps lie as NHWC, within a border of
//! zeros as wide as the dense kernels that read them need; depthwise and 1x1 convolutions need none. A map's memory is
//! used again once nothing reads it any more, so that most maps stay in the cache. Each image has a pass of its own: a
//! lone one on all cores, many on one core each, which measured no slower than passes that share weights.

mod compile;
mod conv;
mod head;
mod plan;
mod shape;
mod simple;
mod winograd;

pub(crate) use compile::compile;
#[cfg(feature = "burn")]
pub(crate) use head::Head;
pub(crate) use plan::{Heat, Outputs, Plan};

#[cfg(all(test, feature = "flex"))]
mod tests;
