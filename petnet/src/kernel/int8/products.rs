//! Int8 tile products for dense convolutions: the counterpart of [`crate::kernel::Product`] for bytes.
//!
//! A tile is up to 8 pixels by up to 3 vectors of 16 output channels. Each step broadcasts four input bytes of a pixel,
//! loads 64 weights of 16 channels for each vector, and adds the products with `vpdpbusd`. The inputs of a pixel are the
//! rows of its window, each of which is contiguous (columns times channels), padded to a multiple of four by weights that
//! are zero; there is no im2col.
#![allow(
    unsafe_code,
    reason = "the instructions have no safe form; tests compare with the definition"
)]

use std::arch::x86_64::*;
use std::marker::PhantomData;

use rayon::prelude::*;

use super::{CacheLine, Requantization, aligned, mask, packed_index, supported, unroll};
use crate::kernel::tiles::blocks;

/// Number of 32-bit sums in a vector of 512 bits.
const LANES: usize = 16;
/// Maximum number of vectors of output channels in a tile.
const MAX_VECTORS: usize = 3;
/// Maximum number of pixels in a tile.
const MAX_ROWS: usize = 8;
/// Offsets of the windows of a tile's pixels in the input.
type Windows = [usize; MAX_ROWS];

/// Packed weights: blocks of output channels, each `[rows of the window, depth / 4, channels of the block, 4]`, with
/// channels in the order of [`packed_index`]. The first 64 bytes are thus the weights of the first four values of a row of the
/// window for 16 channels, four bytes each: one load, of which each lane multiplies the same four bytes of the input.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    weights: Vec<CacheLine<i8, 64>>,
    /// Scale and offset, in the order of each block's sums.
    scale: Vec<CacheLine<f32, LANES>>,
    offset: Vec<CacheLine<f32, LANES>>,
    residual_scale: f32,
    /// Rows of the window.
    rows: usize,
    /// Bytes of a row of the window: its columns times channels, rounded up to a multiple of four.
    depth: usize,
    outputs: usize,
}

impl PackedWeights {
    /// Packs the values of `weight(row, value, output)` for windows of `rows` rows of `row_values` contiguous values
    /// each.
    pub(crate) fn new(
        [rows, row_values]: [usize; 2],
        requantize: &Requantization,
        weight: impl Fn(usize, usize, usize) -> i8,
    ) -> Self {
        let outputs = requantize.scale.len();
        let (depth, vectors) = (row_values.next_multiple_of(4), outputs.div_ceil(LANES));
        let mut weights = vec![0; rows * depth * vectors * LANES];
        let [mut scale, mut offset] = [(); 2].map(|()| vec![0.0; vectors * LANES]);
        for (first, block_vectors) in blocks(vectors, MAX_VECTORS) {
            let (first, count) = (first * LANES, block_vectors * LANES);
            let block = &mut weights[first * rows * depth..][..count * rows * depth];
            for channel in 0..count.min(outputs - first) {
                let at = packed_index(channel, block_vectors, 4);
                scale[first + at] = requantize.scale[first + channel];
                offset[first + at] = requantize.offset[first + channel];
                for (row, value) in
                    (0..rows).flat_map(|row| (0..row_values).map(move |value| (row, value)))
                {
                    let group = (row * depth + value) / 4;
                    block[(group * count + at) * 4 + value % 4] =
                        weight(row, value, first + channel);
                }
            }
        }
        let (weights, scale, offset) = (aligned(&weights), aligned(&scale), aligned(&offset));
        let residual_scale = requantize.residual_scale;
        Self { weights, scale, offset, residual_scale, rows, depth, outputs }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }
}

/// Offsets of the output pixels' windows in the input, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strides {
    /// Pixels of a row of the output.
    pub(crate) width: usize,
    /// From a pixel's window to that of the next pixel of the row.
    pub(crate) pixel: usize,
    /// From a row's windows to those of the next row of the output.
    pub(crate) row: usize,
    /// From a row of a window to its next row.
    pub(crate) window: usize,
}

/// The product of some output pixels; `x` begins with the window of the first.
pub(crate) struct Product<'a> {
    pub(crate) x: &'a [u8],
    pub(crate) weights: &'a PackedWeights,
    pub(crate) strides: Strides,
    /// Bytes of the residual, in the layout of `out`.
    pub(crate) residual: Option<&'a [u8]>,
    /// `[pixels, outputs]`.
    pub(crate) out: &'a mut [u8],
}

