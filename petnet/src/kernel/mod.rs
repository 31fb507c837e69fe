//! Arithmetic on plain slices, for CPUs: products for convolutions, depthwise convolutions, and for training on the
//! CPU convolution and batch normalisation in both directions. Knows no tensors, no layers, no graph of gradients.
//!
//! Activations lie as HWNC, `[height, width, image, channel]`: the channels of one pixel of one image are contiguous,
//! then come the images of the batch. At each output pixel a convolution is then a sum of small dense products
//! `[images, inputs] x [inputs, outputs]`, one for each tap of the kernel that falls inside of the map: no padding, no
//! im2col, and any stride works in both directions.
//!
//! Every sum is taken by one task in one order, so that the thread count changes no bit.

#[cfg(feature = "flex")]
mod buffers;
#[cfg(feature = "flex")]
mod conv;
mod depthwise;
#[cfg(feature = "train")]
mod depthwise_gradient;
#[cfg(feature = "train")]
mod gradient;
#[cfg(target_arch = "x86_64")]
pub(crate) mod int8;
#[cfg(feature = "flex")]
mod max_pool;
#[cfg(feature = "flex")]
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "only training goes backward"))]
mod norm;
mod tiles;

#[cfg(feature = "train")]
pub(crate) use buffers::give;
#[cfg(feature = "flex")]
pub(crate) use buffers::take;
#[cfg(feature = "flex")]
pub(crate) use conv::Conv;
pub(crate) use depthwise::Depthwise;
#[cfg(feature = "flex")]
pub(crate) use max_pool::MaxPool2d;
#[cfg(feature = "train")]
pub(crate) use norm::NormGradient;
#[cfg(feature = "flex")]
pub(crate) use norm::{Affine, Follows, Norm, Statistics};
pub(crate) use tiles::{Epilogue, Packed, Product, Run, Term, View, load, store};

/// The widest vectors that this machine has: AVX-512, AVX2 or NEON where they are, else plain numbers.
#[inline(always)]
pub(crate) fn arch() -> pulp::Arch {
    #[cfg(test)]
    if let Some(arch) = *FORCED {
        return arch;
    }
    pulp::Arch::new()
}

/// Narrower vectors, for a test process that asks for them: all that is packed and multiplied in
/// one process must agree on their width.
#[cfg(test)]
static FORCED: std::sync::LazyLock<Option<pulp::Arch>> =
    std::sync::LazyLock::new(|| match std::env::var("PETNET_TEST_VECTORS").ok()?.as_str() {
        #[cfg(target_arch = "x86_64")]
        "avx2" => pulp::x86::V3::try_new().map(pulp::Arch::V3),
        _ => Some(pulp::Arch::Scalar),
    });
