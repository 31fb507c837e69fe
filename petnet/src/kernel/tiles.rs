//! Tile products: the GEMM micro-kernels behind all dense f32 convolutions, for vectors of any width.
//!
//! A tile is `R` rows of the output by `V` vectors of its channels. Its `R * V` sums stay in registers while the loop
//! runs over the inputs: each step loads `V` vectors of weights, broadcasts one input value for each row, and does `R * V`
//! multiply-adds. Weights are packed once, in the order in which this loop reads them (Goto and van de Geijn, "Anatomy of
//! high-performance matrix multiplication", 2008). Inputs are not packed: a row of the product begins at any offset, and
//! the next row lies at a fixed stride from it, so that a convolution reads its feature map in place.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::vector_arch;
use crate::graph::Activation;

/// Size of the vectors that this CPU has, and of the tiles for them.
#[derive(Debug, Clone, Copy)]
struct VectorUnit {
    /// Values of a vector.
    lanes: usize,
    /// Maximum number of vectors of output channels in a tile.
    max_vectors: usize,
}

struct DetectVectorUnit;

impl WithSimd for DetectVectorUnit {
    type Output = VectorUnit;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> VectorUnit {
        VectorUnit { lanes: S::F32_LANES, max_vectors: max_vectors::<S>() }
    }
}

/// Maximum number of vectors in a tile. Sums, weights and one input value must fit the registers with some to spare:
/// where they only just fit, compilers move sums between registers.
#[inline(always)]
pub(super) const fn max_vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 3 } else { 2 }
}

/// Packed weights: blocks of output channels of 1 to `max_vectors` vectors, each block `[taps, inputs, channels of the block]`.
/// The last vector is padded with zeros: 40 outputs in vectors of 16 values are one block `[taps, inputs, 48]`, which has the 40
/// weights of an input, then eight zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed<D> {
    data: D,
    taps: usize,
    inputs: usize,
    outputs: usize,
    unit: VectorUnit,
}

pub(crate) type PackedWeights = Packed<Vec<f32>>;
/// A borrow of [`PackedWeights`], of all output channels or of one block.
pub(crate) type PackedView<'a> = Packed<&'a [f32]>;

impl PackedWeights {
    /// Packs the values of `weight(tap, input, output)`.
    pub(crate) fn new(
        [taps, inputs, outputs]: [usize; 3],
        weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let unit = vector_arch().dispatch(DetectVectorUnit);
        let lanes = unit.lanes;
        let mut data = vec![0.0; taps * inputs * outputs.next_multiple_of(lanes)];
        let mut rest = data.as_mut_slice();
        for (first, vectors) in blocks(outputs.div_ceil(lanes), unit.max_vectors) {
            let (block, after) = rest.split_at_mut(taps * inputs * vectors * lanes);
            rest = after;
            let first = first * lanes;
            let used = (vectors * lanes).min(outputs - first);
            let rows = block.par_chunks_exact_mut(vectors * lanes).with_min_len(64).enumerate();
            rows.for_each(|(row, values)| {
                let (tap, input) = (row / inputs, row % inputs);
                for (output, value) in values[..used].iter_mut().enumerate() {
                    *value = weight(tap, input, first + output);
                }
            });
        }
        Self { data, taps, inputs, outputs, unit }
    }

    pub(crate) fn view(&self) -> PackedView<'_> {
        let Self { taps, inputs, outputs, unit, .. } = *self;
        PackedView { data: &self.data, taps, inputs, outputs, unit }
    }
}

impl<'a> PackedView<'a> {
    pub(crate) fn outputs(self) -> usize {
        self.outputs
    }

    /// The same weights with each `taps` neighbouring taps merged into one of `taps` times as many inputs, for inputs
    /// that are contiguous over these taps.
    pub(crate) fn merge_taps(self, taps: usize) -> Self {
        Self { taps: self.taps / taps, inputs: self.inputs * taps, ..self }
    }

    /// The blocks of output channels, each with the number of its first channel.
    pub(crate) fn blocks(self) -> impl Iterator<Item = (usize, Self)> {
        let Self { taps, inputs, outputs, unit: VectorUnit { lanes, max_vectors }, .. } = self;
        let mut rest = self.data;
        blocks(outputs.div_ceil(lanes), max_vectors).map(move |(first, vectors)| {
            let (data, after) = rest.split_at(taps * inputs * vectors * lanes);
            rest = after;
            let first = first * lanes;
            (first, PackedView { data, outputs: (outputs - first).min(vectors * lanes), ..self })
        })
    }
}

