//! Int8 depthwise convolutions: the counterpart of [`crate::kernel::Depthwise`] for bytes, with vectors of neighbouring
//! channels.
//!
//! A quad is four neighbouring columns of an input row. Its bytes are transposed, so that each 32-bit lane has the four
//! columns of one channel and `vpdpbusd` adds four taps. A quad is loaded and transposed once for all outputs of a tile
//! whose windows overlap it; for each pair of output and quad, the kernel row is packed shifted by the output's column,
//! with zeros for columns outside of the window. For a window of three columns and a stride of 1, a tile has two outputs and
//! one quad, of the columns 0 to 3: a row `[a, b, c]` of the kernel is packed as `[a, b, c, 0]` for output 0 and as
//! `[0, a, b, c]` for output 1.
//!
//! Near the edges, and for maps that fit the L1 cache, tiles read a copy of the input padded with its zero point.
#![allow(
    unsafe_code,
    reason = "the instructions have no safe form; tests compare with the definition"
)]

use std::cell::RefCell;
use std::ops::Range;

use super::lanes::{Lanes, Lanes16, Lanes32, Lanes64};
use super::{CacheLine, Requantization, aligned, mask, packed_index, supported, unroll};
use crate::graph::Window;
use crate::kernel::axis::Axis;

/// Maximum size, in bytes, of a padded copy of all rows: it stays in the L1 cache.
const MAX_COPY_BYTES: usize = 20 << 10;

thread_local! {
    /// A padded copy of the input of all rows or of one tile.
    static PADDED_ROWS: RefCell<Vec<CacheLine<u8, 64>>> = const { RefCell::new(Vec::new()) };
}

/// Shapes and window of a depthwise convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) vertical: Axis,
    pub(crate) horizontal: Axis,
    channels: usize,
    /// The byte that represents zero in the input.
    zero_point: u8,
}

impl Geometry {
    /// For maps `[height, width, channels]`; `None` where the window does not fit.
    pub(crate) fn new(
        [height, width, channels]: [usize; 3],
        window: Window,
        zero_point: u8,
    ) -> Option<Self> {
        let (vertical, horizontal) = (Axis::new(window, height)?, Axis::new(window, width)?);
        Some(Self { vertical, horizontal, channels, zero_point })
    }
}

/// A depthwise convolution of `[height, width, channels]` with packed weights.
#[derive(Debug)]
pub(crate) struct Depthwise {
    geometry: Geometry,
    chunks: Vec<Chunk>,
    residual_scale: f32,
}

/// Neighbouring channels of one vector.
#[derive(Debug)]
struct Chunk {
    first: usize,
    /// Number of channels, at most `lanes`.
    count: usize,
    /// Bytes of a vector: 64, 32 or 16.
    lanes: usize,
    /// `[rows of the window, pairs of an output and a quad that overlap, 4 vectors, lanes / 4, 4]`.
    weights: Vec<CacheLine<i8, 64>>,
    scale: Vec<CacheLine<f32, 16>>,
    offset: Vec<CacheLine<f32, 16>>,
}

/// Numbers of outputs and quads of a tile, for windows of `kernel` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    kernel: usize,
    stride: usize,
    outputs: usize,
    quads: usize,
}

impl Tiling {
    const fn new(kernel: usize, stride: usize, outputs: usize, quads: usize) -> Self {
        Self { kernel, stride, outputs, quads }
    }

    const fn of(kernel: usize, stride: usize) -> Self {
        match (kernel, stride) {
            (3, 1) => Self::new(3, 1, 2, 1),
            (3, 2) => Self::new(3, 2, 3, 2),
            (5, 1) => Self::new(5, 1, 4, 2),
            (5, 2) => Self::new(5, 2, 2, 2),
            (..=4, _) => Self::new(4, 1, 1, 1),
            (..=8, _) => Self::new(8, 1, 1, 2),
            _ => Self::new(12, 1, 1, 3),
        }
    }

    const fn is(self, kernel: usize, outputs: usize, quads: usize) -> bool {
        self.kernel == kernel && self.outputs == outputs && self.quads == quads
    }

    /// True where an output's window and a quad have columns in common.
    const fn overlap(self, output: usize, quad: usize) -> bool {
        let start = output * self.stride;
        start < 4 * quad + 4 && 4 * quad < start + self.kernel
    }

