//! 3x3 convolutions of stride 1 with a quarter to a half of the multiplications (Lavin and Gray,
//! "Fast algorithms for convolutional neural networks", 2016): tiles of the input and the weights
//! are transformed, multiplied place by place, and the sums transformed back.

#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over tiles must unroll, or they leave their registers"
)]

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::shape::{Input, Shape};
use crate::kernel::{Epilogue, Packed, Product, Run, Term, View, arch, load, store};

/// Most values of transformed input at a time, so that they stay in the second cache.
const CHUNK: usize = 1 << 16;
/// With fewer tiles, reading the transformed weights, which are more, costs what is saved.
const FEWEST_TILES: usize = 16;

thread_local! {
    /// Transformed input and sums.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// A 3x3 convolution of stride 1, its weights transformed.
#[derive(Debug)]
pub(super) struct Winograd {
    /// Pixels of a tile's side in the output, 2 or 4.
    side: usize,
    inputs: usize,
    /// One tap for each place of a tile of the input.
    weights: Packed,
}

/// Tiles of some rows of the output.
struct Tiles {
    /// Number of the first row of tiles.
    first: usize,
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// Row and column of one.
    #[inline(always)]
    fn place(&self, tile: usize) -> [usize; 2] {
        [self.first + tile / self.columns, tile % self.columns]
    }
}

impl Winograd {
    /// The tile's side that is best for a map, if any is worth it.
    pub(super) fn side_for(height: usize, width: usize) -> Option<usize> {
        let tiles = |side: usize| height.div_ceil(side) * width.div_ceil(side);
        let products = |side: usize| tiles(side) * (side + 2) * (side + 2);
        // Small tiles round less, and their weights are fewer.
        let side = if products(4) * 4 < products(2) * 3 { 4 } else { 2 };
        (tiles(side) >= FEWEST_TILES).then_some(side)
    }

    /// `weights` are `[outputs, inputs, 3, 3]`.
    pub(super) fn new(side: usize, inputs: usize, weights: &[f32]) -> Self {
        let rows: &[[f32; 3]] = if side == 4 { &WEIGHTS_4 } else { &WEIGHTS_2 };
        let (tile, outputs) = (rows.len(), weights.len() / (inputs * 9));
        let packed = Packed::new([tile * tile, inputs, outputs], |place, input, output| {
            let weights = &weights[(output * inputs + input) * 9..][..9];
            let (down, right) = (rows[place / tile], rows[place % tile]);
            (0..9).map(|tap| down[tap / 3] * weights[tap] * right[tap % 3]).sum()
        });
        Self { side, inputs, weights: packed }
    }

    /// Fills the inside of `out`, whose shape is given, `pool` times smaller than the convolution. The input has a
    /// border of at least one pixel; a residual lies as `out` does, its border included.
    pub(super) fn run(
        &self,
        input: Input<'_>,
        epilogue: Epilogue<'_>,
        (shape, pool): (Shape, usize),
        out: &mut [f32],
    ) {
        let columns = (shape.width * pool).div_ceil(self.side);
        let rows = (shape.height * pool).div_ceil(self.side);
        let row_of_tiles = (self.side + 2).pow(2) * self.inputs * columns;
        // A chunk for each thread, but no larger than the cache.
        let share = if input.shared { rows.div_ceil(rayon::current_num_threads()) } else { rows };
        let fitting = (CHUNK / row_of_tiles).max(1);
        let few = input.shared && rows * columns < 2 * FEWEST_TILES;
        let together = if few { rows } else { fitting.min(share) };
        let height = together * self.side / pool;
        let inside = &mut out[shape.rows()];
        let chunks = inside.par_chunks_mut(height * shape.row()).enumerate();
        chunks.with_min_len(input.grain()).for_each(|(chunk, out)| {
            let first = chunk * together;
            let rows = together.min(rows - first);
            let tiles = Tiles { first, rows, columns };
            let [mut x, mut sums] = SCRATCH.take();
            x.resize((self.side + 2).pow(2) * tiles.count() * self.inputs, 0.0);
            let (arch, side, weights) = (arch(), self.side, self.weights.view());
            arch.dispatch(Transform { input, tiles: &tiles, side, to: &mut x });
            self.multiply(&x, tiles.count(), few, &mut sums);
            let (tiles, first) = (&tiles, first * side / pool);
            arch.dispatch(Restore {
                sums: &sums,
                tiles,
                side,
                weights,
                epilogue: epilogue.from((shape.border + first) * shape.row()),
                shape,
                pool,
                first,
                out,
            });
            SCRATCH.set([x, sums]);
        });
    }

    /// `[place, tile, input]` to blocks of output channels, each `[place, tile, channel]`.
    fn multiply(&self, x: &[f32], tiles: usize, share: bool, sums: &mut Vec<f32>) {
        let places = (self.side + 2).pow(2);
        let runs = (0..places).map(|place| {
            let terms = vec![Term { start: place * tiles * self.inputs, tap: place }];
            Run { first: place * tiles, rows: tiles, terms }
        });
        let runs: Vec<Run> = runs.collect();
        let one = |weights: View<'_>, out: &mut [f32]| {
            let (step, epilogue) = (self.inputs, Epilogue::default());
            Product { x, weights, step, runs: &runs, epilogue, out }.run();
        };
        sums.resize(places * tiles * self.weights.view().outputs(), 0.0);
        let mut rest = sums.as_mut_slice();
        let blocks = self.weights.view().blocks().map(|(_, block)| {
            let (sums, after) =
                std::mem::take(&mut rest).split_at_mut(places * tiles * block.outputs());
            rest = after;
            (block, sums)
        });
        // Where a chunk is the whole map, threads share its channels.
        match share {
            true => blocks.collect::<Vec<_>>().into_par_iter().for_each(|(b, sums)| one(b, sums)),
            false => blocks.for_each(|(block, sums)| one(block, sums)),
        }
    }
}

