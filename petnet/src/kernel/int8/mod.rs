//! Convolutions of bytes for x86-64 CPUs with AVX-512 VNNI: unsigned bytes by signed ones, summed in 32-bit integers
//! and requantised to unsigned bytes.
//!
//! A value of the output is `round(sum * scale + offset + residual)`, saturated to 0..=255. Scale and offset are those
//! of its channel; they hold the scales and zero points of all maps and the bias. Activations need no operation: the
//! levels of a map end where its activation does.

mod depthwise;
mod lanes;
mod products;
#[cfg(test)]
mod tests;

pub(crate) use depthwise::{Depthwise, Geometry};
pub(crate) use products::{Packed, Product, Strides};

/// Repeats a block with each number below a constant one, as constants: in a loop over sums, those would leave their
/// registers.
macro_rules! each {
    ($count:ident, |$number:ident| $body:block) => {
        each!($count, $number, $body, 0 1 2 3 4 5 6 7)
    };
    ($count:ident, $number:ident, $body:block, $($literal:literal)+) => {
        $(if $literal < $count {
            #[allow(non_upper_case_globals, reason = "a constant in place of a loop's variable")]
            const $number: usize = $literal;
            $body
        })+
    };
}

use each;

/// As much as a vector or a line of the cache holds: loads that cross lines take twice the time.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line<T, const N: usize>([T; N]);

/// Values at the beginning of a line of the cache, with zeros up to the end of another.
fn aligned<T: Copy + Default, const N: usize>(values: &[T]) -> Vec<Line<T, N>> {
    let lines = values.chunks(N).map(|values| {
        let mut line = Line([T::default(); N]);
        line.0[..values.len()].copy_from_slice(values);
        line
    });
    lines.collect()
}

/// Bytes behind a map that products may read, whatever they are.
pub(crate) const SLACK: usize = 4;

/// True on CPUs with the instructions of the kernels.
pub(crate) fn supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// The linear map from a convolution's integer sums to the bytes of its output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Requantize {
    /// One factor for each output channel.
    pub(crate) scale: Vec<f32>,
    /// One summand for each output channel.
    pub(crate) offset: Vec<f32>,
    /// Factor of a residual's bytes.
    pub(crate) residual: f32,
}

/// The place of a channel among `vectors` vectors of 32-bit values. Saturating packs of those vectors give bytes in
/// the channels' order, as each 128-bit lane takes four values of each vector in turn.
fn place(channel: usize, vectors: usize, lanes: usize) -> usize {
    let (four, within) = (channel / 4, channel % 4);
    let (lane, vector) = (four / vectors, four % vectors);
    vector * 4 * lanes + 4 * lane + within
}
