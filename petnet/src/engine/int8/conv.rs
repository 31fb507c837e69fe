//! Convolutions of an int8 plan: dense ones by [`int8::Product`], depthwise ones by [`int8::Depthwise`].
//!
//! Maps have no borders: bands of input rows are copied into padding, whose bytes represent zero, and multiplied from
//! there. Rows are divided among threads, in 1x1 convolutions of few pixels output channels.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::engine::shape::{Input, Shape};
use crate::engine::simple::pool_rows;
use crate::graph::{Conv2d, Window};
use crate::kernel::int8::{self, Geometry, PackedWeights, Product, Requantization, SLACK, Strides};

/// Approximate size, in bytes, of a band of padded input rows: it stays in the L2 cache together with the weights.
const BAND_BYTES: usize = 96 << 10;

thread_local! {
    /// A band of padded input rows.
    static PADDED_ROWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Rows of a convolution before they are pooled.
    static POOL_ROWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A dense convolution and its epilogue, without weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Int8ConvSpec {
    pub(super) conv: Conv2d,
    /// True for a 2x2 max pool of stride 2.
    pub(super) fused_max_pool: bool,
    /// A pixel of padding: the bytes that represent zero.
    pub(super) padding_pixel: Vec<u8>,
}

/// A dense convolution with its epilogue.
#[derive(Debug)]
pub(in crate::engine) struct Int8DenseConv {
    spec: Int8ConvSpec,
    input: Shape,
    output: Shape,
    weights: PackedWeights,
}

impl Int8DenseConv {
    /// `weights` are `[outputs, inputs, kernel, kernel]`.
    pub(super) fn new(
        spec: Int8ConvSpec,
        weights: &[i8],
        requantize: &Requantization,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Conv2d { inputs, window: Window { kernel, .. }, .. } = spec.conv;
        let weights =
            PackedWeights::new([kernel, kernel * inputs], requantize, |row, value, output| {
                let (column, channel) = (value / inputs, value % inputs);
                weights[((output * inputs + channel) * kernel + row) * kernel + column]
            });
        Self { spec, input, output, weights }
    }

    /// Computes `out`; a residual has its layout.
    pub(super) fn run(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let window = self.spec.conv.window;
        if window.kernel == 1
            && window.stride == 1
            && self.padding() == [[0; 2]; 2]
            && !self.spec.fused_max_pool
        {
            return self.pointwise(input, residual, out);
        }
        let row = self.output.row_len();
        let rows = self.band_rows().min(self.output.height.div_ceil(input.threads()));
        let parts = out.par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.min_parts()).for_each(|(part, out)| {
            let residual = residual.map(|residual| &residual[part * rows * row..]);
            match self.spec.fused_max_pool {
                true => self.run_rows_pooled(input, part * rows, out),
                false => self.run_rows(input, part * rows, residual, out),
            }
        });
    }

    /// Rows and columns of padding before and after the map.
    fn padding(&self) -> [[usize; 2]; 2] {
        [self.input.height, self.input.width].map(|len| self.spec.conv.window.padding(len))
    }

    /// Bytes of a padded row of the input.
    fn padded_row_len(&self) -> usize {
        let [_, [left, right]] = self.padding();
        (left + self.input.width + right) * self.spec.conv.inputs
    }

    /// Number of rows of the output of a band.
    fn band_rows(&self) -> usize {
        let pooled = if self.spec.fused_max_pool { 2 } else { 1 };
        (BAND_BYTES / (self.padded_row_len() * self.spec.conv.window.stride * pooled)).max(1)
    }

    /// One product of all pixels, divided among threads by [`Input::pointwise_parts`].
    fn pointwise(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let (weights, inputs) = (&self.weights, self.spec.conv.inputs);
        let pixels = out.len() / weights.outputs();
        let (part_pixels, by_channels) = input.pointwise_parts(pixels, weights.outputs());
        let strides = Strides { width: usize::MAX, pixel: inputs, row: 0, window: 0 };
        let parts = out.par_chunks_mut(part_pixels * weights.outputs()).enumerate();
        parts.with_min_len(input.min_parts()).for_each(|(part, out)| {
            let x = &input.values[part * part_pixels * inputs..];
            let residual =
                residual.map(|residual| &residual[part * part_pixels * weights.outputs()..]);
            let product = Product { x, weights, strides, residual, out };
            if by_channels { product.run_by_channels() } else { product.run() }
        });
    }

    /// Rows of the convolution from `first` on.
    fn run_rows(
        &self,
        input: Input<'_, u8>,
        first: usize,
        residual: Option<&[u8]>,
        out: &mut [u8],
    ) {
        let Conv2d { inputs, outputs, window: Window { kernel, stride, .. }, .. } = self.spec.conv;
        let [[above, below], [left, right]] = self.padding();
        let width = self.spec.conv.window.output(self.input.width).unwrap_or_default();
        let count = out.len() / (width * outputs);
        let pitch = self.padded_row_len();
        let strides = Strides { width, pixel: stride * inputs, row: stride * pitch, window: pitch };
        if above + below + left + right == 0 {
            let x = &input.values[first * stride * pitch..];
            return Product { x, weights: &self.weights, strides, residual, out }.run();
        }
        let mut padded = PADDED_ROWS.take();
        let rows = (count - 1) * stride + kernel;
        padded.resize(padded.len().max(rows * pitch + SLACK), 0);
        let start = (first * stride) as isize - above as isize;
        for (row, to) in padded[..rows * pitch].chunks_exact_mut(pitch).enumerate() {
            let y = start + row as isize;
            let Some(y) = usize::try_from(y).ok().filter(|y| *y < self.input.height) else {
                self.fill_padding(to);
                continue;
            };
            let (before, rest) = to.split_at_mut(left * inputs);
            let (inside, after) = rest.split_at_mut(self.input.row_len());
            inside
                .copy_from_slice(&input.values[y * self.input.row_len()..][..self.input.row_len()]);
            self.fill_padding(before);
            self.fill_padding(after);
        }
        Product { x: &padded, weights: &self.weights, strides, residual, out }.run();
        PADDED_ROWS.set(padded);
    }

    /// Fills a part of a row with padding.
    fn fill_padding(&self, padding: &mut [u8]) {
        let pixels = padding.chunks_exact_mut(self.spec.padding_pixel.len());
        pixels.for_each(|pixel| pixel.copy_from_slice(&self.spec.padding_pixel));
    }

    /// Rows of the output of a pool from `first` on, each from two rows of the convolution. The largest byte represents
    /// the largest value.
    fn run_rows_pooled(&self, input: Input<'_, u8>, first: usize, out: &mut [u8]) {
        let pixel = self.output.channels;
        let row = self.spec.conv.window.output(self.input.width).unwrap_or_default() * pixel;
        let mut rows = POOL_ROWS.take();
        let len = 2 * out.len() / self.output.row_len() * row;
        rows.resize(rows.len().max(len), 0);
        self.run_rows(input, 2 * first, None, &mut rows[..len]);
        let pairs = rows[..len].chunks_exact(2 * row);
        for (out, pair) in out.chunks_exact_mut(self.output.row_len()).zip(pairs) {
            pool_rows(pair.split_at(row).into(), pixel, u8::max, out);
        }
        POOL_ROWS.set(rows);
    }
}

/// A depthwise convolution with its epilogue.
#[derive(Debug)]
pub(in crate::engine) struct Int8DepthwiseConv {
    conv: int8::Depthwise,
    output: Shape,
}

impl Int8DepthwiseConv {
    /// `weights` are `[channels, 1, kernel, kernel]`; `zero_point` is that of the input.
    pub(super) fn new(
        window: Window,
        zero_point: u8,
        weights: &[i8],
        requantize: &Requantization,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Shape { height, width, channels, .. } = input;
        let geometry = Geometry::new([height, width, channels], window, zero_point);
        let geometry = geometry.expect("the program's sides were computed for this window");
        Self { conv: int8::Depthwise::new(geometry, weights, requantize), output }
    }

    /// Computes `out`, with its rows divided among threads; a residual has its layout.
    pub(super) fn run(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let (row, rows) = (self.output.row_len(), self.output.height.div_ceil(input.threads()));
        let parts = out.par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.min_parts()).for_each(|(part, out)| {
            let first = part * rows;
            let residual = residual.map(|residual| &residual[first * row..]);
            self.conv.run_rows(input.values, first..first + out.len() / row, residual, out);
        });
    }
}