/// Tiles of the input to `[place, tile, input]`.
struct Transform<'a> {
    input: Input<'a>,
    tiles: &'a Tiles,
    side: usize,
    to: &'a mut [f32],
}

impl WithSimd for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.side {
            4 => self.each::<S, Four, 6, 4>(simd),
            _ => self.each::<S, Two, 4, 2>(simd),
        }
    }
}

impl Transform<'_> {
    #[inline(always)]
    fn each<S: Simd, K: Kind<T, M>, const T: usize, const M: usize>(self, simd: S) {
        let Self { input: Input { values, shape, .. }, tiles, to, .. } = self;
        let (height, width) = (shape.height + 2, shape.width + 2);
        let plane = tiles.count() * shape.channels;
        // The kernel reaches over the edge by one pixel, the border may be wider.
        let values = &values[(shape.border - 1) * (shape.row() + shape.channels)..];
        for tile in 0..tiles.count() {
            let [down, right] = tiles.place(tile);
            let start = down * M * shape.row() + right * M * shape.channels;
            // Where the map ends, so do the last tiles: the rest counts as zeros.
            let (rows, columns) = (T.min(height - down * M), T.min(width - right * M));
            for channel in (0..shape.channels).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(shape.channels - channel);
                let mut half = [[simd.splat_f32s(0.0); T]; T];
                for y in 0..rows {
                    let mut row = [simd.splat_f32s(0.0); T];
                    for x in 0..columns {
                        let at = start + y * shape.row() + x * shape.channels + channel;
                        row[x] = load::<S, 1>(simd, &values[at..at + count])[0];
                    }
                    half[y] = K::input(simd, row);
                }
                for x in 0..T {
                    let mut column = [simd.splat_f32s(0.0); T];
                    for y in 0..T {
                        column[y] = half[y][x];
                    }
                    let column = K::input(simd, column);
                    for y in 0..T {
                        let at = (y * T + x) * plane + tile * shape.channels + channel;
                        store(simd, &mut to[at..at + count], &[column[y]]);
                    }
                }
            }
        }
    }
}

