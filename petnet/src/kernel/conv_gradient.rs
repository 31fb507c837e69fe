//! The gradient of a dense convolution's weights, for training. Each tap's `[inputs, outputs]` is the sum over images and
//! output pixels of outer products of an input pixel and a gradient pixel. Tiles of `R` inputs by `V` vectors of outputs
//! are summed in registers over a strip of pixels, and added to the gradient in memory after it.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::BatchConv;
use super::tiles::{add, blocks, dispatch_tile, load, max_vectors, store, tile_rows};
use super::vector_arch;

/// Rows (pixels times images) of a strip: few enough to stay in the L1 cache.
const STRIP_ROWS: usize = 64;
/// Values of the gradient that one task adds up over the parts of the rows: 16 KiB of each part.
const SUM_CHUNK: usize = 1 << 12;

impl BatchConv {
    /// The gradient of the weights, `[inputs, taps, outputs]`.
    pub(crate) fn backward_weights(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        assert!(x.len() == self.in_len() && dy.len() == self.out_len());
        let mut dw = vec![0.0; self.inputs * self.taps() * self.outputs];
        // Few tasks (parts of the rows times groups of inputs), since each reads all of its rows of both maps. Maps of many
        // rows have few weights, so that separate sums for each of four parts of the rows cost little.
        let height = self.vertical.out_len;
        let parts = if height >= 16 { 4 } else { 2 };
        // Two groups of inputs, in multiples of the 8 rows of a tile.
        let group_inputs = self.inputs.div_ceil(16) * 8;
        let mut sums = vec![0.0; parts * dw.len()];
        let tasks = sums.chunks_exact_mut(dw.len()).enumerate().flat_map(|(part, sums)| {
            let rows = height * part / parts..height * (part + 1) / parts;
            let groups = sums.chunks_mut(group_inputs * self.taps() * self.outputs).enumerate();
            groups.map(move |(group, dw)| (rows.clone(), group * group_inputs, dw))
        });
        tasks.collect::<Vec<_>>().into_par_iter().for_each(|(rows, first, dw)| {
            let count = group_inputs.min(self.inputs - first);
            vector_arch().dispatch(WeightGradient { conv: *self, x, dy, rows, first, count, dw });
        });
        let len = dw.len();
        dw.par_chunks_mut(SUM_CHUNK).enumerate().for_each(|(chunk, dw)| {
            for (index, dw) in dw.iter_mut().enumerate() {
                let index = chunk * SUM_CHUNK + index;
                *dw = (0..parts).map(|part| sums[part * len + index]).sum();
            }
        });
        dw
    }
}

/// Contribution of some rows of the output to the gradient of the weights of `count` inputs from `first` on.
struct WeightGradient<'a> {
    conv: BatchConv,
    x: &'a [f32],
    dy: &'a [f32],
    rows: Range<usize>,
    first: usize,
    count: usize,
    /// `[count, taps, outputs]`.
    dw: &'a mut [f32],
}

/// Neighbouring output pixels of a row, one tap, and the first of some output channels.
struct Strip<'a> {
    conv: &'a BatchConv,
    /// The input from the first value that the tap reads on.
    x: &'a [f32],
    dy: &'a [f32],
    tap: usize,
    /// First output channel.
    output: usize,
}

impl WithSimd for WeightGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let conv = self.conv;
        let pixels = STRIP_ROWS.div_ceil(conv.batch);
        let all_vectors = conv.outputs.div_ceil(S::F32_LANES);
        for y in self.rows.clone() {
            for first in (0..conv.horizontal.out_len).step_by(pixels) {
                for (first_vector, vectors) in blocks(all_vectors, max_vectors::<S>()) {
                    for tap in 0..conv.taps() {
                        let output = first_vector * S::F32_LANES;
                        self.strip(simd, (y, first..first + pixels), tap, (output, vectors));
                    }
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    #[inline(always)]
    fn strip<S: Simd>(
        &mut self,
        simd: S,
        (y, pixels): (usize, Range<usize>),
        tap: usize,
        (output, vectors): (usize, usize),
    ) {
        let conv = &self.conv;
        let (ky, kx) = (tap / conv.horizontal.kernel, tap % conv.horizontal.kernel);
        let Some(source_y) = conv.vertical.input_index(y, ky) else { return };
        let valid = conv.horizontal.valid_outputs(kx);
        let pixels = pixels.start.max(valid.start)..pixels.end.min(valid.end);
        if pixels.is_empty() {
            return;
        }
        let Some(source_x) = conv.horizontal.input_index(pixels.start, kx) else { return };
        let (x_pixel, dy_pixel) = (conv.batch * conv.inputs, conv.batch * conv.outputs);
        let dy = &self.dy[y * conv.horizontal.out_len * dy_pixel..];
        let x = &self.x[(source_y * conv.horizontal.len + source_x) * x_pixel + self.first..];
        let dy = &dy[pixels.start * dy_pixel..pixels.end * dy_pixel];
        let mut input = 0;
        while input < self.count {
            let count = tile_rows::<S>(self.count - input);
            let strip = &Strip { conv, x: &x[input..], dy, tap, output };
            let dw = &mut self.dw[input * conv.taps() * conv.outputs..];
            dispatch_tile!(simd, count, vectors, OuterProducts { strip, dw });
            input += count;
        }
    }
}

/// A tile of the gradient: `R` inputs by `V` vectors of output channels.
struct OuterProducts<'a, const R: usize, const V: usize> {
    strip: &'a Strip<'a>,
    dw: &'a mut [f32],
}

#[expect(unsafe_code, reason = "bounds checks in the innermost loop halve the speed")]
impl<const R: usize, const V: usize> WithSimd for OuterProducts<'_, R, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Strip { conv, x, dy, tap, output } = *self.strip;
        let BatchConv { inputs, outputs, batch, .. } = *conv;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for (pixel, dy) in dy.chunks_exact(batch * outputs).enumerate() {
            let x =
                &x[pixel * conv.horizontal.stride * batch * inputs..][..(batch - 1) * inputs + R];
            for (image, dy) in dy.chunks_exact(outputs).enumerate() {
                let gradients = load::<S, V>(simd, &dy[output..]);
                for row in 0..R {
                    // SAFETY: below (batch - 1) * inputs + R, the length, as image < batch and row < R.
                    let value = unsafe { *x.get_unchecked(image * inputs + row) };
                    let value = simd.splat_f32s(value);
                    for vector in 0..V {
                        let sum = sums[row][vector];
                        sums[row][vector] = simd.mul_add_e_f32s(value, gradients[vector], sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let dw = &mut self.dw[(row * conv.taps() + tap) * outputs..][output..outputs];
            store(simd, dw, &add(simd, *sums, dw));
        }
    }
}
