//! Convolutions over a batch: which pixels meet which weights. The products are done in
//! [`super::tiles`].

#[cfg(feature = "train")]
use std::ops::Range;

use rayon::prelude::*;

#[cfg(feature = "train")]
use super::tiles::Packed;
use super::tiles::{Epilogue, Product, Run, Term, View};

/// A square convolution over a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conv {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows and columns of padding before the map.
    pub(crate) padding: [usize; 2],
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
}

/// One side of a convolution, of output place `out` and kernel place `tap`.
#[derive(Clone, Copy)]
pub(super) struct Side {
    len: usize,
    out: usize,
    stride: usize,
    padding: usize,
}

impl Side {
    /// Where the tap reads.
    pub(super) fn source(self, out: usize, tap: usize) -> Option<usize> {
        (out * self.stride + tap).checked_sub(self.padding).filter(|at| *at < self.len)
    }

    /// Whose tap reads `at`.
    #[cfg(feature = "train")]
    fn target(self, at: usize, tap: usize) -> Option<usize> {
        let scaled = (at + self.padding).checked_sub(tap)?;
        let out = scaled / self.stride;
        (scaled.is_multiple_of(self.stride) && out < self.out).then_some(out)
    }

    /// The outputs whose tap reads something.
    #[cfg(feature = "train")]
    pub(super) fn reading(self, tap: usize) -> Range<usize> {
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let end = (self.len + self.padding).saturating_sub(tap).div_ceil(self.stride);
        first..end.min(self.out).max(first)
    }
}

impl Conv {
    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Values of the output.
    pub(crate) fn out_len(&self) -> usize {
        self.out_height * self.out_width * self.batch * self.outputs
    }

    /// Values of the input.
    pub(crate) fn in_len(&self) -> usize {
        self.height * self.width * self.batch * self.inputs
    }

    pub(super) fn rows(&self) -> Side {
        self.side(self.height, self.out_height, self.padding[0])
    }

    pub(super) fn columns(&self) -> Side {
        self.side(self.width, self.out_width, self.padding[1])
    }

    fn side(&self, len: usize, out: usize, padding: usize) -> Side {
        Side { len, out, stride: self.stride, padding }
    }

    /// `[out_height, out_width, batch, outputs]` from `[height, width, batch, inputs]`.
    pub(crate) fn forward(&self, x: &[f32], weights: View<'_>, out: &mut [f32]) {
        assert!(x.len() == self.in_len() && out.len() == self.out_len());
        let (rows, columns) = (self.rows(), self.columns());
        // Rows of neighbouring pixels lie at one distance, and are one run, in these two cases.
        let joined = self.stride == 1 || self.batch == 1;
        let step = self.inputs * if self.batch == 1 { self.stride } else { 1 };
        let (row, epilogue) = (columns.out * self.batch * self.outputs, Epilogue::default());
        out.par_chunks_mut(row).enumerate().for_each(|(y, out)| {
            let terms = |x: usize| {
                let (source_y, source_x) = (|t| rows.source(y, t), |t| columns.source(x, t));
                self.terms(source_y, source_x, (self.width, self.inputs))
            };
            let runs = self.runs(columns.out, joined, terms);
            Product { x, weights, step, runs: &runs, epilogue, out }.run();
        });
    }

    /// The gradient of the input from that of the output; `weights` have inputs and outputs
    /// exchanged.
    #[cfg(feature = "train")]
    pub(crate) fn backward_input(&self, dy: &[f32], weights: &Packed, dx: &mut [f32]) {
        assert!(dx.len() == self.in_len() && dy.len() == self.out_len());
        let (rows, columns) = (self.rows(), self.columns());
        let (row, epilogue) = (self.width * self.batch * self.inputs, Epilogue::default());
        dx.par_chunks_mut(row).enumerate().for_each(|(y, dx)| {
            let terms = |x: usize| {
                let (target_y, target_x) = (|t| rows.target(y, t), |t| columns.target(x, t));
                self.terms(target_y, target_x, (columns.out, self.outputs))
            };
            let runs = self.runs(self.width, self.stride == 1, terms);
            let (step, weights) = (self.outputs, weights.view());
            Product { x: dy, weights, step, runs: &runs, epilogue, out: dx }.run();
        });
    }

    /// The products that make up one pixel; `source` is width and channels of what they read.
    fn terms(
        &self,
        y: impl Fn(usize) -> Option<usize>,
        x: impl Fn(usize) -> Option<usize>,
        source: (usize, usize),
    ) -> Vec<Term> {
        let taps = (0..self.kernel).flat_map(|ky| (0..self.kernel).map(move |kx| (ky, kx)));
        taps.filter_map(|(ky, kx)| {
            let start = (y(ky)? * source.0 + x(kx)?) * self.batch * source.1;
            Some(Term { start, tap: ky * self.kernel + kx })
        })
        .collect()
    }

    /// Joins neighbours that sum the same taps.
    fn runs(&self, width: usize, joined: bool, terms: impl Fn(usize) -> Vec<Term>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for x in 0..width {
            let terms = terms(x);
            match runs.last_mut() {
                Some(run)
                    if joined
                        && run.terms.iter().map(|t| t.tap).eq(terms.iter().map(|t| t.tap)) =>
                {
                    run.rows += self.batch;
                }
                _ => runs.push(Run { first: x * self.batch, rows: self.batch, terms }),
            }
        }
        runs
    }

    /// im2col: each output pixel's window of the input, `[out_height, out_width, batch, taps * inputs]`:
    /// where inputs are few, one product over im2col's columns beats one over taps.
    pub(crate) fn im2col(&self, x: &[f32], patches: &mut [f32]) {
        let (rows, columns) = (self.rows(), self.columns());
        let (pixel, patch) = (self.batch * self.inputs, self.taps() * self.inputs);
        let row = columns.out * self.batch * patch;
        patches.par_chunks_mut(row).enumerate().for_each(|(y, patches)| {
            for (place, patches) in patches.chunks_exact_mut(self.batch * patch).enumerate() {
                for tap in 0..self.taps() {
                    let (ky, kx) = (tap / self.kernel, tap % self.kernel);
                    let source = rows.source(y, ky).zip(columns.source(place, kx));
                    let source = source.map(|(y, x)| (y * self.width + x) * pixel);
                    let photos =
                        patches.chunks_exact_mut(patch).map(|p| &mut p[tap * self.inputs..]);
                    for (photo, to) in photos.enumerate() {
                        let to = &mut to[..self.inputs];
                        match source {
                            Some(at) => {
                                to.copy_from_slice(&x[at + photo * self.inputs..][..self.inputs])
                            }
                            None => to.fill(0.0),
                        }
                    }
                }
            }
        });
    }

    /// The product over columns that [`Conv::im2col`] leaves to do.
    pub(crate) fn over_columns(&self) -> Self {
        Self {
            height: self.out_height,
            width: self.out_width,
            inputs: self.taps() * self.inputs,
            kernel: 1,
            stride: 1,
            padding: [0; 2],
            ..*self
        }
    }
}
