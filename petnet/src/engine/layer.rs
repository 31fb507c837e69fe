//! A convolution with all that follows it, from one bordered map to another.

use std::cell::RefCell;
use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use super::winograd::Winograd;
use crate::kernel::{After, Packed, Product, Run, Term, arch, load};

/// Zeros around what a layer gives, in pixels.
pub(super) const BORDER: usize = 1;
/// With rows of fewer places, all places of a map are copied out and multiplied together.
const FEW: usize = 8;
/// With fewer, transforming tiles costs more than it saves in products.
const FEWEST_INPUTS: usize = 4;

thread_local! {
    /// Rows that wait to be pooled.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What all places of a small map read.
    static PATCHES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What comes of it.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A map's sides without its border, and its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    /// Zeros around it, in pixels.
    pub(super) border: usize,
}

impl Shape {
    /// Values with the border.
    pub(super) fn len(self) -> usize {
        (self.height + 2 * self.border) * self.row()
    }

    /// Values of a row with its border.
    pub(super) fn row(self) -> usize {
        (self.width + 2 * self.border) * self.channels
    }

    /// Where a row's first pixel begins, and where its last one ends, within the row.
    pub(super) fn inside(self) -> Range<usize> {
        self.border * self.channels..(self.border + self.width) * self.channels
    }
}

/// A map to read, its border included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) values: &'a [f32],
    pub(super) shape: Shape,
    /// Whether all threads share the work on it.
    pub(super) shared: bool,
}

impl Input<'_> {
    /// Fewest parts of the work that are worth a thread of their own.
    pub(super) fn grain(self) -> usize {
        if self.shared { 1 } else { usize::MAX }
    }
}

/// What is done with the sums of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish<'a> {
    bias: &'a [f32],
    /// A whole map, its border included.
    shortcut: Option<&'a [f32]>,
    relu: bool,
}

impl Finish<'_> {
    /// `at` is where `out` begins in its map, and `channel` its first channel.
    #[inline(always)]
    pub(super) fn write(&self, sums: &[f32], channel: usize, at: usize, out: &mut [f32]) {
        let bias = &self.bias[channel..];
        for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
            *out = sum + bias;
        }
        if let Some(shortcut) = self.shortcut {
            out.iter_mut().zip(&shortcut[at..]).for_each(|(out, other)| *out += other);
        }
        if self.relu {
            out.iter_mut().for_each(|out| *out = out.max(0.0));
        }
    }

    /// The same for one vector.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(
        &self,
        simd: S,
        sum: S::f32s,
        channels: Range<usize>,
        at: usize,
    ) -> S::f32s {
        let count = channels.len();
        let mut value = simd.add_f32s(sum, load::<S, 1>(simd, &self.bias[channels])[0]);
        if let Some(shortcut) = self.shortcut {
            let shortcut = load::<S, 1>(simd, &shortcut[at..at + count])[0];
            value = simd.add_f32s(value, shortcut);
        }
        if self.relu {
            value = simd.max_f32s(value, simd.splat_f32s(0.0));
        }
        value
    }
}

/// What a layer is before its weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Odd, and no wider than the input's border allows.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) relu: bool,
    /// Whether the largest of each two by two pixels is kept.
    pub(super) pool: bool,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) form: Form,
    weights: Weights,
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Weights {
    Plain(Packed),
    Transformed(Winograd),
}

impl Layer {
    /// `weights` are `[outputs, inputs, kernel, kernel]`, batch norm folded in.
    pub(super) fn new(form: Form, weights: &[f32], bias: Vec<f32>, input: Shape) -> Self {
        let (inputs, taps) = (form.inputs, form.kernel * form.kernel);
        let winograd = (form.kernel == 3 && form.stride == 1 && inputs >= FEWEST_INPUTS)
            .then(|| Winograd::side_for(input.height, input.width))
            .flatten();
        let weights = match winograd {
            Some(side) => Weights::Transformed(Winograd::new(side, inputs, weights)),
            None => {
                Weights::Plain(Packed::new([taps, inputs, form.outputs], |tap, input, output| {
                    weights[(output * inputs + input) * taps + tap]
                }))
            }
        };
        Self { form, weights, bias }
    }

    pub(super) fn shape(&self, input: Shape) -> Shape {
        let pool = self.pool();
        Shape {
            height: input.height.div_ceil(self.form.stride) / pool,
            width: input.width.div_ceil(self.form.stride) / pool,
            channels: self.form.outputs,
            border: BORDER,
        }
    }

    fn pool(&self) -> usize {
        if self.form.pool { 2 } else { 1 }
    }

    /// Two for each multiply-add.
    pub(super) fn flops(&self, input: Shape) -> u64 {
        let Form { inputs, outputs, kernel, stride, .. } = self.form;
        let places = input.height.div_ceil(stride) * input.width.div_ceil(stride);
        2 * (places * kernel * kernel * inputs * outputs) as u64
    }

