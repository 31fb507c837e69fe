//! A dense convolution with its epilogue, from one map to another.

use std::cell::RefCell;

use rayon::prelude::*;

use super::shape::{Input, Shape};
use super::winograd::Winograd;
use crate::graph::{Activation, Conv2d, Window};
use crate::kernel::{Epilogue, Packed, Product, Run, Term, arch};

/// With rows of fewer pixels, all pixels of a map are copied out and multiplied together.
const FEW: usize = 8;
/// With fewer input channels, transforming tiles costs more than it saves in products.
const FEWEST_INPUTS: usize = 4;
/// Rows of a product that fill the registers.
const TILE: usize = 8;

thread_local! {
    /// Rows that wait to be pooled.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// im2col: what all pixels of a small map read.
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Its product with the weights.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A convolution without its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) conv: Conv2d,
    pub(super) activation: Option<Activation>,
    /// Whether the largest of each two by two pixels is kept.
    pub(super) pool: bool,
}

#[derive(Debug)]
pub(super) struct Conv {
    form: Form,
    input: Shape,
    output: Shape,
    weights: Weights,
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Weights {
    /// Of a 1x1 convolution of stride 1 between maps without borders: one matrix product.
    Pointwise(Packed),
    Direct(Packed),
    Winograd(Winograd),
}

impl Conv {
    /// `weights` are `[outputs, inputs, kernel, kernel]`, batch norm folded in.
    pub(super) fn new(
        form: Form,
        weights: &[f32],
        bias: Vec<f32>,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Conv2d { inputs, outputs, window, .. } = form.conv;
        let taps = window.kernel * window.kernel;
        let centred = [input.height, input.width].map(|len| window.padding(len)) == [[1; 2]; 2];
        let winograd =
            (window.kernel == 3 && window.stride == 1 && centred && inputs >= FEWEST_INPUTS)
                .then(|| Winograd::side_for(input.height, input.width))
                .flatten();
        let packed = || {
            Packed::new([taps, inputs, outputs], |tap, input, output| {
                weights[(output * inputs + input) * taps + tap]
            })
        };
        let alone = window == Window::centred(1, 1) && !form.pool;
        let weights = match winograd {
            Some(side) => Weights::Winograd(Winograd::new(side, inputs, weights)),
            None if alone && input.border + output.border == 0 => Weights::Pointwise(packed()),
            None => Weights::Direct(packed()),
        };
        Self { form, input, output, weights, bias }
    }

    /// Fills the inside of `out`; a residual lies as `out` does, its border included.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (shape, pool) = (self.output, self.form.pool);
        let bias = Some(self.bias.as_slice());
        let epilogue = Epilogue { bias, residual, activation: self.form.activation };
        let weights = match &self.weights {
            Weights::Pointwise(weights) => return pointwise(input, weights, epilogue, out),
            Weights::Winograd(winograd) => {
                return winograd.run(input, epilogue, (shape, if pool { 2 } else { 1 }), out);
            }
            Weights::Direct(weights) if shape.width < FEW && !pool => {
                return self.together(input, weights, epilogue, out);
            }
            Weights::Direct(weights) => weights,
        };
        let rows = out[shape.rows()].par_chunks_exact_mut(shape.row());
        rows.enumerate().with_min_len(input.grain()).for_each(|(y, out)| {
            let inside = shape.inside();
            let epilogue = epilogue.from((y + shape.border) * shape.row() + inside.start);
            let out = &mut out[inside];
            match pool {
                true => self.pooled(input, weights, (y, epilogue), out),
                false => self.row(input, weights, (y, epilogue), out),
            }
        });
    }

    /// Small maps: one product for all pixels, so that weights are read once; threads share the output channels.
    fn together(
        &self,
        input: Input<'_>,
        weights: &Packed,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        let (shape, kernel) = (self.output, self.form.conv.window.kernel);
        let (mut columns, mut sums) = (COLUMNS.take(), SUMS.take());
        columns.clear();
        (0..shape.height).for_each(|y| self.im2col(input, y, &mut columns));
        let pixels = shape.height * shape.width;
        let runs = [Run { first: 0, rows: pixels, terms: vec![Term { start: 0, tap: 0 }] }];
        let step = columns.len() / pixels;
        sums.resize(pixels * shape.channels, 0.0);
        let product = Product {
            x: &columns,
            weights: weights.view().joined(kernel * kernel),
            step,
            runs: &runs,
            epilogue: Epilogue::default(),
            out: &mut sums,
        };
        match input.shared {
            true => product.run_by_channels(),
            false => product.run(),
        }
        for (pixel, sums) in sums.chunks_exact(shape.channels).enumerate() {
            let (y, x) = (pixel / shape.width, pixel % shape.width);
            let at = (y + shape.border) * shape.row() + (x + shape.border) * shape.channels;
            epilogue.write(sums, 0, at, &mut out[at..at + shape.channels]);
        }
        COLUMNS.set(columns);
        SUMS.set(sums);
    }

