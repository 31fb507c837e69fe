//! Winograd convolution F(2x2, 3x3) and F(4x4, 3x3), for dense 3x3 kernels of stride 1 (Lavin and Gray, "Fast algorithms
//! for convolutional neural networks", 2016), with 4/9 and 1/4 of the multiplications of the direct form.
//!
//! For an output tile of `m`x`m` pixels it is `Y = A' [sum over inputs of (G g G') * (B' d B)] A`, where `g` is a 3x3
//! kernel, `d` an input tile of `t`x`t` pixels with `t = m + 2`, `*` is elementwise, and `'` transposes. The elementwise
//! products and the sum over inputs are one matrix product for each of the `t * t` places of a tile:
//!
//! - Weights `G g G'` are computed when the plan is compiled, and packed with one tap for each place.
//! - [`InputTransform`] writes `B' d B` as `[place, tile, input]`.
//! - [`Winograd::multiply`] computes `[tiles, inputs] x [inputs, outputs]` for each place, block by block of output
//!   channels: `[place, tile, channel]` for each block.
//! - [`OutputTransform`] computes `A' .. A`, pools 2x2 where the step does, and applies the epilogue.
//!
//! Some rows of tiles are processed at a time, so that the transformed input stays in the L2 cache.

#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over tiles must unroll, or they leave their registers"
)]

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::shape::{Input, Shape};
use crate::kernel::{
    Epilogue, PackedView, PackedWeights, Product, RowRun, Term, load, store, vector_arch,
};

/// Maximum number of values of transformed input at a time, so that they stay in the L2 cache.
const MAX_INPUT_VALUES: usize = 1 << 16;
/// With fewer tiles, reading the transformed weights, which are larger, costs as much as the products save.
const MIN_TILES: usize = 16;

