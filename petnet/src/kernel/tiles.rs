//! Small dense products whose sums stay in registers, with whatever vectors the machine has.
#![allow(
    unsafe_code,
    reason = "bounds checks in the innermost loop halve the speed; tests compare with burn's"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over sums must unroll, or the sums leave their registers"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::arch;
use crate::graph::Activation;

/// What a machine's vectors are good for.
#[derive(Debug, Clone, Copy)]
struct Vectors {
    /// Values in each.
    lanes: usize,
    /// Most vectors of output channels that are summed at once.
    width: usize,
}

struct Ask;

impl WithSimd for Ask {
    type Output = Vectors;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vectors {
        Vectors { lanes: S::F32_LANES, width: width::<S>() }
    }
}

/// Sums, a row's weights and an input must fit the registers, with some to spare: compilers
/// shuffle sums about when they just do.
#[inline(always)]
const fn width<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 3 } else { 2 }
}

/// Weights in the order in which the products read them: blocks of output channels, each
/// `[taps, inputs, width of the block]`, the last one filled up with zeros.
#[derive(Debug)]
pub(crate) struct Packed {
    data: Vec<f32>,
    taps: usize,
    inputs: usize,
    outputs: usize,
    vectors: Vectors,
}

impl Packed {
    /// `weight(tap, input, output)` gives each value.
    pub(crate) fn new(
        [taps, inputs, outputs]: [usize; 3],
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let vectors = arch().dispatch(Ask);
        let lanes = vectors.lanes;
        let mut data = vec![0.0; taps * inputs * outputs.next_multiple_of(lanes)];
        let mut rest = data.as_mut_slice();
        for (first, width) in blocks(outputs.div_ceil(lanes), vectors.width) {
            let (block, after) = rest.split_at_mut(taps * inputs * width * lanes);
            rest = after;
            let first = first * lanes;
            let used = (width * lanes).min(outputs - first);
            let rows = block.par_chunks_exact_mut(width * lanes).with_min_len(64).enumerate();
            rows.for_each(|(row, values)| {
                let (tap, input) = (row / inputs, row % inputs);
                for (output, value) in values[..used].iter_mut().enumerate() {
                    *value = weight(tap, input, first + output);
                }
            });
        }
        Self { data, taps, inputs, outputs, vectors }
    }

    pub(crate) fn view(&self) -> View<'_> {
        let Self { taps, inputs, outputs, vectors, .. } = *self;
        View { data: &self.data, taps, inputs, outputs, vectors }
    }
}

/// [`Packed`] weights as a product reads them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    taps: usize,
    inputs: usize,
    outputs: usize,
    vectors: Vectors,
}

impl<'a> View<'a> {
    /// Output channels.
    pub(crate) fn outputs(self) -> usize {
        self.outputs
    }

    /// For inputs that lie side by side for some taps: as many taps fewer, with as many more inputs.
    pub(crate) fn joined(self, taps: usize) -> Self {
        Self { taps: self.taps / taps, inputs: self.inputs * taps, ..self }
    }

    /// Parts to be summed at once, and their first output channels.
    pub(crate) fn blocks(self) -> impl Iterator<Item = (usize, Self)> {
        let Self { taps, inputs, outputs, vectors: Vectors { lanes, width }, .. } = self;
        let mut rest = self.data;
        blocks(outputs.div_ceil(lanes), width).map(move |(first, width)| {
            let (data, after) = rest.split_at(taps * inputs * width * lanes);
            rest = after;
            let first = first * lanes;
            (first, View { data, outputs: (outputs - first).min(width * lanes), ..self })
        })
    }
}

/// First vector and number of vectors of each block of output channels.
#[cfg(feature = "train")]
#[inline(always)]
pub(super) fn blocks_of<S: Simd>(outputs: usize) -> impl Iterator<Item = (usize, usize)> {
    blocks(outputs.div_ceil(S::F32_LANES), width::<S>())
}

/// As even as can be, of at most `width` each.
#[inline(always)]
fn blocks(vectors: usize, width: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = vectors.div_ceil(width);
    (0..count).map(move |block| {
        let first = block * vectors / count;
        (first, (block + 1) * vectors / count - first)
    })
}

/// How many of `left` rows to take at once: as even parts as can be, so that none has few rows, whose weights would be
/// loaded for little work.
#[inline(always)]
pub(super) fn rows_at_once<S: Simd>(left: usize) -> usize {
    let most = if S::REGISTER_COUNT >= 32 { 8 } else { 6 };
    left.div_ceil(left.div_ceil(most))
}

