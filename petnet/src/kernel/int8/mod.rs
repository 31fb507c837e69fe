//! Int8 convolutions of one image for x86-64 CPUs with AVX-512 VNNI: feature maps of unsigned bytes (NHWC), weights of
//! signed bytes, sums of 32 bits, requantised to unsigned bytes (Jacob et al., "Quantization and training of neural
//! networks for efficient integer-arithmetic-only inference", 2018). Only the engine uses them (`engine::int8`).
//!
//! The instruction `vpdpbusd` multiplies four neighbouring unsigned bytes by four signed bytes and adds the products to a
//! 32-bit sum, in each 32-bit lane of a vector. Dense convolutions ([`products`]) put four inputs of one output channel
//! into a lane, depthwise ones ([`depthwise`]) four kernel columns of one channel.
//!
//! A value of the output is `round(sum * scale + offset + residual)`, saturated to 0..=255. Scale and offset are those of
//! its output channel; they include the scales and zero points of all maps and the bias. Activations need no operation:
//! the range of a map ends at the bounds of its activation.

mod depthwise;
mod lanes;
mod products;
#[cfg(test)]
mod tests;

pub(crate) use depthwise::{Depthwise, Geometry};
pub(crate) use products::{PackedWeights, Product, Strides};

/// Unrolls a loop over the numbers below a constant of at most 8, each a constant in its iteration; in a loop, the sums
/// would be spilled.
macro_rules! unroll {
    ($count:ident, |$number:ident| $body:block) => {
        unroll!($count, $number, $body, 0 1 2 3 4 5 6 7)
    };
    ($count:ident, $number:ident, $body:block, $($literal:literal)+) => {
        $(if $literal < $count {
            #[allow(non_upper_case_globals, reason = "a constant in place of a loop's variable")]
            const $number: usize = $literal;
            $body
        })+
    };
}

use unroll;

/// Values of a cache line, which is as long as a 512-bit vector: loads that cross lines take twice the time.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine<T, const N: usize>([T; N]);

/// Copies values to whole cache lines, padded with zeros.
fn aligned<T: Copy + Default, const N: usize>(values: &[T]) -> Vec<CacheLine<T, N>> {
    let lines = values.chunks(N).map(|values| {
        let mut line = CacheLine([T::default(); N]);
        line.0[..values.len()].copy_from_slice(values);
        line
    });
    lines.collect()
}

/// A mask with one bit for each of 1 to 64 channels.
#[inline]
fn mask(channels: usize) -> u64 {
    u64::MAX >> (64 - channels)
}

/// Bytes after a map that products may read; their values have no effect.
pub(crate) const SLACK: usize = 4;

/// True where the CPU has the instructions of these kernels.
pub(crate) fn supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Requantisation: the affine map from a convolution's 32-bit sums to the bytes of its output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Requantization {
    /// For each output channel.
    pub(crate) scale: Vec<f32>,
    /// For each output channel.
    pub(crate) offset: Vec<f32>,
    /// Scale of a residual's bytes.
    pub(crate) residual_scale: f32,
}

/// Index of a channel's 32-bit sum among the values of `vectors` vectors of `lanes` 128-bit lanes. Saturating packs
/// (`vpackssdw`, `vpackuswb`) take four values of each vector for each 128-bit lane of their output. With sums in this
/// order, the packed bytes of four vectors are in the order of the channels.
fn packed_index(channel: usize, vectors: usize, lanes: usize) -> usize {
    let (four, within) = (channel / 4, channel % 4);
    let (lane, vector) = (four / vectors, four % vectors);
    vector * 4 * lanes + 4 * lane + within
}