impl Product<'_> {
    /// Computes the whole output on this thread.
    pub(crate) fn run(mut self) {
        self.blocks().for_each(ChannelBlock::run);
    }

    /// Computes the whole output, with blocks of output channels in parallel.
    pub(crate) fn run_by_channels(mut self) {
        let blocks: Vec<ChannelBlock<'_>> = self.blocks().collect();
        blocks.into_par_iter().for_each(ChannelBlock::run);
    }

    fn blocks(&mut self) -> impl Iterator<Item = ChannelBlock<'_>> {
        let Self { x, weights: packed, strides, residual, out } = self;
        let PackedWeights { rows, depth, outputs, .. } = **packed;
        let pixels = out.len() / outputs;
        assert!(supported() && out.len() == pixels * outputs);
        if let Some(last) = pixels.checked_sub(1) {
            // No window begins behind the last column of any row in the last row. `last % width` would bound the last pixel
            // alone: where it is in the middle of a row, a pixel at the end of the row before it may begin later, as rows
            // may overlap (`row` may be less than `width * pixel`).
            let column = last.min(strides.width - 1) * strides.pixel;
            let start = last / strides.width * strides.row + column;
            assert!(start + (rows - 1) * strides.window + depth <= x.len());
        }
        assert!(residual.is_none_or(|residual| residual.len() >= out.len()));
        let out = out.as_mut_ptr();
        blocks(outputs.div_ceil(LANES), MAX_VECTORS).map(move |(first, vectors)| {
            let (channel, count) = (first * LANES, vectors * LANES);
            ChannelBlock {
                x: x.as_ptr(),
                weights: packed.weights[channel * rows * depth / 64..].as_ptr().cast(),
                scale: packed.scale[first..].as_ptr().cast(),
                offset: packed.offset[first..].as_ptr().cast(),
                // SAFETY: the first channel of a block lies within each pixel.
                out: unsafe { out.add(channel) },
                residual: residual.map(|residual| residual[channel..].as_ptr()),
                residual_scale: packed.residual_scale,
                channels: count.min(outputs - channel),
                rows,
                depth,
                outputs,
                strides: *strides,
                pixels,
                vectors,
                output: PhantomData,
            }
        })
    }
}

/// One block of output channels of a [`Product`] whose lengths are validated.
struct ChannelBlock<'a> {
    x: *const u8,
    weights: *const i8,
    /// Factor of each sum, which is converted to f32, and the value that is added to it.
    scale: *const f32,
    offset: *const f32,
    out: *mut u8,
    residual: Option<*const u8>,
    residual_scale: f32,
    channels: usize,
    /// Rows of the window.
    rows: usize,
    /// Bytes of a row of the window.
    depth: usize,
    /// Bytes of a pixel of the output.
    outputs: usize,
    strides: Strides,
    pixels: usize,
    /// Vectors of the block's channels.
    vectors: usize,
    output: PhantomData<&'a mut [u8]>,
}

// SAFETY: it reads shared borrows; of the exclusively borrowed output, each block writes its own channels only.
unsafe impl Send for ChannelBlock<'_> {}

/// Runs a tile with its numbers of pixels and vectors as constants, so that its sums are registers.
macro_rules! tile {
    ($block:ident, $pixels:expr, $arguments:tt, [$($rows:literal)+]) => {
        match ($pixels, $block.vectors) {
            $(($rows, 1) => $block.tile::<$rows, 1>$arguments,
              ($rows, 2) => $block.tile::<$rows, 2>$arguments,
              ($rows, _) => $block.tile::<$rows, 3>$arguments,)+
            _ => unreachable!("a tile has at most {MAX_ROWS} pixels"),
        }
    };
}