/// Runs `$tile` with its rows and width as constants, so that its sums stay in registers; as a
/// function of its own, or the compiler would spill them.
macro_rules! in_registers {
    ($simd:ident, $rows:expr, $width:expr, $tile:ident $fields:tt) => {
        match ($rows, $width) {
            (8, 3) => $simd.vectorize($tile::<8, 3> $fields),
            (8, 2) => $simd.vectorize($tile::<8, 2> $fields),
            (8, _) => $simd.vectorize($tile::<8, 1> $fields),
            (7, 3) => $simd.vectorize($tile::<7, 3> $fields),
            (7, 2) => $simd.vectorize($tile::<7, 2> $fields),
            (7, _) => $simd.vectorize($tile::<7, 1> $fields),
            (6, 3) => $simd.vectorize($tile::<6, 3> $fields),
            (6, 2) => $simd.vectorize($tile::<6, 2> $fields),
            (6, _) => $simd.vectorize($tile::<6, 1> $fields),
            (5, 3) => $simd.vectorize($tile::<5, 3> $fields),
            (5, 2) => $simd.vectorize($tile::<5, 2> $fields),
            (5, _) => $simd.vectorize($tile::<5, 1> $fields),
            (4, 3) => $simd.vectorize($tile::<4, 3> $fields),
            (4, 2) => $simd.vectorize($tile::<4, 2> $fields),
            (4, _) => $simd.vectorize($tile::<4, 1> $fields),
            (3, 3) => $simd.vectorize($tile::<3, 3> $fields),
            (3, 2) => $simd.vectorize($tile::<3, 2> $fields),
            (3, _) => $simd.vectorize($tile::<3, 1> $fields),
            (2, 3) => $simd.vectorize($tile::<2, 3> $fields),
            (2, 2) => $simd.vectorize($tile::<2, 2> $fields),
            (2, _) => $simd.vectorize($tile::<2, 1> $fields),
            (_, 3) => $simd.vectorize($tile::<1, 3> $fields),
            (_, 2) => $simd.vectorize($tile::<1, 2> $fields),
            (_, _) => $simd.vectorize($tile::<1, 1> $fields),
        }
    };
}

#[cfg(feature = "train")]
pub(super) use in_registers;

/// Rows of the input from `start`, times the weights of a tap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) start: usize,
    pub(crate) tap: usize,
}

/// Consecutive rows of the output that sum the same terms.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) terms: Vec<Term>,
}

/// GEMM epilogue: bias, residual, activation, in this order, before sums are written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// One value a channel.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added value by value; it begins where the output begins.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) activation: Option<Activation>,
}

impl Epilogue<'_> {
    /// Of the same output from `at` on.
    pub(crate) fn from(self, at: usize) -> Self {
        Self { residual: self.residual.map(|all| &all[at..]), ..self }
    }

    /// Of `V` vectors of an output's `channels`, which lie `at` values behind its beginning.
    #[inline(always)]
    pub(crate) fn apply<S: Simd, const V: usize>(
        &self,
        simd: S,
        mut sums: [S::f32s; V],
        channels: Range<usize>,
        at: usize,
    ) -> [S::f32s; V] {
        let count = channels.len();
        if let Some(bias) = self.bias {
            sums = add(simd, sums, &bias[channels]);
        }
        if let Some(residual) = self.residual {
            sums = add(simd, sums, &residual[at..at + count]);
        }
        if let Some(activation) = self.activation {
            let [floor, ceiling] = activation.bounds();
            let relu6 = activation == Activation::Relu6;
            for vector in 0..V {
                sums[vector] = simd.max_f32s(sums[vector], simd.splat_f32s(floor));
                if relu6 {
                    sums[vector] = simd.min_f32s(sums[vector], simd.splat_f32s(ceiling));
                }
            }
        }
        sums
    }

    /// The same of some values of neighbouring channels from `channel` on.
    #[inline(always)]
    pub(crate) fn write(&self, sums: &[f32], channel: usize, at: usize, out: &mut [f32]) {
        match self.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[channel..]) {
                    *out = sum + bias;
                }
            }
            None => out.copy_from_slice(sums),
        }
        if let Some(residual) = self.residual {
            out.iter_mut().zip(&residual[at..]).for_each(|(out, other)| *out += other);
        }
        if let Some(activation) = self.activation {
            let [floor, ceiling] = activation.bounds();
            out.iter_mut().for_each(|out| *out = out.max(floor).min(ceiling));
        }
    }
}

/// One row of pixels of a convolution's output.
pub(crate) struct Product<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weights: View<'a>,
    /// From a row of the input to that of the next row of the output.
    pub(crate) step: usize,
    pub(crate) runs: &'a [Run],
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) out: &'a mut [f32],
}

/// The output of a product, for several blocks of channels at once.
#[derive(Clone, Copy)]
struct Out<'a> {
    start: *mut f32,
    len: usize,
    output: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for an exclusive borrow of plain numbers, of which each block writes its own channels alone.
unsafe impl Send for Out<'_> {}
// SAFETY: as above; through a shared one, blocks reach no value of each other's.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), output: std::marker::PhantomData }
    }

    /// Values from `at` on.
    ///
    /// # Safety
    /// Nobody else holds any of them.
    #[inline(always)]
    unsafe fn part(&self, at: usize, count: usize) -> &'a mut [f32] {
        assert!(at + count <= self.len);
        // SAFETY: within the borrow that this stands for, and nobody else holds them, as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}