    fn overlapping_pairs(self) -> impl Iterator<Item = [usize; 2]> {
        let all = (0..self.outputs)
            .flat_map(move |output| (0..self.quads).map(move |quad| [output, quad]));
        all.filter(move |[output, quad]| self.overlap(*output, *quad))
    }
}

impl Depthwise {
    /// `weights` are `[channels, kernel, kernel]`.
    pub(crate) fn new(geometry: Geometry, weights: &[i8], requantize: &Requantization) -> Self {
        let Geometry { vertical: Axis { kernel, stride, .. }, channels, .. } = geometry;
        assert!(kernel <= 12 && weights.len() == channels * kernel * kernel);
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < channels {
            let lanes = match channels - first {
                64.. => 64,
                32.. => 32,
                _ => 16,
            };
            let count = lanes.min(channels - first);
            let weights = &weights[first * kernel * kernel..][..count * kernel * kernel];
            let weights = aligned(&pack([kernel, lanes], Tiling::of(kernel, stride), weights));
            let [scale, offset] = [&requantize.scale, &requantize.offset].map(|values| {
                let mut placed = vec![0.0; lanes];
                for (channel, value) in values[first..first + count].iter().enumerate() {
                    placed[packed_index(channel, 4, lanes / 16)] = *value;
                }
                aligned(&placed)
            });
            chunks.push(Chunk { first, count, lanes, weights, scale, offset });
            first += count;
        }
        Self { geometry, chunks, residual_scale: requantize.residual_scale }
    }

    /// Computes some rows of the output; `out` and the residual begin with the first of them.
    pub(crate) fn run_rows(
        &self,
        x: &[u8],
        rows: Range<usize>,
        residual: Option<&[u8]>,
        out: &mut [u8],
    ) {
        let Geometry { vertical, horizontal, channels, .. } = self.geometry;
        let Axis { kernel, stride, .. } = vertical;
        assert!(supported() && rows.end <= vertical.out_len);
        assert!(x.len() >= vertical.len * horizontal.len * channels);
        assert!(out.len() == rows.len() * horizontal.out_len * channels);
        assert!(residual.is_none_or(|residual| residual.len() >= out.len()));
        let mut buffer = PADDED_ROWS.take();
        for chunk in &self.chunks {
            let chunk_rows = ChunkRows {
                conv: self,
                chunk,
                x,
                rows: rows.clone(),
                residual,
                out,
                buffer: &mut buffer,
            };
            // SAFETY: the CPU has the instructions, and the maps have the lengths of the geometry, as asserted.
            unsafe {
                match chunk.lanes {
                    64 => chunk_rows.run::<Lanes64>(kernel, stride),
                    32 => chunk_rows.run::<Lanes32>(kernel, stride),
                    _ => chunk_rows.run::<Lanes16>(kernel, stride),
                }
            }
        }
        PADDED_ROWS.set(buffer);
    }
}

/// The packed weights of a chunk, from `[channels, kernel, kernel]`.
fn pack([kernel, lanes]: [usize; 2], tiling: Tiling, weights: &[i8]) -> Vec<i8> {
    let mut packed = Vec::new();
    for row in 0..kernel {
        for [output, quad] in tiling.overlapping_pairs() {
            let mut vectors = vec![0; lanes * 4];
            for (channel, weights) in weights.chunks_exact(kernel * kernel).enumerate() {
                let at = packed_index(channel, 4, lanes / 16) * 4;
                for tap in 0..4 {
                    let column = (4 * quad + tap).checked_sub(output * tiling.stride);
                    if let Some(column) = column.filter(|column| *column < kernel) {
                        vectors[at + tap] = weights[row * kernel + column];
                    }
                }
            }
            packed.extend(vectors);
        }
    }
    packed
}

/// Some rows of the output of one chunk.
struct ChunkRows<'a> {
    conv: &'a Depthwise,
    chunk: &'a Chunk,
    x: &'a [u8],
    rows: Range<usize>,
    residual: Option<&'a [u8]>,
    out: &'a mut [u8],
    buffer: &'a mut Vec<CacheLine<u8, 64>>,
}

/// A rectangle of input pixels, padding included, that a tile or some rows read.
#[derive(Clone, Copy)]
struct Region {
    /// First row and column; negative ones are padding.
    start: [isize; 2],
    height: usize,
    width: usize,
}

