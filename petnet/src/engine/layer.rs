//! A convolution with all that follows it, from one bordered map to another.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{After, Packed, Product, Run, Term};

/// Zeros around each map, in pixels.
pub(super) const BORDER: usize = 1;
/// Where a row of the output has fewer places than this, or a pixel of the input fewer channels,
/// taps are copied side by side first: long products beat short ones.
const FEW: usize = 8;

thread_local! {
    /// Patches of a row.
    static PATCHES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Rows that wait to be pooled.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A map's sides without its border, the photos in it and its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) batch: usize,
    pub(super) channels: usize,
}

impl Shape {
    /// Values with the border.
    pub(super) fn len(self) -> usize {
        (self.height + 2 * BORDER) * self.row()
    }

    /// Values of a row with its border.
    pub(super) fn row(self) -> usize {
        (self.width + 2 * BORDER) * self.pixel()
    }

    pub(super) fn pixel(self) -> usize {
        self.batch * self.channels
    }

    /// Where a row's first pixel begins, and where its last one ends, within the row.
    fn inside(self) -> Range<usize> {
        BORDER * self.pixel()..(BORDER + self.width) * self.pixel()
    }
}

/// A map to read, its border included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) values: &'a [f32],
    pub(super) shape: Shape,
}

/// What a layer is before its weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// 1 or 3.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) relu: bool,
    /// Whether the largest of each two by two pixels is kept.
    pub(super) pool: bool,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) form: Form,
    weights: Packed,
    bias: Vec<f32>,
}

impl Layer {
    /// `weights` are `[outputs, inputs, kernel, kernel]`, batch norm folded in.
    pub(super) fn new(form: Form, weights: &[f32], bias: Vec<f32>) -> Self {
        let (inputs, taps) = (form.inputs, form.kernel * form.kernel);
        let packed = Packed::new([taps, inputs, form.outputs], |tap, input, output| {
            weights[(output * inputs + input) * taps + tap]
        });
        Self { form, weights: packed, bias }
    }

    pub(super) fn shape(&self, input: Shape) -> Shape {
        let pool = if self.form.pool { 2 } else { 1 };
        Shape {
            height: input.height.div_ceil(self.form.stride) / pool,
            width: input.width.div_ceil(self.form.stride) / pool,
            batch: input.batch,
            channels: self.form.outputs,
        }
    }

    /// Fills the inside of `out`; a shortcut has its shape.
    pub(super) fn run(&self, input: Input<'_>, shortcut: Option<&[f32]>, out: &mut [f32]) {
        let shape = self.shape(input.shape);
        let rows = out.par_chunks_exact_mut(shape.row()).skip(BORDER).take(shape.height);
        let shortcut =
            |y: usize| shortcut.map(|all| &all[(y + BORDER) * shape.row()..][shape.inside()]);
        if self.form.pool {
            return rows.enumerate().for_each(|(y, out)| {
                self.pooled(input, y, &mut out[shape.inside()]);
            });
        }
        let places = shape.width * shape.batch;
        if places >= FEW {
            return rows.enumerate().for_each(|(y, out)| {
                self.row(input, y, shortcut(y), &mut out[shape.inside()]);
            });
        }
        // Narrow maps: some rows together, so that weights are read fewer times.
        let together = FEW.div_ceil(places);
        let mut rows: Vec<&mut [f32]> = rows.collect();
        rows.par_chunks_mut(together).enumerate().for_each(|(chunk, rows)| {
            let first = chunk * together;
            let mut sums = ROWS.take();
            sums.clear();
            for y in first..first + rows.len() {
                match shortcut(y) {
                    Some(shortcut) => sums.extend_from_slice(shortcut),
                    None => sums.resize(sums.len() + places * self.form.outputs, 0.0),
                }
            }
            self.product(input, first..first + rows.len(), &mut sums);
            let sums = sums.chunks_exact(places * self.form.outputs);
            rows.iter_mut().zip(sums).for_each(|(row, sums)| {
                row[shape.inside()].copy_from_slice(sums);
            });
        });
    }

