//! Gradients of depthwise convolutions, for training.
//!
//! The gradient of the input is a convolution of the output's gradient with the flipped kernel where the stride is 1,
//! and a sum over the outputs that read each input otherwise. The gradient of the weights is a sum over pixels and
//! images, in parts of the rows that are added in order.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::axis::Axis;
use super::depthwise::Depthwise;
use super::tiles::{Epilogue, add, load, store};
use super::vector_arch;

/// Vectors of channels that are summed at the same time.
const VECTORS: usize = 4;
/// Parts of the rows with separate sums. It is independent of the number of threads, so that results are as well.
const PARTS: usize = 8;
/// Values of a strip of a row that stay in the L2 cache while all taps read them.
const STRIP_VALUES: usize = 1 << 15;

impl Depthwise {
    /// The gradient of the input from that of the output, both without borders. `weights` are
    /// `[kernel * kernel, channels]`.
    pub(crate) fn backward_input(&self, dy: &[f32], weights: &[f32], dx: &mut [f32]) {
        let Self { vertical, horizontal, batch, channels, .. } = *self;
        let row = horizontal.len * batch * channels;
        let fits = [vertical, horizontal].iter().all(|axis| axis.padding < axis.kernel);
        if vertical.stride == 1 && fits {
            let flipped: Vec<f32> = weights.rchunks_exact(channels).flatten().copied().collect();
            let forward = Self {
                vertical: vertical.reversed(),
                horizontal: horizontal.reversed(),
                row_stride: self.out_row_stride,
                out_row_stride: self.row_stride,
                ..*self
            };
            dx.par_chunks_mut(row).enumerate().for_each(|(y, dx)| {
                forward.run_rows((dy, &flipped), y..y + 1, Epilogue::default(), dx);
            });
            return;
        }
        dx.par_chunks_mut(row).enumerate().for_each(|(y, dx)| {
            vector_arch().dispatch(InputRow { conv: *self, dy, weights, y, dx });
        });
    }

    /// The gradient of the weights, `[kernel * kernel, channels]`.
    pub(crate) fn backward_weights(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (len, height) = (self.taps() * self.channels, self.vertical.out_len);
        let parts: Vec<Vec<f32>> = (0..PARTS)
            .into_par_iter()
            .map(|part| {
                let rows = height * part / PARTS..height * (part + 1) / PARTS;
                let mut dw = vec![0.0; len];
                vector_arch().dispatch(Weights { conv: *self, x, dy, rows, dw: &mut dw });
                dw
            })
            .collect();
        let mut dw = vec![0.0; len];
        for part in parts {
            dw.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        dw
    }
}

/// A row of the input's gradient.
struct InputRow<'a> {
    conv: Depthwise,
    dy: &'a [f32],
    weights: &'a [f32],
    y: usize,
    dx: &'a mut [f32],
}

impl WithSimd for InputRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { conv, dy, weights, y, dx } = self;
        let Depthwise { vertical, horizontal, batch, channels, .. } = conv;
        let rows: Vec<_> = vertical.readers(y).collect();
        for (x, dx) in dx.chunks_exact_mut(batch * channels).enumerate() {
            let columns: Vec<_> = horizontal.readers(x).collect();
            for (image, dx) in dx.chunks_exact_mut(channels).enumerate() {
                for (chunk, dx) in dx.chunks_mut(VECTORS * S::F32_LANES).enumerate() {
                    let channel = chunk * VECTORS * S::F32_LANES;
                    let mut sums = [simd.splat_f32s(0.0); VECTORS];
                    for &(oy, ky) in &rows {
                        for &(ox, kx) in &columns {
                            let at = oy * conv.out_row_stride
                                + (ox * batch + image) * channels
                                + channel;
                            let values = load::<S, VECTORS>(simd, &dy[at..at + dx.len()]);
                            let at = (ky * horizontal.kernel + kx) * channels + channel;
                            let weights = load::<S, VECTORS>(simd, &weights[at..at + dx.len()]);
                            for v in 0..VECTORS {
                                sums[v] = simd.mul_add_e_f32s(values[v], weights[v], sums[v]);
                            }
                        }
                    }
                    store(simd, dx, &sums);
                }
            }
        }
    }
}

/// Contribution of some rows to the weights' gradient.
struct Weights<'a> {
    conv: Depthwise,
    x: &'a [f32],
    dy: &'a [f32],
    rows: Range<usize>,
    dw: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Depthwise { horizontal: Axis { out_len, kernel, .. }, batch, channels, .. } = self.conv;
        let strip = (STRIP_VALUES / (batch * channels)).clamp(1, out_len);
        for y in self.rows.clone() {
            for first in (0..out_len).step_by(strip) {
                let outputs = first..(first + strip).min(out_len);
                for tap in 0..kernel * kernel {
                    self.tap(simd, y, outputs.clone(), [tap / kernel, tap % kernel]);
                }
            }
        }
    }
}

impl Weights<'_> {
    #[inline(always)]
    fn tap<S: Simd>(&mut self, simd: S, y: usize, outputs: Range<usize>, [ky, kx]: [usize; 2]) {
        let Depthwise { vertical, horizontal, batch, channels, .. } = self.conv;
        let Some(source) = vertical.input_index(y, ky) else { return };
        let lanes = VECTORS * S::F32_LANES;
        for channel in (0..channels).step_by(lanes) {
            let count = lanes.min(channels - channel);
            let mut sums = [simd.splat_f32s(0.0); VECTORS];
            for output in outputs.clone() {
                let Some(column) = horizontal.input_index(output, kx) else { continue };
                let x = source * self.conv.row_stride + column * batch * channels + channel;
                let dy = y * self.conv.out_row_stride + output * batch * channels + channel;
                for image in 0..batch {
                    let x = &self.x[x + image * channels..][..count];
                    let dy = &self.dy[dy + image * channels..][..count];
                    let (x, dy) = (load::<S, VECTORS>(simd, x), load::<S, VECTORS>(simd, dy));
                    for v in 0..VECTORS {
                        sums[v] = simd.mul_add_e_f32s(x[v], dy[v], sums[v]);
                    }
                }
            }
            let dw = &mut self.dw[(ky * horizontal.kernel + kx) * channels + channel..][..count];
            let sums = add(simd, sums, dw);
            store(simd, dw, &sums);
        }
    }
}
