//! Pooling by itself, as `resnet18`'s stem has it: the largest of the three by three pixels around every
//! second one. Where a pixel has no neighbour it meets the border's zero, which is none the larger than
//! what a ReLU gave.

use rayon::prelude::*;

use super::layer::{BORDER, Input, Shape};
use crate::kernel::arch;

pub(super) fn shape(input: Shape) -> Shape {
    let (height, width) = (input.height.div_ceil(2), input.width.div_ceil(2));
    Shape { height, width, border: BORDER, ..input }
}

/// Fills the inside of `out`. What is read comes from a ReLU and has a border of one pixel.
pub(super) fn run(input: Input<'_>, out: &mut [f32]) {
    let (from, to) = (input.shape, shape(input.shape));
    let rows = out.par_chunks_exact_mut(to.row()).skip(BORDER).take(to.height);
    rows.enumerate().with_min_len(input.grain()).for_each(|(y, out)| {
        let above = &input.values[2 * y * from.row()..][..3 * from.row()];
        let out = &mut out[to.inside()];
        arch().dispatch(
            #[inline(always)]
            || {
                for (x, out) in out.chunks_exact_mut(to.channels).enumerate() {
                    out.fill(0.0);
                    for row in above.chunks_exact(from.row()) {
                        let pixels = &row[2 * x * from.channels..][..3 * from.channels];
                        for pixel in pixels.chunks_exact(from.channels) {
                            out.iter_mut()
                                .zip(pixel)
                                .for_each(|(out, value)| *out = out.max(*value));
                        }
                    }
                }
            },
        );
    });
}
