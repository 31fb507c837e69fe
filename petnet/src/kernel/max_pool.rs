//! Max pooling of a batch for training, forward and backward. The engine has a pool of its own, `engine::simple::MaxPool`,
//! which stores no indices.

use rayon::prelude::*;

use super::arch;
use crate::graph::Window;

/// Shapes of a max pool over feature maps `[height, width, lanes]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool2d {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Values of a pixel: images times channels, which are pooled independently.
    pub(crate) lanes: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows and columns of padding before the map.
    pub(crate) padding: [usize; 2],
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
}

impl MaxPool2d {
    /// For maps `[height, width, batch, channels]`; `None` where the window does not fit.
    pub(crate) fn new(
        [height, width, batch, channels]: [usize; 4],
        window: Window,
    ) -> Option<Self> {
        let [out_height, out_width] = [window.output(height)?, window.output(width)?];
        let padding = [height, width].map(|len| window.padding(len)[0]);
        let (lanes, Window { kernel, stride, .. }) = (batch * channels, window);
        Some(Self { height, width, lanes, kernel, stride, padding, out_height, out_width })
    }

    pub(crate) fn out_len(&self) -> usize {
        self.out_height * self.out_width * self.lanes
    }

    /// Values of the input.
    pub(crate) fn len(&self) -> usize {
        self.height * self.width * self.lanes
    }

    /// Computes the output and, for each of its values, the index of its pixel in the window, the first of equals.
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32], taps: &mut [u32]) {
        assert!(x.len() == self.len() && out.len() == self.out_len() && taps.len() == out.len());
        let row = self.out_width * self.lanes;
        let rows = out.par_chunks_mut(row).zip(taps.par_chunks_mut(row)).enumerate();
        rows.for_each(|(y, (out, taps))| {
            let pixels = out.chunks_exact_mut(self.lanes).zip(taps.chunks_exact_mut(self.lanes));
            for (place, (out, taps)) in pixels.enumerate() {
                out.fill(f32::NEG_INFINITY);
                for (tap, at) in self.window(y, place) {
                    let x = &x[at..at + self.lanes];
                    arch().dispatch(
                        #[inline(always)]
                        || {
                            for ((out, largest), value) in out.iter_mut().zip(&mut *taps).zip(x) {
                                let more = *value > *out;
                                *largest = if more { tap } else { *largest };
                                *out = if more { *value } else { *out };
                            }
                        },
                    );
                }
            }
        });
    }

    /// The gradient of the input from that of the output.
    #[cfg(feature = "train")]
    pub(crate) fn backward(&self, dy: &[f32], taps: &[u32], dx: &mut [f32]) {
        assert!(dx.len() == self.len() && dy.len() == self.out_len() && taps.len() == dy.len());
        let row = self.width * self.lanes;
        dx.par_chunks_mut(row).enumerate().for_each(|(source, dx)| {
            dx.fill(0.0);
            let (height, width) = (self.out_height, self.out_width);
            // The outputs whose windows include this row.
            let padded = source + self.padding[0];
            let first = (padded + 1).saturating_sub(self.kernel).div_ceil(self.stride);
            for y in first..=(padded / self.stride).min(height - 1) {
                for (place, tap, at) in (0..width).flat_map(|place| {
                    let inside = move |(tap, at): (u32, usize)| (place, tap, at);
                    self.window(y, place).filter(move |(_, at)| at / row == source).map(inside)
                }) {
                    let from = (y * width + place) * self.lanes;
                    let (dy, taps) = (&dy[from..][..self.lanes], &taps[from..][..self.lanes]);
                    let dx = &mut dx[at % row..][..self.lanes];
                    arch().dispatch(
                        #[inline(always)]
                        || {
                            for ((dx, dy), largest) in dx.iter_mut().zip(dy).zip(taps) {
                                *dx += if *largest == tap { *dy } else { 0.0 };
                            }
                        },
                    );
                }
            }
        });
    }

    /// Index within the window and offset in the input of each pixel of an output's window.
    fn window(&self, y: usize, x: usize) -> impl Iterator<Item = (u32, usize)> + use<> {
        let Self { height, width, lanes, kernel, stride, padding: [above, left], .. } = *self;
        (0..kernel * kernel).filter_map(move |tap| {
            let row = (y * stride + tap / kernel).checked_sub(above).filter(|row| *row < height)?;
            let column = (x * stride + tap % kernel).checked_sub(left).filter(|c| *c < width)?;
            Some((tap as u32, (row * width + column) * lanes))
        })
    }
}