/// Blocks of `[place, tile, channel]` to pixels.
struct Restore<'a> {
    sums: &'a [f32],
    tiles: &'a Tiles,
    side: usize,
    weights: View<'a>,
    /// From the first row of `out` on.
    epilogue: Epilogue<'a>,
    /// Of the whole output, which is `pool` times smaller than the convolution's.
    shape: Shape,
    pool: usize,
    /// Number of the first row of `out`, and that and later ones.
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for Restore<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for (first, block) in self.weights.blocks() {
            let channels = first..first + block.outputs();
            match self.side {
                4 => self.block::<S, Four, 6, 4>(simd, channels),
                _ => self.block::<S, Two, 4, 2>(simd, channels),
            }
        }
    }
}

impl Restore<'_> {
    #[inline(always)]
    fn block<S: Simd, K: Kind<T, M>, const T: usize, const M: usize>(
        &mut self,
        simd: S,
        channels: Range<usize>,
    ) {
        let plane = self.tiles.count() * channels.len();
        let (sums, rest) = self.sums.split_at(T * T * plane);
        self.sums = rest;
        for tile in 0..self.tiles.count() {
            for first in channels.clone().step_by(S::F32_LANES) {
                let some = first..channels.end.min(first + S::F32_LANES);
                let start = tile * channels.len() + first - channels.start;
                let mut half = [[simd.splat_f32s(0.0); M]; T];
                for y in 0..T {
                    let mut row = [simd.splat_f32s(0.0); T];
                    for x in 0..T {
                        let at = start + (y * T + x) * plane;
                        row[x] = load::<S, 1>(simd, &sums[at..at + some.len()])[0];
                    }
                    half[y] = K::output(simd, row);
                }
                let mut pixels = [[simd.splat_f32s(0.0); M]; M];
                for x in 0..M {
                    let mut column = [simd.splat_f32s(0.0); T];
                    for y in 0..T {
                        column[y] = half[y][x];
                    }
                    let column = K::output(simd, column);
                    for y in 0..M {
                        pixels[y][x] = column[y];
                    }
                }
                self.write(simd, &pixels, self.tiles.place(tile), some);
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
        let Self { shape, pool, first, epilogue, .. } = *self;
        let side = M / pool;
        for y in 0..side.min(shape.height - down * side) {
            for x in 0..side.min(shape.width - right * side) {
                let mut value = pixels[y * pool][x * pool];
                if pool == 2 {
                    let (up, low) = (&pixels[2 * y], &pixels[2 * y + 1]);
                    let right = simd.max_f32s(up[2 * x + 1], low[2 * x + 1]);
                    value = simd.max_f32s(simd.max_f32s(value, low[2 * x]), right);
                }
                let pixel = (shape.border + right * side + x) * shape.channels;
                let at = (down * side + y - first) * shape.row() + pixel + channels.start;
                let out = &mut self.out[at..at + channels.len()];
                store(simd, out, &epilogue.apply(simd, [value], channels.clone(), at));
            }
        }
    }
}

/// Tiles of one size: transforms along one side.
trait Kind<const T: usize, const M: usize> {
    fn input<S: Simd>(simd: S, x: [S::f32s; T]) -> [S::f32s; T];
    fn output<S: Simd>(simd: S, x: [S::f32s; T]) -> [S::f32s; M];
}

struct Two;

impl Kind<4, 2> for Two {
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

struct Four;

impl Kind<6, 4> for Four {
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

/// What weights become along one side, for tiles of two.
const WEIGHTS_2: [[f32; 3]; 4] =
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// For tiles of four.
const WEIGHTS_4: [[f32; 3]; 6] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];