impl ChannelBlock<'_> {
    fn run(self) {
        let Strides { width, pixel, row, .. } = self.strides;
        let (mut column, mut start, mut first) = (0, 0, 0);
        while first < self.pixels {
            let left = self.pixels - first;
            // Tiles as even as possible: one of few pixels would load its weights for little arithmetic.
            let count = left.div_ceil(left.div_ceil(MAX_ROWS));
            let mut windows = [0; MAX_ROWS];
            for window in &mut windows[..count] {
                *window = start;
                (column, start) = (column + 1, start + pixel);
                if column == width {
                    (column, start) = (0, start + row - width * pixel);
                }
            }
            // SAFETY: `blocks` has asserted that the CPU has the instructions and that all windows lie within the input.
            unsafe { tile!(self, count, (&windows, first), [1 2 3 4 5 6 7 8]) }
            first += count;
        }
    }

    /// `R` pixels by `V` vectors of channels.
    ///
    /// # Safety
    /// The CPU has the instructions; the pixels are pixels of the output, and their windows lie within the input.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile<const R: usize, const V: usize>(&self, windows: &Windows, first: usize) {
        // SAFETY: the caller ensures it; scale and offset have a value for each of the block's sums.
        unsafe {
            let sums = self.sums::<R, V>(windows);
            let [mut scale, mut offset] = [[_mm512_setzero_ps(); V]; 2];
            for vector in 0..V {
                scale[vector] = _mm512_loadu_ps(self.scale.add(vector * LANES));
                offset[vector] = _mm512_loadu_ps(self.offset.add(vector * LANES));
            }
            unroll!(R, |row| {
                let at = (first + row) * self.outputs;
                let mut values = [_mm512_setzero_ps(); V];
                for vector in 0..V {
                    let sum = _mm512_cvtepi32_ps(sums[row][vector]);
                    values[vector] = _mm512_fmadd_ps(sum, scale[vector], offset[vector]);
                }
                if let Some(residual) = self.residual {
                    values = self.add(values, residual.add(at));
                }
                self.store(values, self.out.add(at));
            });
        }
    }

    /// The sums of `R` pixels.
    ///
    /// # Safety
    /// As [`ChannelBlock::tile`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn sums<const R: usize, const V: usize>(&self, windows: &Windows) -> [[__m512i; V]; R] {
        let Self { rows, depth, .. } = *self;
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        // SAFETY: windows lie within the input, as the caller ensures; weights are read in the packed order.
        unsafe {
            let mut x = [self.x; R];
            for row in 0..R {
                x[row] = self.x.add(windows[row]);
            }
            // One loop over the groups of four bytes of all rows of the window, which runs at least once: in nested
            // loops the sums would be spilled.
            let (mut weights, mut at, mut left) = (self.weights, 0, depth / 4);
            let end = weights.add(rows * depth * V * LANES);
            loop {
                let mut vectors = [_mm512_setzero_si512(); V];
                for vector in 0..V {
                    vectors[vector] = _mm512_loadu_si512(weights.add(vector * 64).cast());
                }
                for row in 0..R {
                    let values =
                        _mm512_set1_epi32(x[row].wrapping_add(at).cast::<i32>().read_unaligned());
                    for vector in 0..V {
                        let sum = sums[row][vector];
                        sums[row][vector] = _mm512_dpbusd_epi32(sum, values, vectors[vector]);
                    }
                }
                weights = weights.add(V * 64);
                if weights == end {
                    break;
                }
                left -= 1;
                at = if left == 0 { at + 4 + self.strides.window - depth } else { at + 4 };
                left = if left == 0 { depth / 4 } else { left };
            }
        }
        sums
    }

    /// Adds the residual of a pixel.
    ///
    /// # Safety
    /// The CPU has the instructions; the residual has the block's channels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn add<const V: usize>(
        &self,
        mut values: [__m512; V],
        residual: *const u8,
    ) -> [__m512; V] {
        // SAFETY: only the block's channels are read.
        let bytes = unsafe { _mm512_maskz_loadu_epi8(mask(self.channels), residual.cast()) };
        let bytes = _mm512_permutexvar_epi32(to_packed_order(V), bytes);
        for vector in 0..V {
            // Widens four bytes of each 128-bit lane to 32 bits.
            let four = _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1);
            let pick = _mm_or_si128(four, _mm_set1_epi32(4 * vector as i32));
            let added = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(pick));
            let scale = _mm512_set1_ps(self.residual_scale);
            values[vector] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(added), scale, values[vector]);
        }
        values
    }

    /// Rounds the values of a pixel, saturates them to bytes and writes them.
    ///
    /// # Safety
    /// The CPU has the instructions; there is room for the block's channels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn store<const V: usize>(&self, values: [__m512; V], out: *mut u8) {
        let mut rounded = [_mm512_setzero_si512(); 4];
        for vector in 0..V {
            rounded[vector] = _mm512_cvtps_epi32(values[vector]);
        }
        let low = _mm512_packs_epi32(rounded[0], rounded[1]);
        let high = _mm512_packs_epi32(rounded[2], rounded[3]);
        let bytes = _mm512_permutexvar_epi32(to_channel_order(V), _mm512_packus_epi16(low, high));
        // SAFETY: only the block's channels are written.
        unsafe {
            match (self.channels == V * LANES, V) {
                (true, 1) => _mm_storeu_si128(out.cast(), _mm512_castsi512_si128(bytes)),
                (true, 2) => _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(bytes)),
                (true, 3) => {
                    _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(bytes));
                    let last = _mm512_extracti32x4_epi32(bytes, 2);
                    _mm_storeu_si128(out.add(32).cast(), last);
                }
                _ => _mm512_mask_storeu_epi8(out.cast(), mask(self.channels), bytes),
            }
        }
    }
}

/// Indices of a permutation of groups of four bytes, from the order after packs, `[128-bit lane, 4]`, to that of the
/// channels, `[128-bit lane, V]`.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_channel_order(vectors: usize) -> __m512i {
    match vectors {
        1 => _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        2 => _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0),
        _ => _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 0, 0, 0, 0),
    }
}

/// The inverse permutation of [`to_channel_order`].
#[inline]
#[target_feature(enable = "avx512f")]
fn to_packed_order(vectors: usize) -> __m512i {
    match vectors {
        1 => _mm512_setr_epi32(0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0),
        2 => _mm512_setr_epi32(0, 1, 0, 0, 2, 3, 0, 0, 4, 5, 0, 0, 6, 7, 0, 0),
        _ => _mm512_setr_epi32(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0),
    }
}