thread_local! {
    /// Transformed input, and sums.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// A 3x3 convolution of stride 1 with transformed weights.
#[derive(Debug)]
pub(super) struct Winograd {
    /// Height and width of an output tile, 2 or 4.
    side: usize,
    inputs: usize,
    /// One tap for each place of an input tile.
    weights: PackedWeights,
}

/// Some rows of tiles.
struct Tiles {
    /// Number of the first row of tiles.
    first_row: usize,
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// Row and column of a tile.
    #[inline(always)]
    fn row_and_column(&self, tile: usize) -> [usize; 2] {
        [self.first_row + tile / self.columns, tile % self.columns]
    }
}

impl Winograd {
    /// The size of output tiles for a map; `None` where the direct form is faster.
    pub(super) fn side_for(height: usize, width: usize) -> Option<usize> {
        let tiles = |side: usize| height.div_ceil(side) * width.div_ceil(side);
        let products = |side: usize| tiles(side) * (side + 2) * (side + 2);
        // Smaller tiles have smaller rounding errors and fewer weights, so that larger ones must save a quarter.
        let side = if products(4) * 4 < products(2) * 3 { 4 } else { 2 };
        (tiles(side) >= MIN_TILES).then_some(side)
    }

    /// `weights` are `[outputs, inputs, 3, 3]`.
    pub(super) fn new(side: usize, inputs: usize, weights: &[f32]) -> Self {
        let rows: &[[f32; 3]] = if side == 4 { &G_4 } else { &G_2 };
        let (tile, outputs) = (rows.len(), weights.len() / (inputs * 9));
        let packed = PackedWeights::new([tile * tile, inputs, outputs], |place, input, output| {
            let weights = &weights[(output * inputs + input) * 9..][..9];
            let (down, right) = (rows[place / tile], rows[place % tile]);
            (0..9).map(|tap| down[tap / 3] * weights[tap] * right[tap % 3]).sum()
        });
        Self { side, inputs, weights: packed }
    }

    /// Computes the inside of `out` of a given shape, which is `pool_factor` times smaller than the convolution's. The input has
    /// a border of at least one pixel; a residual has the layout of `out`, border included.
    pub(super) fn run(
        &self,
        input: Input<'_>,
        epilogue: Epilogue<'_>,
        (shape, pool_factor): (Shape, usize),
        out: &mut [f32],
    ) {
        let columns = (shape.width * pool_factor).div_ceil(self.side);
        let rows = (shape.height * pool_factor).div_ceil(self.side);
        let values_per_tile_row = (self.side + 2).pow(2) * self.inputs * columns;
        // A chunk of rows of tiles for each thread, but no larger than the cache.
        let share = if input.parallel { rows.div_ceil(rayon::current_num_threads()) } else { rows };
        let fitting = (MAX_INPUT_VALUES / values_per_tile_row).max(1);
        // Few tiles are one chunk, whose output channels are divided among threads.
        let by_channels = input.parallel && rows * columns < 2 * MIN_TILES;
        let chunk_rows = if by_channels { rows } else { fitting.min(share) };
        let height = chunk_rows * self.side / pool_factor;
        let inside = &mut out[shape.inner_rows()];
        let chunks = inside.par_chunks_mut(height * shape.row_len()).enumerate();
        chunks.with_min_len(input.min_parts()).for_each(|(chunk, out)| {
            let first_row = chunk * chunk_rows;
            let rows = chunk_rows.min(rows - first_row);
            let tiles = Tiles { first_row, rows, columns };
            let [mut x, mut sums] = SCRATCH.take();
            x.resize((self.side + 2).pow(2) * tiles.count() * self.inputs, 0.0);
            let (arch, side, weights) = (vector_arch(), self.side, self.weights.view());
            arch.dispatch(InputTransform { input, tiles: &tiles, side, transformed: &mut x });
            self.multiply(&x, tiles.count(), by_channels, &mut sums);
            let (tiles, first_output_row) = (&tiles, first_row * side / pool_factor);
            arch.dispatch(OutputTransform {
                sums: &sums,
                tiles,
                side,
                weights,
                epilogue: epilogue.at_offset((shape.border + first_output_row) * shape.row_len()),
                shape,
                pool_factor,
                first_output_row,
                out,
            });
            SCRATCH.set([x, sums]);
        });
    }

    /// The products of all places: `[place, tile, input]` to blocks of output channels, each `[place, tile, channel]`.
    fn multiply(&self, x: &[f32], tiles: usize, by_channels: bool, sums: &mut Vec<f32>) {
        let places = (self.side + 2).pow(2);
        let runs = (0..places).map(|place| {
            let terms = vec![Term { start: place * tiles * self.inputs, tap: place }];
            RowRun { first_row: place * tiles, rows: tiles, terms }
        });
        let runs: Vec<RowRun> = runs.collect();
        let multiply_block = |weights: PackedView<'_>, out: &mut [f32]| {
            let (row_stride, epilogue) = (self.inputs, Epilogue::default());
            Product { x, weights, row_stride, runs: &runs, epilogue, out }.run();
        };
        sums.resize(places * tiles * self.weights.view().outputs(), 0.0);
        let mut rest = sums.as_mut_slice();
        let blocks = self.weights.view().blocks().map(|(_, block)| {
            let (sums, after) =
                std::mem::take(&mut rest).split_at_mut(places * tiles * block.outputs());
            rest = after;
            (block, sums)
        });
        match by_channels {
            true => blocks
                .collect::<Vec<_>>()
                .into_par_iter()
                .for_each(|(b, sums)| multiply_block(b, sums)),
            false => blocks.for_each(|(block, sums)| multiply_block(block, sums)),
        }
    }
}

/// `B' d B`: tiles of the input to `[place, tile, input]`.
struct InputTransform<'a> {
    input: Input<'a>,
    tiles: &'a Tiles,
    side: usize,
    transformed: &'a mut [f32],
}

impl WithSimd for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.side {
            4 => self.transform::<S, F4x4, 6, 4>(simd),
            _ => self.transform::<S, F2x2, 4, 2>(simd),
        }
    }
}

