//! Max pooling of a batch for training, forward and backward. The engine has a pool of its own, `engine::simple::MaxPool`,
//! which stores no indices.

use rayon::prelude::*;

use super::axis::Axis;
use super::vectorized;
use crate::graph::Window;

/// Shapes of a max pool over feature maps `[height, width, lanes]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool2d {
    pub(crate) vertical: Axis,
    pub(crate) horizontal: Axis,
    /// Values of a pixel: images times channels, which are pooled independently.
    pub(crate) lanes: usize,
}

impl MaxPool2d {
    /// For maps `[height, width, batch, channels]`; `None` where the window does not fit.
    pub(crate) fn new(
        [height, width, batch, channels]: [usize; 4],
        window: Window,
    ) -> Option<Self> {
        let (vertical, horizontal) = (Axis::new(window, height)?, Axis::new(window, width)?);
        Some(Self { vertical, horizontal, lanes: batch * channels })
    }

    pub(crate) fn out_len(&self) -> usize {
        self.vertical.out_len * self.horizontal.out_len * self.lanes
    }

    /// Values of the input.
    pub(crate) fn len(&self) -> usize {
        self.vertical.len * self.horizontal.len * self.lanes
    }

    /// Computes the output and, for each of its values, the index of its pixel in the window (`argmax`), the first of equals.
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32], argmax: &mut [u32]) {
        assert!(x.len() == self.len() && out.len() == self.out_len() && argmax.len() == out.len());
        let row = self.horizontal.out_len * self.lanes;
        let rows = out.par_chunks_mut(row).zip(argmax.par_chunks_mut(row)).enumerate();
        rows.for_each(|(y, (out, argmax))| {
            let pixels = out.chunks_exact_mut(self.lanes).zip(argmax.chunks_exact_mut(self.lanes));
            for (column, (out, argmax)) in pixels.enumerate() {
                out.fill(f32::NEG_INFINITY);
                for (tap, at) in self.window_pixels(y, column) {
                    let x = &x[at..at + self.lanes];
                    vectorized!({
                        for ((out, max_tap), value) in out.iter_mut().zip(&mut *argmax).zip(x) {
                            let larger = *value > *out;
                            *max_tap = if larger { tap } else { *max_tap };
                            *out = if larger { *value } else { *out };
                        }
                    });
                }
            }
        });
    }

    /// The gradient of the input from that of the output.
    #[cfg(feature = "train")]
    pub(crate) fn backward(&self, dy: &[f32], argmax: &[u32], dx: &mut [f32]) {
        assert!(dx.len() == self.len() && dy.len() == self.out_len() && argmax.len() == dy.len());
        let row = self.horizontal.len * self.lanes;
        dx.par_chunks_mut(row).enumerate().for_each(|(source, dx)| {
            dx.fill(0.0);
            let (height, width) = (self.vertical.out_len, self.horizontal.out_len);
            // The outputs whose windows include this row.
            let Axis { kernel, stride, padding, .. } = self.vertical;
            let padded = source + padding;
            let first = (padded + 1).saturating_sub(kernel).div_ceil(stride);
            for y in first..=(padded / stride).min(height - 1) {
                for (column, tap, at) in (0..width).flat_map(|column| {
                    let inside = move |(tap, at): (u32, usize)| (column, tap, at);
                    self.window_pixels(y, column)
                        .filter(move |(_, at)| at / row == source)
                        .map(inside)
                }) {
                    let from = (y * width + column) * self.lanes;
                    let (dy, argmax) = (&dy[from..][..self.lanes], &argmax[from..][..self.lanes]);
                    let dx = &mut dx[at % row..][..self.lanes];
                    vectorized!({
                        for ((dx, dy), max_tap) in dx.iter_mut().zip(dy).zip(argmax) {
                            *dx += if *max_tap == tap { *dy } else { 0.0 };
                        }
                    });
                }
            }
        });
    }

    /// Index within the window and offset in the input of each pixel of an output's window.
    fn window_pixels(&self, y: usize, x: usize) -> impl Iterator<Item = (u32, usize)> + use<> {
        let Self { vertical, horizontal, lanes } = *self;
        let kernel = vertical.kernel;
        (0..kernel * kernel).filter_map(move |tap| {
            let row = vertical.input_index(y, tap / kernel)?;
            let column = horizontal.input_index(x, tap % kernel)?;
            Some((tap as u32, (row * horizontal.len + column) * lanes))
        })
    }
}
