//! A dense convolution of a plan in f32, fused with its epilogue: bias, residual, activation, or a 2x2 max pool.
//!
//! It reads one image's map within a border of zeros, so that no tap is left out, and calls [`Product`] in one of four
//! ways, chosen by shapes when the plan is compiled:
//!
//! - Winograd (`winograd.rs`): 3x3 kernels of stride 1 on maps of enough tiles.
//! - One product of all pixels: 1x1 kernels of stride 1.
//! - One product of all pixels after im2col: maps of few columns, which would read the weights once for each row.
//! - One product for each row of the output otherwise. The columns of a window row are contiguous in NHWC, so that each
//!   row of a kernel is one term of `kernel * inputs` values.

use std::cell::RefCell;

use rayon::prelude::*;

use super::shape::{Input, Shape};
use super::simple::pool_rows;
use super::winograd::Winograd;
use crate::graph::{Activation, Conv2d, Window};
use crate::kernel::{Epilogue, PackedWeights, Product, RowRun, Term};

/// Maps of fewer columns use im2col.
const IM2COL_WIDTH: usize = 8;
/// With fewer input channels, Winograd's transforms cost more than its products save.
const WINOGRAD_MIN_INPUTS: usize = 4;

thread_local! {
    /// Two rows of a convolution before they are pooled.
    static POOL_ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// im2col's columns of a map.
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The product of the columns and the weights.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A convolution and its epilogue, without weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConvSpec {
    pub(super) conv: Conv2d,
    pub(super) activation: Option<Activation>,
    /// True for a 2x2 max pool of stride 2.
    pub(super) fused_max_pool: bool,
}

/// A dense convolution with its epilogue and packed weights, compiled for maps of one size.
#[derive(Debug)]
pub(super) struct DenseConv {
    spec: ConvSpec,
    input: Shape,
    output: Shape,
    weights: PackedForm,
    bias: Vec<f32>,
}

/// Packed weights, by the way in which the convolution is computed.
#[derive(Debug)]
enum PackedForm {
    /// One product of all pixels: 1x1 of stride 1 between maps without borders.
    Pointwise(PackedWeights),
    /// One product for each row, or im2col.
    Direct(PackedWeights),
    Winograd(Winograd),
}

impl DenseConv {
    /// `weights` are `[outputs, inputs, kernel, kernel]`, batch norm folded in.
    pub(super) fn new(
        spec: ConvSpec,
        weights: &[f32],
        bias: Vec<f32>,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Conv2d { inputs, outputs, window, .. } = spec.conv;
        let taps = window.kernel * window.kernel;
        let centred = [input.height, input.width].map(|len| window.padding(len)) == [[1; 2]; 2];
        let winograd =
            (window.kernel == 3 && window.stride == 1 && centred && inputs >= WINOGRAD_MIN_INPUTS)
                .then(|| Winograd::side_for(input.height, input.width))
                .flatten();
        let packed = || {
            PackedWeights::new([taps, inputs, outputs], |tap, input, output| {
                weights[(output * inputs + input) * taps + tap]
            })
        };
        let borders = input.border + output.border;
        let pointwise = window == Window::centred(1, 1) && !spec.fused_max_pool;
        let weights = match winograd {
            Some(side) => PackedForm::Winograd(Winograd::new(side, inputs, weights)),
            None if pointwise && borders == 0 => PackedForm::Pointwise(packed()),
            None => PackedForm::Direct(packed()),
        };
        Self { spec, input, output, weights, bias }
    }

    /// Computes the inside of `out`, whose border stays as it is; a residual has the layout of `out`, border included.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (shape, pool) = (self.output, self.spec.fused_max_pool);
        let bias = Some(self.bias.as_slice());
        let epilogue = Epilogue { bias, residual, activation: self.spec.activation };
        let weights = match &self.weights {
            PackedForm::Pointwise(weights) => return pointwise(input, weights, epilogue, out),
            PackedForm::Winograd(winograd) => {
                return winograd.run(input, epilogue, (shape, if pool { 2 } else { 1 }), out);
            }
            PackedForm::Direct(weights) if shape.width < IM2COL_WIDTH && !pool => {
                return self.run_im2col(input, weights, epilogue, out);
            }
            PackedForm::Direct(weights) => weights,
        };
        let rows = out[shape.inner_rows()].par_chunks_exact_mut(shape.row_len());
        rows.enumerate().with_min_len(input.min_parts()).for_each(|(y, out)| {
            let inside = shape.inner_columns();
            let epilogue = epilogue.at_offset((y + shape.border) * shape.row_len() + inside.start);
            let out = &mut out[inside];
            match pool {
                true => self.run_row_pooled(input, weights, (y, epilogue), out),
                false => self.run_row(input, weights, (y, epilogue), out),
            }
        });
    }

    /// One product of all pixels, so that the weights are read once; output channels are divided among threads.
    fn run_im2col(
        &self,
        input: Input<'_>,
        weights: &PackedWeights,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        let (shape, kernel) = (self.output, self.spec.conv.window.kernel);
        let (mut columns, mut sums) = (COLUMNS.take(), SUMS.take());
        columns.clear();
        self.im2col(input, &mut columns);
        let pixels = shape.height * shape.width;
        let runs = [RowRun { first_row: 0, rows: pixels, terms: vec![Term { start: 0, tap: 0 }] }];
        let row_stride = columns.len() / pixels;
        sums.resize(pixels * shape.channels, 0.0);
        let product = Product {
            x: &columns,
            weights: weights.view().merge_taps(kernel * kernel),
            row_stride,
            runs: &runs,
            epilogue: Epilogue::default(),
            out: &mut sums,
        };
        match input.parallel {
            true => product.run_by_channels(),
            false => product.run(),
        }
        for (pixel, sums) in sums.chunks_exact(shape.channels).enumerate() {
            let (y, x) = (pixel / shape.width, pixel % shape.width);
            let at = (y + shape.border) * shape.row_len() + (x + shape.border) * shape.channels;
            epilogue.write(sums, at, &mut out[at..at + shape.channels]);
        }
        COLUMNS.set(columns);
        SUMS.set(sums);
    }

    /// Row `y` of the output of a pool, from two rows of the convolution.
    fn run_row_pooled(
        &self,
        input: Input<'_>,
        weights: &PackedWeights,
        (y, epilogue): (usize, Epilogue<'_>),
        out: &mut [f32],
    ) {
        let pixel = self.output.channels;
        let width = self.spec.conv.window.output(self.input.width).unwrap_or_default();
        let mut rows = POOL_ROWS.take();
        rows.resize(2 * width * pixel, 0.0);
        let (upper, lower) = rows.split_at_mut(width * pixel);
        self.run_row(input, weights, (2 * y, epilogue), upper);
        self.run_row(input, weights, (2 * y + 1, epilogue), lower);
        pool_rows([upper, lower], pixel, f32::max, out);
        POOL_ROWS.set(rows);
    }

    /// Row `y` of the convolution, `[width, outputs]`.
    fn run_row(
        &self,
        input: Input<'_>,
        weights: &PackedWeights,
        (y, epilogue): (usize, Epilogue<'_>),
        out: &mut [f32],
    ) {
        let Conv2d { inputs, outputs, window, .. } = self.spec.conv;
        let terms =
            (0..window.kernel).map(|ky| Term { start: self.window_offset([y, 0], ky), tap: ky });
        let runs = [RowRun { first_row: 0, rows: out.len() / outputs, terms: terms.collect() }];
        let (weights, row_stride) =
            (weights.view().merge_taps(window.kernel), window.stride * inputs);
        Product { x: input.values, weights, row_stride, runs: &runs, epilogue, out }.run();
    }

    /// Offset in the input of row `ky` of an output pixel's window.
    fn window_offset(&self, [y, x]: [usize; 2], ky: usize) -> usize {
        let Conv2d { inputs, window, .. } = self.spec.conv;
        let Shape { height, width, border, .. } = self.input;
        let row = y * window.stride + border - window.padding(height)[0] + ky;
        row * self.input.row_len()
            + (x * window.stride + border - window.padding(width)[0]) * inputs
    }

    /// Appends the windows of all pixels to `columns`, `[height, width, kernel * kernel * inputs]`.
    fn im2col(&self, input: Input<'_>, columns: &mut Vec<f32>) {
        let (Conv2d { inputs, window, .. }, Shape { height, width, .. }) =
            (self.spec.conv, self.output);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for ky in 0..window.kernel {
                let start = self.window_offset([y, x], ky);
                columns.extend_from_slice(&input.values[start..start + window.kernel * inputs]);
            }
        }
    }
}

/// One product of all pixels, divided among threads by [`Input::pointwise_parts`].
fn pointwise(input: Input<'_>, weights: &PackedWeights, epilogue: Epilogue<'_>, out: &mut [f32]) {
    let (weights, row_stride) = (weights.view(), input.shape.channels);
    let pixels = out.len() / weights.outputs();
    let (part_pixels, by_channels) = input.pointwise_parts(pixels, weights.outputs());
    let parts = out.par_chunks_mut(part_pixels * weights.outputs()).enumerate();
    parts.with_min_len(input.min_parts()).for_each(|(part, out)| {
        let x = &input.values[part * part_pixels * row_stride..];
        let epilogue = epilogue.at_offset(part * part_pixels * weights.outputs());
        let rows = out.len() / weights.outputs();
        let runs = [RowRun { first_row: 0, rows, terms: vec![Term { start: 0, tap: 0 }] }];
        let product = Product { x, weights, row_stride, runs: &runs, epilogue, out };
        match by_channels {
            true => product.run_by_channels(),
            false => product.run(),
        }
    });
}