/// Input of a tile: its first byte, and the strides of pixels and rows in bytes.
#[derive(Clone, Copy)]
struct TileInput {
    x: *const u8,
    pixel: usize,
    row: usize,
}

impl ChunkRows<'_> {
    /// # Safety
    /// The CPU has the instructions, and all slices have the lengths of the geometry.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn run<L: Lanes>(self, kernel: usize, stride: usize) {
        // SAFETY: the caller ensures it.
        unsafe {
            match (kernel, stride) {
                (3, 1) => self.tiles::<L, 3, 1, 2, 1>(),
                (3, 2) => self.tiles::<L, 3, 2, 3, 2>(),
                (5, 1) => self.tiles::<L, 5, 1, 4, 2>(),
                (5, 2) => self.tiles::<L, 5, 2, 2, 2>(),
                (..=4, _) => self.tiles::<L, 4, 1, 1, 1>(),
                (..=8, _) => self.tiles::<L, 8, 1, 1, 2>(),
                _ => self.tiles::<L, 12, 1, 1, 3>(),
            }
        }
    }

    /// Computes tiles of `P` outputs from `Q` quads, for windows of `K` columns and stride `STRIDE`.
    ///
    /// # Safety
    /// As [`ChunkRows::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tiles<
        L: Lanes,
        const K: usize,
        const STRIDE: usize,
        const P: usize,
        const Q: usize,
    >(
        mut self,
    ) {
        const { assert!(Tiling::of(K, STRIDE).is(K, P, Q), "the weights are packed for other tiles") };
        let Geometry { vertical, horizontal, channels, .. } = self.conv.geometry;
        let Axis { len: height, kernel, stride, padding: above, .. } = vertical;
        let Axis { len: width, out_len: out_width, padding: before, .. } = horizontal;
        let tiles = out_width.div_ceil(P);
        let start = |y: usize, x: usize| {
            [(y * stride) as isize - above as isize, (x * stride) as isize - before as isize]
        };
        let band = Region {
            start: start(self.rows.start, 0),
            height: (self.rows.len().max(1) - 1) * stride + kernel,
            width: (tiles - 1) * P * stride + 4 * Q,
        };
        let copied = band.height * band.width * L::CHANNELS <= MAX_COPY_BYTES;
        // SAFETY: all that a tile reads lies within the map or the copy.
        unsafe {
            if copied {
                self.copy_padded::<L>(band);
            }
            for (out_row, y) in self.rows.clone().enumerate() {
                for tile in 0..tiles {
                    let [top, left] = start(y, tile * P);
                    let inside = top >= 0
                        && left >= 0
                        && top as usize + kernel <= height
                        && left as usize + 4 * Q <= width;
                    let input = if copied {
                        let row = band.width * L::CHANNELS;
                        let at = out_row * stride * row + tile * P * stride * L::CHANNELS;
                        TileInput {
                            x: self.buffer.as_ptr().cast::<u8>().add(at),
                            pixel: L::CHANNELS,
                            row,
                        }
                    } else if inside {
                        let at =
                            (top as usize * width + left as usize) * channels + self.chunk.first;
                        TileInput {
                            x: self.x.as_ptr().add(at),
                            pixel: channels,
                            row: width * channels,
                        }
                    } else {
                        self.copy_padded::<L>(Region {
                            start: [top, left],
                            height: kernel,
                            width: 4 * Q,
                        });
                        let (x, pixel) = (self.buffer.as_ptr().cast(), L::CHANNELS);
                        TileInput { x, pixel, row: 4 * Q * pixel }
                    };
                    let sums = self.tile::<L, K, STRIDE, P, Q>(input);
                    let first = out_row * out_width + tile * P;
                    self.write::<L, P>(sums, first, P.min(out_width - tile * P));
                }
            }
        }
    }

    /// The sums of `P` neighbouring outputs.
    ///
    /// # Safety
    /// As [`ChunkRows::run`]; `4 * Q` pixels of each row of the window lie within the input's map or copy.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile<
        L: Lanes,
        const K: usize,
        const STRIDE: usize,
        const P: usize,
        const Q: usize,
    >(
        &self,
        input: TileInput,
    ) -> [[L::Bytes; 4]; P] {
        let tiling = const { Tiling::new(K, STRIDE, P, Q) };
        let mask = mask(self.chunk.count);
        // SAFETY: the caller ensures it; weights are read in the packed order.
        unsafe {
            let mut sums = [[L::zero(); 4]; P];
            let mut weights = self.chunk.weights.as_ptr().cast::<i8>();
            let mut x = input.x;
            for _ in 0..self.conv.geometry.vertical.kernel {
                let mut quads = [[L::zero(); 4]; Q];
                for quad in 0..Q {
                    for column in 0..4 {
                        let at = (4 * quad + column) * input.pixel;
                        quads[quad][column] = L::load(x.add(at), mask);
                    }
                    quads[quad] = L::transpose(quads[quad]);
                }
                for output in 0..P {
                    for quad in 0..Q {
                        if tiling.overlap(output, quad) {
                            for vector in 0..4 {
                                let weight = L::weights(weights);
                                let sum = sums[output][vector];
                                sums[output][vector] = L::dot(sum, quads[quad][vector], weight);
                                weights = weights.add(L::CHANNELS);
                            }
                        }
                    }
                }
                x = x.wrapping_add(input.row);
            }
            sums
        }
    }

    /// Requantises and writes the first `count` outputs of a tile, from pixel `first` on.
    ///
    /// # Safety
    /// As [`ChunkRows::run`]; the pixels are pixels of the output.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn write<L: Lanes, const P: usize>(
        &mut self,
        sums: [[L::Bytes; 4]; P],
        first: usize,
        count: usize,
    ) {
        let mask = mask(self.chunk.count);
        let (scale, offset) = (self.chunk.scale.as_ptr().cast(), self.chunk.offset.as_ptr().cast());
        // SAFETY: the caller ensures it; a chunk's channels lie within each pixel.
        unsafe {
            unroll!(P, |output| {
                if output < count {
                    let at = (first + output) * self.conv.geometry.channels + self.chunk.first;
                    let residual = self.residual.map(|residual| {
                        (L::load(residual.as_ptr().add(at), mask), self.conv.residual_scale)
                    });
                    let bytes = L::requantize(sums[output], scale, offset, residual);
                    L::store(self.out.as_mut_ptr().add(at), bytes, mask);
                }
            });
        }
    }

    /// Copies a region of the chunk's channels to the buffer, padded with the zero point.
    ///
    /// # Safety
    /// As [`ChunkRows::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn copy_padded<L: Lanes>(&mut self, region: Region) {
        let Geometry { vertical, horizontal, channels, zero_point } = self.conv.geometry;
        let (height, width) = (vertical.len, horizontal.len);
        let lines = (region.height * region.width * L::CHANNELS).div_ceil(64);
        if self.buffer.len() < lines {
            self.buffer.resize(lines, CacheLine([0; 64]));
        }
        let mask = mask(self.chunk.count);
        let [top, left] = region.start;
        // The columns of the region that lie within the map.
        let first = (-left).clamp(0, region.width as isize) as usize;
        let end = (width as isize - left).clamp(first as isize, region.width as isize) as usize;
        for row in 0..region.height {
            let out = self
                .buffer
                .as_mut_ptr()
                .cast::<u8>()
                .wrapping_add(row * region.width * L::CHANNELS);
            // SAFETY: the buffer has room for all rows of the region.
            let out = unsafe { std::slice::from_raw_parts_mut(out, region.width * L::CHANNELS) };
            let y = top + row as isize;
            if y < 0 || y >= height as isize {
                out.fill(zero_point);
                continue;
            }
            out[..first * L::CHANNELS].fill(zero_point);
            out[end * L::CHANNELS..].fill(zero_point);
            let inside = &mut out[first * L::CHANNELS..end * L::CHANNELS];
            let x = (y as usize * width) as isize + left + first as isize;
            for (place, pixel) in inside.chunks_exact_mut(L::CHANNELS).enumerate() {
                let at = (x as usize + place) * channels + self.chunk.first;
                // SAFETY: the pixel lies within the map, and the copy has room for a whole vector.
                unsafe {
                    L::store(pixel.as_mut_ptr(), L::load(self.x.as_ptr().add(at), mask), u64::MAX)
                }
            }
        }
    }
}
