//! Steps other than dense convolutions: depthwise ones, max pools, and epilogues of a map as it is.

use rayon::prelude::*;

use super::shape::{Input, Shape};
use crate::graph::{Activation, Window};
use crate::kernel::{self, Epilogue, arch};

/// A depthwise convolution with its epilogue; it needs no border.
#[derive(Debug)]
pub(super) struct Depthwise {
    conv: kernel::Depthwise,
    output: Shape,
    activation: Option<Activation>,
    /// `[kernel * kernel, channels]`, batch norm folded in.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Depthwise {
    /// `weights` are `[channels, 1, kernel, kernel]`.
    pub(super) fn new(
        (window, activation): (Window, Option<Activation>),
        weights: &[f32],
        bias: Vec<f32>,
        [input, output]: [Shape; 2],
    ) -> Self {
        let taps = window.kernel * window.kernel;
        let by_tap = (0..taps).flat_map(|tap| weights.iter().skip(tap).step_by(taps).copied());
        let Shape { height, width, channels, .. } = input;
        let padding = [height, width].map(|len| window.padding(len)[0]);
        let conv = kernel::Depthwise {
            height,
            width,
            batch: 1,
            channels,
            kernel: window.kernel,
            stride: window.stride,
            padding,
            out_height: output.height,
            out_width: output.width,
            row: input.row(),
            out_row: output.row(),
        };
        Self { conv, output, activation, weights: by_tap.collect(), bias }
    }

    /// Fills the inside of `out`; threads share its rows. A residual lies as `out` does.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (shape, activation) = (self.output, self.activation);
        let epilogue = Epilogue { bias: Some(&self.bias), residual, activation };
        let x = &input.values[input.shape.rows().start + input.shape.inside().start..];
        let (row, rows) = (shape.row(), shape.height.div_ceil(input.threads()));
        let parts = out[shape.rows()].par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.grain()).for_each(|(part, out)| {
            let (first, inside) = (part * rows, shape.inside().start);
            let epilogue = epilogue.from(shape.rows().start + first * row + inside);
            let rows = first..first + out.len() / row;
            self.conv.rows((x, &self.weights), rows, epilogue, &mut out[inside..]);
        });
    }
}

/// The largest value in each window.
#[derive(Debug)]
pub(super) struct MaxPool {
    pub(super) window: Window,
    pub(super) output: Shape,
}

impl MaxPool {
    /// Fills the inside of `out`; no value of the map is below `lowest`.
    pub(super) fn run<T>(&self, input: Input<'_, T>, lowest: T, out: &mut [T])
    where
        T: Copy + PartialOrd + Send + Sync,
    {
        let (from, to) = (input.shape, self.output);
        let rows = out[to.rows()].par_chunks_exact_mut(to.row());
        rows.enumerate().with_min_len(input.grain()).for_each(|(y, out)| {
            let down = self.taps(y, from.height);
            let out = &mut out[to.inside()];
            arch().dispatch(
                #[inline(always)]
                || {
                    for (x, out) in out.chunks_exact_mut(to.channels).enumerate() {
                        out.fill(lowest);
                        for row in down.clone() {
                            for column in self.taps(x, from.width) {
                                let at = (row + from.border) * from.row()
                                    + (column + from.border) * from.channels;
                                let pixel = &input.values[at..at + from.channels];
                                for (out, value) in out.iter_mut().zip(pixel) {
                                    *out = if *value > *out { *value } else { *out };
                                }
                            }
                        }
                    }
                },
            );
        });
    }

    /// The places of a side of `len` pixels that lie in the window of output `out`.
    fn taps(&self, out: usize, len: usize) -> std::ops::Range<usize> {
        let Window { kernel, stride, .. } = self.window;
        let [before, _] = self.window.padding(len);
        (out * stride).saturating_sub(before)..(out * stride + kernel - before).min(len)
    }
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
    /// Fills the inside of `out`; a residual lies as `out` does.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (from, to) = (input.shape, self.output);
        let shift = self.affine.as_ref().map(|[_, shift]| shift.as_slice());
        let epilogue = Epilogue { bias: shift, residual, activation: self.activation };
        let rows = out[to.rows()].par_chunks_exact_mut(to.row());
        rows.enumerate().with_min_len(input.grain()).for_each(|(y, out)| {
            let line = &input.values[(y + from.border) * from.row()..][from.inside()];
            let start = (y + to.border) * to.row() + to.inside().start;
            let mut scaled = vec![0.0; from.channels];
            let pixels = out[to.inside()].chunks_exact_mut(to.channels);
            for (x, (out, pixel)) in pixels.zip(line.chunks_exact(from.channels)).enumerate() {
                scaled.copy_from_slice(pixel);
                if let Some([scale, _]) = &self.affine {
                    scaled.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
                }
                epilogue.write(&scaled, 0, start + x * to.channels, out);
            }
        });
    }
}
