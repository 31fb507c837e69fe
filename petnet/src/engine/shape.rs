//! Memory layout of a feature map: NHWC, `[height, width, channels]` within a border.

use std::ops::Range;

/// Maximum number of rows (pixels) of a tile product. The pixels of a 1x1 convolution are divided among threads in multiples
/// of it, so that the parts are whole tiles. On CPUs with fewer than 32 vector registers, f32 tiles have 6 rows
/// (`kernel/tiles.rs`), and the last tiles of a part have fewer.
const TILE_ROWS: usize = 8;

/// Size of a map without its border, and the width of the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    /// Width of the border in pixels: the number of pixels beyond its edges that its readers read.
    pub(super) border: usize,
}

impl Shape {
    /// Number of values, border included.
    pub(super) fn len(self) -> usize {
        (self.height + 2 * self.border) * self.row_len()
    }

    /// Row stride: number of values of a row, border included.
    pub(super) fn row_len(self) -> usize {
        (self.width + 2 * self.border) * self.channels
    }

    /// Range of the rows inside of the border.
    pub(super) fn inner_rows(self) -> Range<usize> {
        self.border * self.row_len()..(self.border + self.height) * self.row_len()
    }

    /// Range of the pixels inside of the border, within a row.
    pub(super) fn inner_columns(self) -> Range<usize> {
        self.border * self.channels..(self.border + self.width) * self.channels
    }

    /// The pixels of a map, without its border.
    pub(super) fn pixels<T>(self, values: &[T]) -> impl Iterator<Item = &[T]> {
        let rows = values[self.inner_rows()].chunks_exact(self.row_len());
        rows.flat_map(move |row| row[self.inner_columns()].chunks_exact(self.channels))
    }
}

/// The input map of a step, border included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a, T = f32> {
    pub(super) values: &'a [T],
    pub(super) shape: Shape,
    /// True where the step runs on all threads, false where on this one only.
    pub(super) parallel: bool,
}

impl<T> Input<'_, T> {
    /// Minimum number of parts of the work for each task of rayon.
    pub(super) fn min_parts(&self) -> usize {
        if self.parallel { 1 } else { usize::MAX }
    }

    /// Number of threads of the step.
    pub(super) fn threads(&self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// Division of a 1x1 convolution, one product of all pixels, among threads: the pixels of each part, and true where
    /// each part is divided further by output channels. Pixels are divided where they are more than the output channels;
    /// otherwise the channels are, so that each thread reads only its part of the weights.
    pub(super) fn pointwise_parts(&self, pixels: usize, outputs: usize) -> (usize, bool) {
        let threads = self.threads();
        match threads > 1 && pixels < outputs {
            true => (pixels, true),
            false => (pixels.div_ceil(threads).next_multiple_of(TILE_ROWS), false),
        }
    }
}