impl InputTransform<'_> {
    #[inline(always)]
    fn transform<S: Simd, K: TileTransform<TILE, M>, const TILE: usize, const M: usize>(
        self,
        simd: S,
    ) {
        let Self { input: Input { values, shape, .. }, tiles, transformed, .. } = self;
        let (height, width) = (shape.height + 2, shape.width + 2);
        let place_stride = tiles.count() * shape.channels;
        // The kernel reads one pixel beyond the edge; the border may be wider.
        let values = &values[(shape.border - 1) * (shape.row_len() + shape.channels)..];
        for tile in 0..tiles.count() {
            let [down, right] = tiles.row_and_column(tile);
            let start = down * M * shape.row_len() + right * M * shape.channels;
            // Pixels of a tile beyond the end of the map are zeros.
            let (rows, columns) = (TILE.min(height - down * M), TILE.min(width - right * M));
            for channel in (0..shape.channels).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(shape.channels - channel);
                let mut half = [[simd.splat_f32s(0.0); TILE]; TILE];
                for y in 0..rows {
                    let mut row = [simd.splat_f32s(0.0); TILE];
                    for x in 0..columns {
                        let at = start + y * shape.row_len() + x * shape.channels + channel;
                        row[x] = load::<S, 1>(simd, &values[at..at + count])[0];
                    }
                    half[y] = K::input(simd, row);
                }
                for x in 0..TILE {
                    let mut column = [simd.splat_f32s(0.0); TILE];
                    for y in 0..TILE {
                        column[y] = half[y][x];
                    }
                    let column = K::input(simd, column);
                    for y in 0..TILE {
                        let at = (y * TILE + x) * place_stride + tile * shape.channels + channel;
                        store(simd, &mut transformed[at..at + count], &[column[y]]);
                    }
                }
            }
        }
    }
}

/// `A' .. A`, pool and epilogue: blocks of `[place, tile, channel]` to pixels.
struct OutputTransform<'a> {
    sums: &'a [f32],
    tiles: &'a Tiles,
    side: usize,
    weights: PackedView<'a>,
    /// Of the output from the first row of `out` on.
    epilogue: Epilogue<'a>,
    /// Shape of the whole output, which is `pool_factor` times smaller than the convolution's.
    shape: Shape,
    pool_factor: usize,
    /// Number of the first row of `out`.
    first_output_row: usize,
    out: &'a mut [f32],
}

impl WithSimd for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for (first, block) in self.weights.blocks() {
            let channels = first..first + block.outputs();
            match self.side {
                4 => self.block::<S, F4x4, 6, 4>(simd, channels),
                _ => self.block::<S, F2x2, 4, 2>(simd, channels),
            }
        }
    }
}

impl OutputTransform<'_> {
    #[inline(always)]
    fn block<S: Simd, K: TileTransform<TILE, M>, const TILE: usize, const M: usize>(
        &mut self,
        simd: S,
        channels: Range<usize>,
    ) {
        let place_stride = self.tiles.count() * channels.len();
        let (sums, rest) = self.sums.split_at(TILE * TILE * place_stride);
        self.sums = rest;
        for tile in 0..self.tiles.count() {
            for first in channels.clone().step_by(S::F32_LANES) {
                let vector_channels = first..channels.end.min(first + S::F32_LANES);
                let start = tile * channels.len() + first - channels.start;
                let mut half = [[simd.splat_f32s(0.0); M]; TILE];
                for y in 0..TILE {
                    let mut row = [simd.splat_f32s(0.0); TILE];
                    for x in 0..TILE {
                        let at = start + (y * TILE + x) * place_stride;
                        row[x] = load::<S, 1>(simd, &sums[at..at + vector_channels.len()])[0];
                    }
                    half[y] = K::output(simd, row);
                }
                let mut pixels = [[simd.splat_f32s(0.0); M]; M];
                for x in 0..M {
                    let mut column = [simd.splat_f32s(0.0); TILE];
                    for y in 0..TILE {
                        column[y] = half[y][x];
                    }
                    let column = K::output(simd, column);
                    for y in 0..M {
                        pixels[y][x] = column[y];
                    }
                }
                self.write(simd, &pixels, self.tiles.row_and_column(tile), vector_channels);
            }
        }
    }

    #[inline(always)]
    fn write<S: Simd, const M: usize>(
        &mut self,
        simd: S,
        pixels: &[[S::f32s; M]; M],
        [down, right]: [usize; 2],
        channels: Range<usize>,
    ) {
        let Self { shape, pool_factor, first_output_row, epilogue, .. } = *self;
        let side = M / pool_factor;
        for y in 0..side.min(shape.height - down * side) {
            for x in 0..side.min(shape.width - right * side) {
                let mut value = pixels[y * pool_factor][x * pool_factor];
                if pool_factor == 2 {
                    let (up, low) = (&pixels[2 * y], &pixels[2 * y + 1]);
                    let right = simd.max_f32s(up[2 * x + 1], low[2 * x + 1]);
                    value = simd.max_f32s(simd.max_f32s(value, low[2 * x]), right);
                }
                let pixel = (shape.border + right * side + x) * shape.channels;
                let at =
                    (down * side + y - first_output_row) * shape.row_len() + pixel + channels.start;
                let out = &mut self.out[at..at + channels.len()];
                store(simd, out, &epilogue.apply(simd, [value], channels.clone(), at));
            }
        }
    }
}

