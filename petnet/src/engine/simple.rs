//! Steps other than convolutions: max pools, and norms, sums and activations that follow no convolution.

use rayon::prelude::*;

use super::shape::{Input, Shape};
use crate::graph::{Activation, Window};
use crate::kernel::{Epilogue, vectorized};

/// A max pool of one image's map, of floats or bytes. `kernel::MaxPool2d` is that of training.
#[derive(Debug)]
pub(super) struct MaxPool {
    pub(super) window: Window,
    pub(super) output: Shape,
}

impl MaxPool {
    /// Computes the inside of `out`; no value of the map is below `lowest`.
    pub(super) fn run<T>(&self, input: Input<'_, T>, lowest: T, out: &mut [T])
    where
        T: Copy + PartialOrd + Send + Sync,
    {
        let (from, to) = (input.shape, self.output);
        let rows = out[to.inner_rows()].par_chunks_exact_mut(to.row_len());
        rows.enumerate().with_min_len(input.min_parts()).for_each(|(y, out)| {
            let rows_of_window = self.taps(y, from.height);
            let out = &mut out[to.inner_columns()];
            vectorized!({
                for (x, out) in out.chunks_exact_mut(to.channels).enumerate() {
                    out.fill(lowest);
                    for row in rows_of_window.clone() {
                        for column in self.taps(x, from.width) {
                            let at = (row + from.border) * from.row_len()
                                + (column + from.border) * from.channels;
                            let pixel = &input.values[at..at + from.channels];
                            for (out, value) in out.iter_mut().zip(pixel) {
                                *out = if *value > *out { *value } else { *out };
                            }
                        }
                    }
                }
            });
        });
    }

    /// The pixels of an axis of length `len` in the window of output `out`.
    fn taps(&self, out: usize, len: usize) -> std::ops::Range<usize> {
        let Window { kernel, stride, .. } = self.window;
        let [before, _] = self.window.padding(len);
        (out * stride).saturating_sub(before)..(out * stride + kernel - before).min(len)
    }
}

/// 2x2 max pooling of two rows `[2 * width, channels]` to `[width, channels]`; `max` returns the larger of two values.
pub(super) fn pool_rows<T: Copy>(
    [upper, lower]: [&[T]; 2],
    channels: usize,
    max: impl Fn(T, T) -> T,
    out: &mut [T],
) {
    let pairs = upper.chunks_exact(2 * channels).zip(lower.chunks_exact(2 * channels));
    vectorized!({
        for (out, (upper, lower)) in out.chunks_exact_mut(channels).zip(pairs) {
            for c in 0..channels {
                let right = c + channels;
                out[c] = max(max(upper[c], upper[right]), max(lower[c], lower[right]));
            }
        }
    });
}

/// A norm, sum or activation that follows no convolution.
#[derive(Debug)]
pub(super) struct Elementwise {
    /// Scale and shift of each channel.
    pub(super) affine: Option<[Vec<f32>; 2]>,
    pub(super) activation: Option<Activation>,
    pub(super) output: Shape,
}

impl Elementwise {
    /// Computes the inside of `out`; a residual has the layout of `out`.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (from, to) = (input.shape, self.output);
        let shift = self.affine.as_ref().map(|[_, shift]| shift.as_slice());
        let epilogue = Epilogue { bias: shift, residual, activation: self.activation };
        let rows = out[to.inner_rows()].par_chunks_exact_mut(to.row_len());
        rows.enumerate().with_min_len(input.min_parts()).for_each(|(y, out)| {
            let input_row =
                &input.values[(y + from.border) * from.row_len()..][from.inner_columns()];
            let start = (y + to.border) * to.row_len() + to.inner_columns().start;
            let mut scaled = vec![0.0; from.channels];
            let pixels = out[to.inner_columns()].chunks_exact_mut(to.channels);
            for (x, (out, pixel)) in pixels.zip(input_row.chunks_exact(from.channels)).enumerate() {
                scaled.copy_from_slice(pixel);
                if let Some([scale, _]) = &self.affine {
                    scaled.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
                }
                epilogue.write(&scaled, start + x * to.channels, out);
            }
        });
    }
}
