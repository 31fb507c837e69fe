//! Arithmetic on plain slices, for CPUs: convolution and batch normalisation, both directions.
//! Knows no tensors, no layers, no gradients' graph.
//!
//! Activations lie as `[height, width, photo, channel]`: the channels of one pixel of one photo
//! are contiguous, then come the photos of the batch. At each output pixel a convolution is then
//! a sum of small dense products `[photos, inputs] x [inputs, outputs]`, one for each tap of the
//! kernel that falls inside the picture: no padding, no copied patches, and any stride works in
//! both directions.
//!
//! Every sum is taken by one task in one order, so that the thread count changes no bit.

mod conv;
mod norm;
mod pool;
mod tiles;

pub(crate) use conv::Conv;
pub(crate) use norm::{Activation, Affine, Norm, Slopes, Statistics};
pub(crate) use pool::{give, take};
pub(crate) use tiles::{After, Packed, Product, Run, Term};
