//! Dense convolutions of a batch for training: the shapes, and for each output pixel the terms of its sum. The arithmetic
//! is that of [`super::tiles`]. The table of [`super`] lists the other convolutions.

use rayon::prelude::*;

use super::axis::Axis;
#[cfg(feature = "train")]
use super::tiles::PackedWeights;
use super::tiles::{Epilogue, PackedView, Product, RowRun, Term};
use crate::graph::Window;

/// Shapes of a dense convolution with a square kernel, from `[height, width, batch, inputs]` to
/// `[out_height, out_width, batch, outputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchConv {
    pub(crate) vertical: Axis,
    pub(crate) horizontal: Axis,
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl BatchConv {
    /// For maps `[height, width, batch, inputs]`; `None` where the window does not fit.
    pub(crate) fn new(
        [height, width, batch, inputs]: [usize; 4],
        outputs: usize,
        window: Window,
    ) -> Option<Self> {
        let (vertical, horizontal) = (Axis::new(window, height)?, Axis::new(window, width)?);
        Some(Self { vertical, horizontal, batch, inputs, outputs })
    }

    pub(crate) fn taps(&self) -> usize {
        self.vertical.kernel * self.horizontal.kernel
    }

    /// Values of the output.
    pub(crate) fn out_len(&self) -> usize {
        self.vertical.out_len * self.horizontal.out_len * self.batch * self.outputs
    }

    /// Values of the input.
    pub(crate) fn in_len(&self) -> usize {
        self.vertical.len * self.horizontal.len * self.batch * self.inputs
    }

    /// The output `[out_height, out_width, batch, outputs]`, without bias; one product for each row of it.
    pub(crate) fn forward(&self, x: &[f32], weights: PackedView<'_>, out: &mut [f32]) {
        assert!(x.len() == self.in_len() && out.len() == self.out_len());
        let columns = self.horizontal;
        // A row of the product is a pixel of one image, and the rows of a run must lie at one stride in the input. The
        // images of a pixel lie `inputs` values apart and are followed by those of the next pixel. Output pixels can
        // therefore share a run where the convolution's stride is 1, or in a batch of one image, at any stride.
        let merged = columns.stride == 1 || self.batch == 1;
        let row_stride = self.inputs * if self.batch == 1 { columns.stride } else { 1 };
        let (row_len, epilogue) =
            (columns.out_len * self.batch * self.outputs, Epilogue::default());
        out.par_chunks_mut(row_len).enumerate().for_each(|(y, out)| {
            let terms = |x| self.terms(Axis::input_index, [y, x], columns.len, self.inputs);
            let runs = self.row_runs(columns.out_len, merged, terms);
            Product { x, weights, row_stride, runs: &runs, epilogue, out }.run();
        });
    }

    /// The gradient of the input from that of the output, a transposed convolution: each pixel of the input sums the
    /// products of the output pixels that read it. `weights` are `[taps, outputs, inputs]`.
    #[cfg(feature = "train")]
    pub(crate) fn backward_input(&self, dy: &[f32], weights: &PackedWeights, dx: &mut [f32]) {
        assert!(dx.len() == self.in_len() && dy.len() == self.out_len());
        let columns = self.horizontal;
        let (row_len, epilogue) = (columns.len * self.batch * self.inputs, Epilogue::default());
        dx.par_chunks_mut(row_len).enumerate().for_each(|(y, dx)| {
            let terms = |x| self.terms(Axis::output_index, [y, x], columns.out_len, self.outputs);
            let runs = self.row_runs(columns.len, columns.stride == 1, terms);
            let (row_stride, weights) = (self.outputs, weights.view());
            Product { x: dy, weights, row_stride, runs: &runs, epilogue, out: dx }.run();
        });
    }

    /// The terms of the sum of pixel `[y, x]`, one for each tap that reads a pixel and not padding, from a map of `width`
    /// pixels in a row and `channels`. `index` maps an index along an axis and a tap to the index that is read.
    fn terms(
        &self,
        index: impl Fn(Axis, usize, usize) -> Option<usize>,
        [y, x]: [usize; 2],
        width: usize,
        channels: usize,
    ) -> Vec<Term> {
        let kernel = self.horizontal.kernel;
        let term = |tap: usize| {
            let row = index(self.vertical, y, tap / kernel)?;
            let column = index(self.horizontal, x, tap % kernel)?;
            Some(Term { start: (row * width + column) * self.batch * channels, tap })
        };
        (0..self.taps()).filter_map(term).collect()
    }

    /// The terms of a row of `width` pixels, with neighbours of the same taps merged into one run where `merged`.
    /// Pixels near the edges have fewer taps.
    fn row_runs(
        &self,
        width: usize,
        merged: bool,
        terms: impl Fn(usize) -> Vec<Term>,
    ) -> Vec<RowRun> {
        let mut runs: Vec<RowRun> = Vec::new();
        for x in 0..width {
            let terms = terms(x);
            match runs.last_mut() {
                Some(run)
                    if merged
                        && run.terms.iter().map(|t| t.tap).eq(terms.iter().map(|t| t.tap)) =>
                {
                    run.rows += self.batch;
                }
                _ => runs.push(RowRun { first_row: x * self.batch, rows: self.batch, terms }),
            }
        }
        runs
    }

    /// im2col: copies each output pixel's window of the input, `[out_height, out_width, batch, taps * inputs]`. Where
    /// input channels are few, one product of these columns is faster than one for each tap.
    pub(crate) fn im2col(&self, x: &[f32], out: &mut [f32]) {
        let (rows, columns) = (self.vertical, self.horizontal);
        let (pixel, window) = (self.batch * self.inputs, self.taps() * self.inputs);
        let row_len = columns.out_len * self.batch * window;
        out.par_chunks_mut(row_len).enumerate().for_each(|(y, out)| {
            for (out_x, windows) in out.chunks_exact_mut(self.batch * window).enumerate() {
                for tap in 0..self.taps() {
                    let (ky, kx) = (tap / self.horizontal.kernel, tap % self.horizontal.kernel);
                    let source = rows.input_index(y, ky).zip(columns.input_index(out_x, kx));
                    let source = source.map(|(y, x)| (y * columns.len + x) * pixel);
                    let images =
                        windows.chunks_exact_mut(window).map(|w| &mut w[tap * self.inputs..]);
                    for (image, to) in images.enumerate() {
                        let to = &mut to[..self.inputs];
                        match source {
                            Some(at) => {
                                to.copy_from_slice(&x[at + image * self.inputs..][..self.inputs])
                            }
                            None => to.fill(0.0),
                        }
                    }
                }
            }
        });
    }

    /// The 1x1 convolution over the columns of [`BatchConv::im2col`].
    pub(crate) fn over_columns(&self) -> Self {
        let pointwise =
            |axis: Axis| Axis { len: axis.out_len, kernel: 1, stride: 1, padding: 0, ..axis };
        let [vertical, horizontal] = [self.vertical, self.horizontal].map(pointwise);
        Self { vertical, horizontal, inputs: self.taps() * self.inputs, ..*self }
    }
}
