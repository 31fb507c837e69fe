//! Convolutions from one map of bytes to another; threads share rows, or for products of all pixels also channels.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::engine::shape::{Input, Shape};
use crate::graph::{Conv2d, Window};
use crate::kernel::arch;
use crate::kernel::int8::{self, Geometry, Packed, Product, Requantize, SLACK, Strides};

/// Bytes of the padded rows that are multiplied together, about: they stay in the second cache with the weights.
const BAND: usize = 96 << 10;
/// Rows of a product that fill the registers.
const TILE: usize = 8;

thread_local! {
    /// Rows of the input within their padding.
    static PADDED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Rows that wait to be pooled.
    static ROWS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A dense convolution without its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) conv: Conv2d,
    /// Whether the largest of each two by two pixels is kept.
    pub(super) pool: bool,
    /// A pixel of what lies outside of the map.
    pub(super) border: Vec<u8>,
}

/// A dense convolution with its epilogue.
#[derive(Debug)]
pub(in crate::engine) struct Conv {
    form: Form,
    input: Shape,
    output: Shape,
    weights: Packed,
}

impl Conv {
    /// `weights` are `[outputs, inputs, kernel, kernel]`.
    pub(super) fn new(
        form: Form,
        weights: &[i8],
        requantize: &Requantize,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Conv2d { inputs, window: Window { kernel, .. }, .. } = form.conv;
        let weights = Packed::new([kernel, kernel * inputs], requantize, |row, value, output| {
            let (column, channel) = (value / inputs, value % inputs);
            weights[((output * inputs + channel) * kernel + row) * kernel + column]
        });
        Self { form, input, output, weights }
    }