/// One-dimensional transforms of a tile: `B'` from `TILE` values to `TILE`, and `A'` from `TILE` values to `M`.
trait TileTransform<const TILE: usize, const M: usize> {
    fn input<S: Simd>(simd: S, x: [S::f32s; TILE]) -> [S::f32s; TILE];
    fn output<S: Simd>(simd: S, x: [S::f32s; TILE]) -> [S::f32s; M];
}

struct F2x2;

impl TileTransform<4, 2> for F2x2 {
    #[inline(always)]
    fn input<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        let (sum, difference) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
        [simd.add_f32s(a, sum), simd.sub_f32s(difference, d)]
    }
}

struct F4x4;

impl TileTransform<6, 4> for F4x4 {
    /// The rows of `B'` are `4a - 5c + e`, `-4b - 4c + d + e`, `4b - 4c - d + e`, `-2b - c + 2d + e`, `2b - c - 2d + e` and
    /// `4b - 5d + f`; the four in the middle are the sums and differences of their even and odd terms.
    #[inline(always)]
    fn input<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 6] {
        let (two, four) = (simd.splat_f32s(2.0), simd.splat_f32s(4.0));
        let (minus_four, minus_five) = (simd.splat_f32s(-4.0), simd.splat_f32s(-5.0));
        let even = simd.mul_add_e_f32s(minus_four, c, e);
        let odd = simd.mul_add_e_f32s(minus_four, b, d);
        let (near, far) = (simd.sub_f32s(e, c), simd.mul_f32s(two, simd.sub_f32s(d, b)));
        [
            simd.mul_add_e_f32s(four, a, simd.mul_add_e_f32s(minus_five, c, e)),
            simd.add_f32s(even, odd),
            simd.sub_f32s(even, odd),
            simd.add_f32s(near, far),
            simd.sub_f32s(near, far),
            simd.mul_add_e_f32s(four, b, simd.mul_add_e_f32s(minus_five, d, f)),
        ]
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 4] {
        let (sum, difference) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
        let (far_sum, far_difference) = (simd.add_f32s(d, e), simd.sub_f32s(d, e));
        let (two, four) = (simd.splat_f32s(2.0), simd.splat_f32s(4.0));
        let eight = simd.splat_f32s(8.0);
        [
            simd.add_f32s(a, simd.add_f32s(sum, far_sum)),
            simd.mul_add_e_f32s(two, far_difference, difference),
            simd.mul_add_e_f32s(four, far_sum, sum),
            simd.add_f32s(f, simd.mul_add_e_f32s(eight, far_difference, difference)),
        ]
    }
}

/// `G` of F(2x2, 3x3).
const G_2: [[f32; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// `G` of F(4x4, 3x3).
const G_4: [[f32; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];