/// Divides vectors into blocks of at most `max_vectors`, as evenly as possible; each is its first vector and their number.
#[inline(always)]
pub(super) fn blocks(vectors: usize, max_vectors: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = vectors.div_ceil(max_vectors);
    (0..count).map(move |block| {
        let first = block * vectors / count;
        (first, (block + 1) * vectors / count - first)
    })
}

/// Number of rows of the next tile where `rows_left` rows remain: at most 8, or 6 on CPUs with fewer than 32 vector registers.
/// Tiles are as even as possible, so that none has few rows: it would load its weights for little arithmetic.
#[inline(always)]
pub(super) fn tile_rows<S: Simd>(rows_left: usize) -> usize {
    let max_rows = if S::REGISTER_COUNT >= 32 { 8 } else { 6 };
    rows_left.div_ceil(rows_left.div_ceil(max_rows))
}

/// Runs `$tile` with its numbers of rows and vectors as constants, so that its sums are registers. `vectorize` makes each
/// instance a function of its own; inlined, its sums would be spilled.
macro_rules! dispatch_tile {
    ($simd:ident, $rows:expr, $vectors:expr, $tile:ident $fields:tt) => {
        dispatch_tile!($simd, $rows, $vectors, $tile $fields, [8 7 6 5 4 3 2 1])
    };
    ($simd:ident, $rows:expr, $vectors:expr, $tile:ident $fields:tt, [$($r:literal)+]) => {
        match ($rows, $vectors) {
            $(
                ($r, 3) => $simd.vectorize($tile::<$r, 3> $fields),
                ($r, 2) => $simd.vectorize($tile::<$r, 2> $fields),
                ($r, 1) => $simd.vectorize($tile::<$r, 1> $fields),
            )+
            (rows, vectors) => unreachable!("a tile of {rows} rows by {vectors} vectors"),
        }
    };
}

#[cfg(feature = "train")]
pub(super) use dispatch_tile;

/// One summand of a product: rows of the input from offset `start` on, times the weights of a tap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term {
    pub(crate) start: usize,
    pub(crate) tap: usize,
}

/// Consecutive rows of the output that have the same terms.
#[derive(Debug)]
pub(crate) struct RowRun {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) terms: Vec<Term>,
}

/// GEMM epilogue: bias, residual add and activation, applied in this order to the sums before they are written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// One value for each channel.
    pub(crate) bias: Option<&'a [f32]>,
    /// Same layout as the output; element 0 belongs to element 0 of the output.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) activation: Option<Activation>,
}

impl Epilogue<'_> {
    /// The epilogue of the part of the output from offset `at` on.
    pub(crate) fn at_offset(self, at: usize) -> Self {
        Self { residual: self.residual.map(|all| &all[at..]), ..self }
    }

    /// Applies it to `V` vectors of sums of some channels, whose offset in the output is `at`.
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
            let clamped = ceiling.is_finite();
            for vector in 0..V {
                sums[vector] = simd.max_f32s(sums[vector], simd.splat_f32s(floor));
                if clamped {
                    sums[vector] = simd.min_f32s(sums[vector], simd.splat_f32s(ceiling));
                }
            }
        }
        sums
    }

    /// Applies it to the sums of all channels of a pixel, whose offset in the output is `at`, and writes them.
    #[inline(always)]
    pub(crate) fn write(&self, sums: &[f32], at: usize, out: &mut [f32]) {
        match self.bias {
            Some(bias) => {
                for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
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

/// A sum over taps of products `[rows, inputs] x [inputs, outputs]`. Rows are the pixels (times images) of one row of a
/// feature map, or of all of it.
pub(crate) struct Product<'a> {
    /// The feature map, of which each term reads `inputs` contiguous values for each row.
    pub(crate) x: &'a [f32],
    /// `[taps, inputs, outputs]`.
    pub(crate) weights: PackedView<'a>,
    /// Values from the input of a row of the output to that of the next row.
    pub(crate) row_stride: usize,
    /// Together all rows of the output.
    pub(crate) runs: &'a [RowRun],
    pub(crate) epilogue: Epilogue<'a>,
    /// `[rows, outputs]`.
    pub(crate) out: &'a mut [f32],
}

/// The output of a product, which tasks for several blocks of channels write at the same time.
#[derive(Clone, Copy)]
struct SharedOutput<'a> {
    start: *mut f32,
    len: usize,
    output: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it represents an exclusive borrow of plain numbers, of which each block writes its own channels only.
#[expect(unsafe_code, reason = "blocks write disjoint channels of one output")]
unsafe impl Send for SharedOutput<'_> {}
// SAFETY: as above; blocks access disjoint values.
#[expect(unsafe_code, reason = "blocks write disjoint channels of one output")]
unsafe impl Sync for SharedOutput<'_> {}

#[expect(unsafe_code, reason = "blocks write disjoint channels of one output")]
impl<'a> SharedOutput<'a> {
    fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), output: std::marker::PhantomData }
    }

    /// `count` values from `at` on.
    ///
    /// # Safety
    /// There is no other reference to any of them.
    #[inline(always)]
    unsafe fn part(&self, at: usize, count: usize) -> &'a mut [f32] {
        assert!(at + count <= self.len);
        // SAFETY: within the borrow that this represents; the caller ensures that there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}