    /// Fills `out`, the residual lies as it does.
    pub(super) fn run(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let window = self.form.conv.window;
        if window.kernel == 1
            && window.stride == 1
            && self.padding() == [[0; 2]; 2]
            && !self.form.pool
        {
            return self.pointwise(input, residual, out);
        }
        let row = self.output.row();
        let rows = self.band().min(self.output.height.div_ceil(input.threads()));
        let parts = out.par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.grain()).for_each(|(part, out)| {
            let residual = residual.map(|residual| &residual[part * rows * row..]);
            match self.form.pool {
                true => self.pooled(input, part * rows, out),
                false => self.rows(input, part * rows, residual, out),
            }
        });
    }

    /// Rows and columns of padding before and after the map.
    fn padding(&self) -> [[usize; 2]; 2] {
        [self.input.height, self.input.width].map(|len| self.form.conv.window.padding(len))
    }

    /// Bytes of a row of the input within its padding.
    fn pitch(&self) -> usize {
        let [_, [left, right]] = self.padding();
        (left + self.input.width + right) * self.form.conv.inputs
    }

    /// Rows of the output that are computed together.
    fn band(&self) -> usize {
        let pooled = if self.form.pool { 2 } else { 1 };
        (BAND / (self.pitch() * self.form.conv.window.stride * pooled)).max(1)
    }

    /// One product of all pixels. Threads share the pixels where those are more than the output channels, else the
    /// channels, so that each reads a part of the weights alone.
    fn pointwise(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let (weights, step) = (&self.weights, self.form.conv.inputs);
        let (pixels, threads) = (out.len() / weights.outputs(), input.threads());
        let by_channels = threads > 1 && pixels < weights.outputs();
        let share =
            if by_channels { pixels } else { pixels.div_ceil(threads).next_multiple_of(TILE) };
        let strides = Strides { width: usize::MAX, pixel: step, row: 0, window: 0 };
        let parts = out.par_chunks_mut(share * weights.outputs()).enumerate();
        parts.with_min_len(input.grain()).for_each(|(part, out)| {
            let x = &input.values[part * share * step..];
            let residual = residual.map(|residual| &residual[part * share * weights.outputs()..]);
            let product = Product { x, weights, strides, residual, out };
            if by_channels { product.run_by_channels() } else { product.run() }
        });
    }

    /// Rows of the convolution from `first` on.
    fn rows(&self, input: Input<'_, u8>, first: usize, residual: Option<&[u8]>, out: &mut [u8]) {
        let Conv2d { inputs, outputs, window: Window { kernel, stride, .. }, .. } = self.form.conv;
        let [[above, below], [left, right]] = self.padding();
        let width = self.form.conv.window.output(self.input.width).unwrap_or_default();
        let count = out.len() / (width * outputs);
        let pitch = self.pitch();
        let strides = Strides { width, pixel: stride * inputs, row: stride * pitch, window: pitch };
        if above + below + left + right == 0 {
            let x = &input.values[first * stride * pitch..];
            return Product { x, weights: &self.weights, strides, residual, out }.run();
        }
        let mut padded = PADDED.take();
        let rows = (count - 1) * stride + kernel;
        padded.resize(padded.len().max(rows * pitch + SLACK), 0);
        let start = (first * stride) as isize - above as isize;
        for (row, to) in padded[..rows * pitch].chunks_exact_mut(pitch).enumerate() {
            let y = start + row as isize;
            let Some(y) = usize::try_from(y).ok().filter(|y| *y < self.input.height) else {
                self.fill(to);
                continue;
            };
            let (before, rest) = to.split_at_mut(left * inputs);
            let (inside, after) = rest.split_at_mut(self.input.row());
            inside.copy_from_slice(&input.values[y * self.input.row()..][..self.input.row()]);
            self.fill(before);
            self.fill(after);
        }
        Product { x: &padded, weights: &self.weights, strides, residual, out }.run();
        PADDED.set(padded);
    }

    /// With pixels of the border.
    fn fill(&self, padding: &mut [u8]) {
        let pixels = padding.chunks_exact_mut(self.form.border.len());
        pixels.for_each(|pixel| pixel.copy_from_slice(&self.form.border));
    }

    /// Rows of the output from `first` on, each of which is two rows of the convolution. The largest byte stands for
    /// the largest value.
    fn pooled(&self, input: Input<'_, u8>, first: usize, out: &mut [u8]) {
        let pixel = self.output.channels;
        let row = self.form.conv.window.output(self.input.width).unwrap_or_default() * pixel;
        let mut rows = ROWS.take();
        let len = 2 * out.len() / self.output.row() * row;
        rows.resize(rows.len().max(len), 0);
        self.rows(input, 2 * first, None, &mut rows[..len]);
        let pairs = rows[..len].chunks_exact(2 * row);
        arch().dispatch(
            #[inline(always)]
            || {
                for (out, pair) in out.chunks_exact_mut(self.output.row()).zip(pairs) {
                    let (upper, lower) = pair.split_at(row);
                    let pairs = upper.chunks_exact(2 * pixel).zip(lower.chunks_exact(2 * pixel));
                    for (out, (upper, lower)) in out.chunks_exact_mut(pixel).zip(pairs) {
                        for c in 0..pixel {
                            let right = c + pixel;
                            out[c] = upper[c].max(upper[right]).max(lower[c].max(lower[right]));
                        }
                    }
                }
            },
        );
        ROWS.set(rows);
    }
}

/// A depthwise convolution with its epilogue.
#[derive(Debug)]
pub(in crate::engine) struct Depthwise {
    conv: int8::Depthwise,
    output: Shape,
}

impl Depthwise {
    /// `weights` are `[channels, 1, kernel, kernel]`; `zero` is the byte that stands for zero in the input.
    pub(super) fn new(
        (window, zero): (Window, u8),
        weights: &[i8],
        requantize: &Requantize,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Shape { height, width, channels, .. } = input;
        let geometry = Geometry {
            height,
            width,
            channels,
            kernel: window.kernel,
            stride: window.stride,
            padding: [height, width].map(|len| window.padding(len)[0]),
            out_height: output.height,
            out_width: output.width,
            zero,
        };
        Self { conv: int8::Depthwise::new(geometry, weights, requantize), output }
    }

    /// Fills `out`, the residual lies as it does; threads share its rows.
    pub(super) fn run(&self, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        let (row, rows) = (self.output.row(), self.output.height.div_ceil(input.threads()));
        let parts = out.par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.grain()).for_each(|(part, out)| {
            let first = part * rows;
            let residual = residual.map(|residual| &residual[first * row..]);
            self.conv.rows(input.values, first..first + out.len() / row, residual, out);
        });
    }
}
