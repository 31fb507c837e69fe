//! The largest of the three by three pixels around every second one, in both directions.

use rayon::prelude::*;

use super::arch;

/// Of maps whose photos and channels lie side by side in each pixel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Largest {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Values of a pixel, of all photos.
    pub(crate) lanes: usize,
}

impl Largest {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> (usize, usize) {
        (self.height.div_ceil(2), self.width.div_ceil(2))
    }

    pub(crate) fn out_len(&self) -> usize {
        let (height, width) = self.out_size();
        height * width * self.lanes
    }

    /// Values of the input.
    pub(crate) fn len(&self) -> usize {
        self.height * self.width * self.lanes
    }

    /// The output from the input, and which of the nine each value was, the first of equals.
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32], taps: &mut [u32]) {
        assert!(x.len() == self.len() && out.len() == self.out_len() && taps.len() == out.len());
        let row = self.out_size().1 * self.lanes;
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
            let (height, width) = self.out_size();
            // The outputs whose windows reach this row.
            for y in source / 2..=source.div_ceil(2).min(height - 1) {
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

    /// Number and beginning of each pixel that an output looks at.
    fn window(&self, y: usize, x: usize) -> impl Iterator<Item = (u32, usize)> + use<> {
        let Self { height, width, lanes } = *self;
        (0..9).filter_map(move |tap| {
            let row = (2 * y + tap / 3).checked_sub(1).filter(|row| *row < height)?;
            let column = (2 * x + tap % 3).checked_sub(1).filter(|column| *column < width)?;
            Some((tap as u32, (row * width + column) * lanes))
        })
    }
}