/// The part of a [`Product`] for one block of output channels.
struct ChannelBlock<'a> {
    x: &'a [f32],
    /// `[taps, inputs, channels of the block]`, the channels padded to whole vectors.
    weights: &'a [f32],
    inputs: usize,
    row_stride: usize,
    runs: &'a [RowRun],
    /// The block's channels among those of the output.
    channels: Range<usize>,
    /// Values of a row of the output: all of its channels.
    out_row_len: usize,
    epilogue: Epilogue<'a>,
    out: SharedOutput<'a>,
}

impl<'a> Product<'a> {
    /// Computes the whole output on this thread.
    pub(crate) fn run(self) {
        self.blocks().for_each(|block| vector_arch().dispatch(block));
    }

    /// Computes the whole output, with blocks of output channels in parallel: each thread reads only its part of the
    /// weights.
    pub(crate) fn run_by_channels(self) {
        let blocks: Vec<ChannelBlock<'_>> = self.blocks().collect();
        blocks.into_par_iter().for_each(|block| vector_arch().dispatch(block));
    }

    fn blocks(self) -> impl Iterator<Item = ChannelBlock<'a>> {
        let Self { x, weights, row_stride, runs, epilogue, out } = self;
        let (out_row_len, out) = (weights.outputs, SharedOutput::new(out));
        weights.blocks().map(move |(first, part)| ChannelBlock {
            x,
            weights: part.data,
            inputs: part.inputs,
            row_stride,
            runs,
            channels: first..first + part.outputs,
            out_row_len,
            epilogue,
            out,
        })
    }
}

impl WithSimd for ChannelBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.channels.len().div_ceil(S::F32_LANES);
        for run in self.runs {
            let mut row = 0;
            while row < run.rows {
                let rows = tile_rows::<S>(run.rows - row);
                let (block, terms, out_row) = (&self, &run.terms, run.first_row + row);
                dispatch_tile!(simd, rows, vectors, Tile { block, terms, row, out_row });
                row += rows;
            }
        }
    }
}

/// The micro-kernel: `R` rows of the output by `V` vectors of its channels.
struct Tile<'a, const R: usize, const V: usize> {
    block: &'a ChannelBlock<'a>,
    terms: &'a [Term],
    /// The tile's first row within its run.
    row: usize,
    /// The tile's first row within the output.
    out_row: usize,
}

#[expect(unsafe_code, reason = "bounds checks in the innermost loop halve the speed")]
impl<const R: usize, const V: usize> WithSimd for Tile<'_, R, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let &ChannelBlock { x, weights, inputs, row_stride, ref channels, epilogue, out, .. } =
            self.block;
        let weights = S::as_simd_f32s(weights).0.as_chunks::<V>().0;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for term in self.terms {
            let rows = &x[term.start + self.row * row_stride..][..(R - 1) * row_stride + inputs];
            let weights = &weights[term.tap * inputs..][..inputs];
            for (input, weights) in weights.iter().enumerate() {
                for row in 0..R {
                    // SAFETY: below (R - 1) * row_stride + inputs, the length, as row < R and input < inputs.
                    let value = unsafe { *rows.get_unchecked(row * row_stride + input) };
                    let value = simd.splat_f32s(value);
                    for vector in 0..V {
                        let sum = sums[row][vector];
                        sums[row][vector] = simd.mul_add_e_f32s(value, weights[vector], sum);
                    }
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let at = (self.out_row + row) * self.block.out_row_len + channels.start;
            let sums = epilogue.apply(simd, sums, channels.clone(), at);
            // SAFETY: a block writes its own channels only, and one row after the other.
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

/// The first `V` vectors of `values`, padded with zeros.
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

/// Writes the values of the vectors that fit into `values`.
#[inline(always)]
pub(crate) fn store<S: Simd, const V: usize>(simd: S, values: &mut [f32], vectors: &[S::f32s; V]) {
    if let Some(whole) = S::as_mut_simd_f32s(values).0.first_chunk_mut::<V>() {
        return *whole = *vectors;
    }
    // A loop of constant length: with a variable one the sums would be spilled.
    for (index, vector) in vectors.iter().enumerate() {
        let start = (index * S::F32_LANES).min(values.len());
        let end = (start + S::F32_LANES).min(values.len());
        simd.partial_store_f32s(&mut values[start..end], *vector);
    }
}