    /// Row `y` of the output, two rows of the convolution.
    fn pooled(
        &self,
        input: Input<'_>,
        weights: &Packed,
        (y, epilogue): (usize, Epilogue<'_>),
        out: &mut [f32],
    ) {
        let pixel = self.output.channels;
        let width = self.form.conv.window.output(self.input.width).unwrap_or_default();
        let mut rows = ROWS.take();
        rows.resize(2 * width * pixel, 0.0);
        let (upper, lower) = rows.split_at_mut(width * pixel);
        self.row(input, weights, (2 * y, epilogue), upper);
        self.row(input, weights, (2 * y + 1, epilogue), lower);
        let pairs = upper.chunks_exact(2 * pixel).zip(lower.chunks_exact(2 * pixel));
        arch().dispatch(
            #[inline(always)]
            || {
                for (out, (upper, lower)) in out.chunks_exact_mut(pixel).zip(pairs) {
                    for c in 0..pixel {
                        let right = c + pixel;
                        out[c] = upper[c].max(upper[right]).max(lower[c].max(lower[right]));
                    }
                }
            },
        );
        ROWS.set(rows);
    }

    /// Row `y` of the convolution, `[width, outputs]`. What lies side by side in a row of the input is
    /// one long product.
    fn row(
        &self,
        input: Input<'_>,
        weights: &Packed,
        (y, epilogue): (usize, Epilogue<'_>),
        out: &mut [f32],
    ) {
        let Conv2d { inputs, outputs, window, .. } = self.form.conv;
        let terms = (0..window.kernel).map(|ky| Term { start: self.start([y, 0], ky), tap: ky });
        let runs = [Run { first: 0, rows: out.len() / outputs, terms: terms.collect() }];
        let (weights, step) = (weights.view().joined(window.kernel), window.stride * inputs);
        Product { x: input.values, weights, step, runs: &runs, epilogue, out }.run();
    }

    /// Index in the input at which row `ky` of an output pixel's window begins.
    fn start(&self, [y, x]: [usize; 2], ky: usize) -> usize {
        let Conv2d { inputs, window, .. } = self.form.conv;
        let Shape { height, width, border, .. } = self.input;
        let row = y * window.stride + border - window.padding(height)[0] + ky;
        row * self.input.row() + (x * window.stride + border - window.padding(width)[0]) * inputs
    }

    /// Copies all taps of a row's pixels side by side.
    fn im2col(&self, input: Input<'_>, y: usize, columns: &mut Vec<f32>) {
        let Conv2d { inputs, window, .. } = self.form.conv;
        for x in 0..self.output.width {
            for ky in 0..window.kernel {
                let start = self.start([y, x], ky);
                columns.extend_from_slice(&input.values[start..start + window.kernel * inputs]);
            }
        }
    }
}

/// One product of all pixels. Threads share the pixels where those are more than the output channels, else the
/// channels, so that each reads a part of the weights alone.
fn pointwise(input: Input<'_>, weights: &Packed, epilogue: Epilogue<'_>, out: &mut [f32]) {
    let (weights, step) = (weights.view(), input.shape.channels);
    let (pixels, threads) = (out.len() / weights.outputs(), input.threads());
    let by_channels = threads > 1 && pixels < weights.outputs();
    let share = if by_channels { pixels } else { pixels.div_ceil(threads).next_multiple_of(TILE) };
    let parts = out.par_chunks_mut(share * weights.outputs()).enumerate();
    parts.with_min_len(input.grain()).for_each(|(part, out)| {
        let x = &input.values[part * share * step..];
        let epilogue = epilogue.from(part * share * weights.outputs());
        let rows = out.len() / weights.outputs();
        let runs = [Run { first: 0, rows, terms: vec![Term { start: 0, tap: 0 }] }];
        let product = Product { x, weights, step, runs: &runs, epilogue, out };
        match by_channels {
            true => product.run_by_channels(),
            false => product.run(),
        }
    });
}