    /// Adds rows of the convolution to what lies in `out` (a shortcut, or zeros), by patches.
    fn product(&self, input: Input<'_>, rows: Range<usize>, out: &mut [f32]) {
        let mut patches = PATCHES.take();
        patches.clear();
        rows.for_each(|y| self.patches(input, y, &mut patches));
        let places = out.len() / self.form.outputs;
        let run = Run { first: 0, rows: places, terms: vec![Term { start: 0, tap: 0 }] };
        let after =
            After { bias: Some(&self.bias), add: true, relu: self.form.relu, shortcut: None };
        let weights = self.weights.view().flat();
        let step = patches.len() / places;
        let runs = std::slice::from_ref(&run);
        Product { x: &patches, weights, step, runs, after, out }.run();
        PATCHES.set(patches);
    }

    /// Row `y` of the output, two rows of the convolution.
    fn pooled(&self, input: Input<'_>, y: usize, out: &mut [f32]) {
        let pixel = input.shape.batch * self.form.outputs;
        let row = input.shape.width.div_ceil(self.form.stride) * pixel;
        let mut rows = ROWS.take();
        rows.resize(2 * row, 0.0);
        let (upper, lower) = rows.split_at_mut(row);
        self.row(input, 2 * y, None, upper);
        self.row(input, 2 * y + 1, None, lower);
        let pairs = upper.chunks_exact(2 * pixel).zip(lower.chunks_exact(2 * pixel));
        pulp::Arch::new().dispatch(|| {
            for (out, (upper, lower)) in out.chunks_exact_mut(pixel).zip(pairs) {
                for c in 0..pixel {
                    let right = c + pixel;
                    out[c] = upper[c].max(upper[right]).max(lower[c].max(lower[right]));
                }
            }
        });
        ROWS.set(rows);
    }

    /// Row `y` of the convolution, `[width, batch, outputs]`.
    fn row(&self, input: Input<'_>, y: usize, shortcut: Option<&[f32]>, out: &mut [f32]) {
        let Form { inputs, outputs, relu, stride, .. } = self.form;
        let places = out.len() / outputs;
        if inputs < FEW {
            match shortcut {
                Some(shortcut) => out.copy_from_slice(shortcut),
                None => out.fill(0.0),
            }
            return self.product(input, y..y + 1, out);
        }
        let after = After { bias: Some(&self.bias), shortcut, add: false, relu };
        // Pixels that a stride apart lie at one distance are one run: one photo, or stride 1.
        let joined = stride == 1 || input.shape.batch == 1;
        let step = inputs * if input.shape.batch == 1 { stride } else { 1 };
        let pixels = if joined { 1 } else { places / input.shape.batch };
        let runs: Vec<Run> = (0..pixels)
            .map(|pixel| Run {
                first: pixel * input.shape.batch,
                rows: places / pixels,
                terms: self.terms(input.shape, y, pixel),
            })
            .collect();
        let (x, weights) = (input.values, self.weights.view());
        Product { x, weights, step, runs: &runs, after, out }.run();
    }

    fn terms(&self, input: Shape, y: usize, x: usize) -> Vec<Term> {
        let kernel = self.form.kernel;
        let taps = (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx)));
        taps.map(|(ky, kx)| Term {
            start: self.start(input, y, ky)
                + (x * self.form.stride + self.origin() + kx) * input.pixel(),
            tap: ky * kernel + kx,
        })
        .collect()
    }

    /// Pixels of the border that a layer does not read.
    fn origin(&self) -> usize {
        BORDER - self.form.kernel / 2
    }

    /// The row that tap `ky` of output row `y` reads.
    fn start(&self, input: Shape, y: usize, ky: usize) -> usize {
        (y * self.form.stride + self.origin() + ky) * input.row()
    }

    /// Copies all taps of a row's pixels side by side.
    fn patches(&self, input: Input<'_>, y: usize, patches: &mut Vec<f32>) {
        let Input { values, shape: input } = input;
        let Form { inputs, kernel, stride, .. } = self.form;
        let width = input.width.div_ceil(stride);
        for place in 0..width {
            for photo in 0..input.batch {
                for ky in 0..kernel {
                    let row = self.start(input, y, ky);
                    for kx in 0..kernel {
                        let pixel = (place * stride + self.origin() + kx) * input.pixel();
                        let start = row + pixel + photo * inputs;
                        patches.extend_from_slice(&values[start..start + inputs]);
                    }
                }
            }
        }
    }
}
