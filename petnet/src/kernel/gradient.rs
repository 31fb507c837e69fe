//! The gradient of a convolution's weights: outer products, summed in registers.
#![allow(
    unsafe_code,
    reason = "bounds checks in the innermost loop halve the speed; tests compare with burn's"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over sums must unroll, or the sums leave their registers"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::arch;
use super::conv::Conv;
use super::tiles::{add, blocks_of, in_registers, load, rows_at_once, store};

/// Rows of a pass over the weights' gradient: few enough to stay in the first cache.
const PASS: usize = 64;

impl Conv {
    /// The gradient of the weights, `[inputs, taps, outputs]`.
    pub(crate) fn backward_weights(&self, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        assert!(x.len() == self.in_len() && dy.len() == self.out_len());
        // Few tasks: each reads its rows of both maps whole. Where rows are many, weights are few,
        // and a sum for each part of the rows costs little.
        let height = self.out_height;
        let parts = if height >= 16 { 4 } else { 2 };
        let share = self.inputs.div_ceil(16) * 8;
        let mut sums = vec![0.0; parts * dw.len()];
        let tasks = sums.chunks_exact_mut(dw.len()).enumerate().flat_map(|(part, sums)| {
            let rows = height * part / parts..height * (part + 1) / parts;
            let groups = sums.chunks_mut(share * self.taps() * self.outputs).enumerate();
            groups.map(move |(group, dw)| (rows.clone(), group * share, dw))
        });
        tasks.collect::<Vec<_>>().into_par_iter().for_each(|(rows, first, dw)| {
            let count = share.min(self.inputs - first);
            arch().dispatch(WeightGradient { conv: *self, x, dy, rows, first, count, dw });
        });
        let len = dw.len();
        dw.par_chunks_mut(1 << 12).enumerate().for_each(|(chunk, dw)| {
            for (place, dw) in dw.iter_mut().enumerate() {
                let place = chunk * (1 << 12) + place;
                *dw = (0..parts).map(|part| sums[part * len + place]).sum();
            }
        });
    }
}

/// What some rows add to the gradient of the weights of `count` inputs from `first` on.
pub(super) struct WeightGradient<'a> {
    pub(super) conv: Conv,
    pub(super) x: &'a [f32],
    pub(super) dy: &'a [f32],
    /// Rows of the output.
    pub(super) rows: Range<usize>,
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[count, taps, outputs]`.
    pub(super) dw: &'a mut [f32],
}

/// Neighbouring output pixels and what one tap reads for them.
struct Pass<'a> {
    conv: &'a Conv,
    /// From the first input of the first pixel on.
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
        let pixels = PASS.div_ceil(conv.batch);
        for y in self.rows.clone() {
            for from in (0..conv.out_width).step_by(pixels) {
                for (first, width) in blocks_of::<S>(conv.outputs) {
                    for tap in 0..conv.taps() {
                        let output = first * S::F32_LANES;
                        self.pass(simd, (y, from..from + pixels), tap, (output, width));
                    }
                }
            }
        }
    }
}

impl WeightGradient<'_> {
    #[inline(always)]
    fn pass<S: Simd>(
        &mut self,
        simd: S,
        (y, pixels): (usize, Range<usize>),
        tap: usize,
        (output, width): (usize, usize),
    ) {
        let conv = &self.conv;
        let Some(source_y) = conv.rows().source(y, tap / conv.kernel) else { return };
        let reading = conv.columns().reading(tap % conv.kernel);
        let pixels = pixels.start.max(reading.start)..pixels.end.min(reading.end);
        if pixels.is_empty() {
            return;
        }
        let Some(source_x) = conv.columns().source(pixels.start, tap % conv.kernel) else { return };
        let (x_pixel, dy_pixel) = (conv.batch * conv.inputs, conv.batch * conv.outputs);
        let dy = &self.dy[y * conv.out_width * dy_pixel..];
        let x = &self.x[(source_y * conv.width + source_x) * x_pixel + self.first..];
        let dy = &dy[pixels.start * dy_pixel..pixels.end * dy_pixel];
        let mut input = 0;
        while input < self.count {
            let count = rows_at_once::<S>(self.count - input);
            let pass = &Pass { conv, x: &x[input..], dy, tap, output };
            let dw = &mut self.dw[input * conv.taps() * conv.outputs..];
            in_registers!(simd, count, width, OuterProducts { pass, dw });
            input += count;
        }
    }
}

/// `R` inputs by `V` vectors of output channels.
struct OuterProducts<'a, const R: usize, const V: usize> {
    pass: &'a Pass<'a>,
    dw: &'a mut [f32],
}

impl<const R: usize, const V: usize> WithSimd for OuterProducts<'_, R, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Pass { conv, x, dy, tap, output } = *self.pass;
        let Conv { inputs, outputs, batch, .. } = *conv;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for (pixel, dy) in dy.chunks_exact(batch * outputs).enumerate() {
            let x = &x[pixel * conv.stride * batch * inputs..][..(batch - 1) * inputs + R];
            for (photo, dy) in dy.chunks_exact(outputs).enumerate() {
                let gradients = load::<S, V>(simd, &dy[output..]);
                for row in 0..R {
                    // SAFETY: below (batch - 1) * inputs + R, the length, as photo < batch and
                    // row < R.
                    let value = unsafe { *x.get_unchecked(photo * inputs + row) };
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