/// A block of output channels.
struct Block<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    inputs: usize,
    step: usize,
    runs: &'a [Run],
    /// Of the output.
    channels: Range<usize>,
    /// Values of a row of the output.
    row: usize,
    epilogue: Epilogue<'a>,
    out: Out<'a>,
}

impl<'a> Product<'a> {
    /// Fills the whole output.
    pub(crate) fn run(self) {
        self.blocks().for_each(|block| arch().dispatch(block));
    }

    /// The same, threads sharing the output's channels: each reads its part of the weights alone.
    pub(crate) fn run_by_channels(self) {
        let blocks: Vec<Block<'_>> = self.blocks().collect();
        blocks.into_par_iter().for_each(|block| arch().dispatch(block));
    }

    fn blocks(self) -> impl Iterator<Item = Block<'a>> {
        let Self { x, weights, step, runs, epilogue, out } = self;
        let (row, out) = (weights.outputs, Out::new(out));
        weights.blocks().map(move |(first, part)| Block {
            x,
            weights: part.data,
            inputs: part.inputs,
            step,
            runs,
            channels: first..first + part.outputs,
            row,
            epilogue,
            out,
        })
    }
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.channels.len().div_ceil(S::F32_LANES);
        for run in self.runs {
            let mut row = 0;
            while row < run.rows {
                let count = rows_at_once::<S>(run.rows - row);
                let place = run.first + row;
                let (block, terms) = (&self, &run.terms);
                in_registers!(simd, count, width, Products { block, terms, row, place });
                row += count;
            }
        }
    }
}

/// `R` rows of the output by `V` vectors of its channels.
struct Products<'a, const R: usize, const V: usize> {
    block: &'a Block<'a>,
    terms: &'a [Term],
    /// The tile's first row in its run, and in the output.
    row: usize,
    place: usize,
}

impl<const R: usize, const V: usize> WithSimd for Products<'_, R, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let &Block { x, weights, inputs, step, ref channels, row: width, epilogue, out, .. } =
            self.block;
        let weights = S::as_simd_f32s(weights).0.as_chunks::<V>().0;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for term in self.terms {
            let rows = &x[term.start + self.row * step..][..(R - 1) * step + inputs];
            let weights = &weights[term.tap * inputs..][..inputs];
            for (input, weights) in weights.iter().enumerate() {
                for row in 0..R {
                    // SAFETY: below (R - 1) * step + inputs, the length, as row < R and input < inputs.
                    let value = unsafe { *rows.get_unchecked(row * step + input) };
                    let value = simd.splat_f32s(value);
                    for vector in 0..V {
                        let sum = sums[row][vector];
                        sums[row][vector] = simd.mul_add_e_f32s(value, weights[vector], sum);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let at = (self.place + row) * width + channels.start;
            let sums = epilogue.apply(simd, sums, channels.clone(), at);
            // SAFETY: blocks write their own channels alone, and a block one row after the other.
            let out = unsafe { out.part(at, channels.len()) };
            store(simd, out, &sums);
        }
    }
}

#[inline(always)]
pub(super) fn add<S: Simd, const V: usize>(
    simd: S,
    mut sums: [S::f32s; V],
    values: &[f32],
) -> [S::f32s; V] {
    let values = load::<S, V>(simd, values);
    for vector in 0..V {
        sums[vector] = simd.add_f32s(sums[vector], values[vector]);
    }
    sums
}

/// The first `V` vectors of `values`, zeros where it ends.
#[inline(always)]
pub(crate) fn load<S: Simd, const V: usize>(simd: S, values: &[f32]) -> [S::f32s; V] {
    let (whole, _) = S::as_simd_f32s(values);
    match whole.first_chunk::<V>() {
        Some(whole) => *whole,
        None => {
            let mut vectors = [simd.splat_f32s(0.0); V];
            for (vector, part) in vectors.iter_mut().zip(values.chunks(S::F32_LANES)) {
                *vector = simd.partial_load_f32s(part);
            }
            vectors
        }
    }
}

/// Writes as much of the vectors as there is room for.
#[inline(always)]
pub(crate) fn store<S: Simd, const V: usize>(simd: S, values: &mut [f32], vectors: &[S::f32s; V]) {
    if let Some(whole) = S::as_mut_simd_f32s(values).0.first_chunk_mut::<V>() {
        return *whole = *vectors;
    }
    // A loop of constant length: with another one the sums would leave their registers.
    for (place, vector) in vectors.iter().enumerate() {
        let start = (place * S::F32_LANES).min(values.len());
        let end = (start + S::F32_LANES).min(values.len());
        simd.partial_store_f32s(&mut values[start..end], *vector);
    }
}
