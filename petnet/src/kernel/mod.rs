//! Arithmetic on plain slices, for CPUs: products for convolutions, and for training on the CPU
//! convolution and batch normalisation in both directions. Knows no tensors, no layers, no graph
//! of gradients.
//!
//! Activations lie as `[height, width, photo, channel]`: the channels of one pixel of one photo
//! are contiguous, then come the photos of the batch. At each output pixel a convolution is then
//! a sum of small dense products `[photos, inputs] x [inputs, outputs]`, one for each tap of the
//! kernel that falls inside the picture: no padding, no copied patches, and any stride works in
//! both directions.
//!
//! Every sum is taken by one task in one order, so that the thread count changes no bit.

#[cfg(feature = "flex")]
mod conv;
#[cfg(feature = "train")]
mod gradient;
#[cfg(feature = "flex")]
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "only training goes backward"))]
mod norm;
#[cfg(feature = "flex")]
mod pool;
mod tiles;

#[cfg(feature = "flex")]
pub(crate) use conv::Conv;
#[cfg(feature = "train")]
pub(crate) use norm::Slopes;
#[cfg(feature = "flex")]
pub(crate) use norm::{Affine, Norm, Statistics};
#[cfg(feature = "train")]
pub(crate) use pool::give;
#[cfg(feature = "flex")]
pub(crate) use pool::take;
pub(crate) use tiles::{After, Packed, Product, Run, Steps, Term, View, load, store};

/// What follows a normalisation.
#[cfg(feature = "burn")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Nothing.
    Linear,
    /// ReLU.
    Relu,
    /// ReLU, then the largest of each two by two pixels; a last odd row or column is left out.
    ReluPool,
}
