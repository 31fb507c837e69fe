//! Memory layout of a feature map: NHWC, `[height, width, channels]` within a border.

use std::ops::Range;

/// A map's sides without its border, and its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    /// Zeros around it, in pixels: as many as the widest kernel that reads it reaches over its edge.
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

    /// Range of the rows inside of the border.
    pub(super) fn rows(self) -> Range<usize> {
        self.border * self.row()..(self.border + self.height) * self.row()
    }

    /// Range of the pixels inside of the border, within a row.
    pub(super) fn inside(self) -> Range<usize> {
        self.border * self.channels..(self.border + self.width) * self.channels
    }

    /// The pixels of a map, its border left out.
    pub(super) fn pixels<T>(self, values: &[T]) -> impl Iterator<Item = &[T]> {
        let rows = values[self.rows()].chunks_exact(self.row());
        rows.flat_map(move |row| row[self.inside()].chunks_exact(self.channels))
    }
}

/// A map to read, its border included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a, T = f32> {
    pub(super) values: &'a [T],
    pub(super) shape: Shape,
    /// Whether all threads share the work on it.
    pub(super) shared: bool,
}

impl<T> Input<'_, T> {
    /// Fewest parts of the work that are worth a thread of their own.
    pub(super) fn grain(&self) -> usize {
        if self.shared { 1 } else { usize::MAX }
    }

    /// Threads that work on it.
    pub(super) fn threads(&self) -> usize {
        if self.shared { rayon::current_num_threads() } else { 1 }
    }
}