    /// Fills the inside of `out`; a shortcut has its shape.
    pub(super) fn run(&self, input: Input<'_>, shortcut: Option<&[f32]>, out: &mut [f32]) {
        let shape = self.shape(input.shape);
        let finish = Finish { bias: &self.bias, shortcut, relu: self.form.relu };
        let few = shape.width < FEW && !self.form.pool;
        let weights = match &self.weights {
            Weights::Transformed(winograd) => {
                return winograd.run(input, finish, (shape, self.pool()), out);
            }
            Weights::Plain(weights) if few => return self.together(input, weights, finish, out),
            Weights::Plain(weights) => weights,
        };
        let rows = out.par_chunks_exact_mut(shape.row()).skip(BORDER).take(shape.height);
        rows.enumerate().with_min_len(input.grain()).for_each(|(y, out)| {
            let out = &mut out[shape.inside()];
            if self.form.pool {
                return self.pooled(input, weights, y, out);
            }
            let shortcut = shortcut.map(|all| &all[(y + BORDER) * shape.row()..][shape.inside()]);
            self.row(input, weights, (y, shortcut), out);
        });
    }

    /// Small maps: one product for all places, so that weights are read once; threads share the
    /// output channels.
    fn together(&self, input: Input<'_>, weights: &Packed, finish: Finish<'_>, out: &mut [f32]) {
        let shape = self.shape(input.shape);
        let (mut patches, mut sums) = (PATCHES.take(), SUMS.take());
        patches.clear();
        (0..shape.height).for_each(|y| self.patches(input, y, &mut patches));
        let places = shape.height * shape.width;
        let run = Run { first: 0, rows: places, terms: vec![Term { start: 0, tap: 0 }] };
        let step = patches.len() / places;
        let runs = std::slice::from_ref(&run);
        sums.resize(places * shape.channels, 0.0);
        let mut rest = sums.as_mut_slice();
        let mut blocks = Vec::new();
        for (first, weights) in weights.view().joined(self.form.kernel.pow(2)).blocks() {
            let (sums, after) = rest.split_at_mut(places * weights.outputs());
            rest = after;
            blocks.push((first, weights, sums));
        }
        let x = patches.as_slice();
        blocks.par_iter_mut().with_min_len(input.grain()).for_each(|(_, weights, out)| {
            Product { x, weights: *weights, step, runs, after: After::default(), out }.run();
        });
        for (first, weights, sums) in blocks {
            for (place, sums) in sums.chunks_exact(weights.outputs()).enumerate() {
                let (y, x) = (place / shape.width, place % shape.width);
                let at = (y + BORDER) * shape.row() + (x + BORDER) * shape.channels + first;
                finish.write(sums, first, at, &mut out[at..at + weights.outputs()]);
            }
        }
        PATCHES.set(patches);
        SUMS.set(sums);
    }

    /// Row `y` of the output, two rows of the convolution.
    fn pooled(&self, input: Input<'_>, weights: &Packed, y: usize, out: &mut [f32]) {
        let pixel = self.form.outputs;
        let row = input.shape.width.div_ceil(self.form.stride) * pixel;
        let mut rows = ROWS.take();
        rows.resize(2 * row, 0.0);
        let (upper, lower) = rows.split_at_mut(row);
        self.row(input, weights, (2 * y, None), upper);
        self.row(input, weights, (2 * y + 1, None), lower);
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
        (y, shortcut): (usize, Option<&[f32]>),
        out: &mut [f32],
    ) {
        let Form { inputs, outputs, kernel, stride, relu, .. } = self.form;
        let terms = (0..kernel).map(|ky| Term {
            start: self.start(input.shape, y, ky) + self.origin(input.shape) * inputs,
            tap: ky,
        });
        let runs = [Run { first: 0, rows: out.len() / outputs, terms: terms.collect() }];
        let after = After { bias: Some(&self.bias), shortcut, relu };
        let (weights, step) = (weights.view().joined(kernel), stride * inputs);
        Product { x: input.values, weights, step, runs: &runs, after, out }.run();
    }

    /// Pixels of the border that a layer does not read.
    fn origin(&self, input: Shape) -> usize {
        input.border - self.form.kernel / 2
    }

    /// The row that tap `ky` of output row `y` reads.
    fn start(&self, input: Shape, y: usize, ky: usize) -> usize {
        (y * self.form.stride + self.origin(input) + ky) * input.row()
    }

    /// Copies all taps of a row's pixels side by side.
    fn patches(&self, Input { values, shape, .. }: Input<'_>, y: usize, patches: &mut Vec<f32>) {
        let Form { inputs, kernel, stride, .. } = self.form;
        for place in 0..shape.width.div_ceil(stride) {
            for ky in 0..kernel {
                let start =
                    self.start(shape, y, ky) + (place * stride + self.origin(shape)) * inputs;
                patches.extend_from_slice(&values[start..start + kernel * inputs]);
            }
        }
    }
}
