//! CPU arithmetic on plain slices: tile products (GEMM micro-kernels), dense and depthwise convolutions, and for
//! training also max pooling and batch normalisation, in both directions. Independent of tensors, layers and
//! automatic differentiation.
//!
//! The engine (inference, [`crate::engine`]) and the CPU path of training (`nn/cpu`) share two things: the tile products
//! of [`tiles`] and the depthwise convolution of [`depthwise`]. Everything else belongs to one of them:
//!
//! | operation | inference (`engine`) | training (`nn/cpu`) |
//! |---|---|---|
//! | dense convolution | `engine::dense::DenseConv::run`: Winograd, 1x1, row by row or im2col; each calls [`Product::run`] or [`Product::run_by_channels`] | `BatchConv::forward` -> [`Product::run`] |
//! | its gradients | | input: `BatchConv::backward_input` -> [`Product::run`]; weights: `BatchConv::backward_weights` (`conv_gradient.rs`) |
//! | depthwise convolution | `engine::depthwise::DepthwiseConv::run` -> [`Depthwise::run_rows`] | `nn::cpu::depthwise` -> [`Depthwise::run_rows`] |
//! | its gradients | | `Depthwise::backward_input`, `Depthwise::backward_weights` (`depthwise_gradient.rs`) |
//! | int8 convolutions | `engine::int8::conv` -> `int8::Product::run`, `int8::Depthwise::run_rows` | |
//! | batch norm | folded into weights when the plan is compiled | `Norm` (`norm.rs`) |
//! | max pool | `engine::simple::MaxPool`; fused into a dense convolution: `DenseConv::run` | `MaxPool2d`; fused into a batch norm: `Norm` |
//!
//! The column of training also holds for burn's inference on its flex backend. Other devices use burn's own operations.
//!
//! Feature maps of a batch are HWNC, `[height, width, image, channel]`: the channels of one pixel of one image are
//! contiguous, and the images of the batch come next. The engine runs one image at a time, for which HWNC is NHWC. At
//! each output pixel a dense convolution is then a sum of small matrix products `[images, inputs] x [inputs, outputs]`,
//! one for each kernel tap inside of the map. It needs no padding and no im2col, and works for any stride in both
//! directions.
//!
//! Every sum has a fixed order, so that results do not depend on the number of threads: one task computes it, or, for gradients
//! of weights, parts whose number is fixed.
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over sums must unroll, or the sums are spilled"
)]

mod axis;
#[cfg(feature = "flex")]
mod buffers;
#[cfg(feature = "flex")]
mod conv;
#[cfg(feature = "train")]
mod conv_gradient;
mod depthwise;
#[cfg(feature = "train")]
mod depthwise_gradient;
#[cfg(target_arch = "x86_64")]
pub(crate) mod int8;
#[cfg(feature = "flex")]
mod max_pool;
#[cfg(feature = "flex")]
#[cfg_attr(not(feature = "train"), allow(dead_code, reason = "only training computes gradients"))]
mod norm;
mod tiles;

#[cfg(feature = "flex")]
pub(crate) use self::{
    buffers::acquire_buffer,
    conv::BatchConv,
    max_pool::MaxPool2d,
    norm::{Affine, Norm, Statistics},
};
#[cfg(feature = "train")]
pub(crate) use self::{
    buffers::{free_buffers, release_buffer},
    norm::NormGradient,
};
pub(crate) use depthwise::Depthwise;
pub(crate) use tiles::{Epilogue, PackedView, PackedWeights, Product, RowRun, Term, load, store};

#[cfg(feature = "burn")]
use crate::graph::Activation;

/// Activation and pool after a convolution, its batch norm and a residual.
#[cfg(feature = "burn")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NormEpilogue {
    pub(crate) activation: Option<Activation>,
    /// True for a 2x2 max pool of stride 2; a last odd row or column is dropped.
    pub(crate) pool: bool,
}

/// A batch norm with these statistics as `x * scale + shift`: scale and shift of each channel.
pub(crate) fn batch_norm_affine(
    [gamma, beta, mean, variance]: [&[f32]; 4],
    epsilon: f32,
) -> [Vec<f32>; 2] {
    let scale: Vec<f32> =
        gamma.iter().zip(variance).map(|(gamma, v)| gamma / (v + epsilon).sqrt()).collect();
    let shift = beta.iter().zip(mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    [scale, shift]
}

/// The widest vector instructions of this machine: AVX-512, AVX2 or NEON, else scalar code.
#[inline(always)]
pub(crate) fn vector_arch() -> pulp::Arch {
    #[cfg(test)]
    if let Some(arch) = *TEST_ARCH {
        return arch;
    }
    pulp::Arch::new()
}

/// Runs a block that is compiled for the widest vectors. The closure is inlined into the function that has their target
/// features; otherwise it would be compiled without them.
macro_rules! vectorized {
    ($body:block) => {
        $crate::kernel::vector_arch().dispatch(
            #[inline(always)]
            || $body,
        )
    };
}

pub(crate) use vectorized;

/// Narrower vectors for tests, chosen by `PETNET_TEST_VECTORS`. They hold for the whole process, since packed weights
/// depend on the width of the vectors.
#[cfg(test)]
static TEST_ARCH: std::sync::LazyLock<Option<pulp::Arch>> =
    std::sync::LazyLock::new(|| match std::env::var("PETNET_TEST_VECTORS").ok()?.as_str() {
        #[cfg(target_arch = "x86_64")]
        "avx2" => pulp::x86::V3::try_new().map(pulp::Arch::V3),
        "scalar" => Some(pulp::Arch::Scalar),
        other => panic!("PETNET_TEST_VECTORS is {other}, which this CPU has not"),
    });

#[cfg(test)]
pub(crate) mod tests {
    /// Pseudorandom 32-bit numbers of a linear congruential generator.
    pub(crate) fn numbers(seed: u32) -> impl Iterator<Item = u32> {
        let first = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        std::iter::successors(Some(first), next).skip(1)
    }

    /// Pseudorandom values between -1 and 1.
    pub(crate) fn values(count: usize, seed: u32) -> Vec<f32> {
        numbers(seed).map(|bits| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0).take(count).collect()
    }

    /// Fails where values differ by more than the rounding errors of a network.
    #[cfg(feature = "flex")]
    pub(crate) fn assert_close(actual: &[f32], expected: &[f32], what: &str) {
        let scale = expected.iter().fold(1.0_f32, |top, value| top.max(value.abs()));
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() < 2e-5 * scale, "{what}: {actual} is not {expected}");
        }
    }
}
