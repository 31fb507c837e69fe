//! Depthwise convolutions: each channel is convolved alone, with vectors across channels.
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over sums must unroll, or the sums leave their registers"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::arch;
use super::tiles::{Epilogue, load, store};

/// Vectors of channels that are summed together where a window crosses an edge.
const VECTORS: usize = 4;
/// Pixels of the output that are summed together elsewhere.
const PIXELS: usize = 4;

/// A depthwise convolution over a batch, `[height, width, batch, channels]`. What is read and written begins with the
/// first pixel inside of a map's border; rows are as long as the maps' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Depthwise {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows and columns of padding before the map.
    pub(crate) padding: [usize; 2],
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    /// Values from one row of the input to the next.
    pub(crate) row: usize,
    /// Values from one row of the output to the next.
    pub(crate) out_row: usize,
}

impl Depthwise {
    /// Some rows of the output; `out` begins with the first of them. `weights` are `[kernel * kernel, channels]`.
    pub(crate) fn rows(
        &self,
        x: &[f32],
        weights: &[f32],
        rows: Range<usize>,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        assert!(weights.len() == self.kernel * self.kernel * self.channels);
        arch().dispatch(Rows { conv: *self, x, weights, rows, epilogue, out });
    }

    /// The taps along one side that lie inside of the map, for output `out`.
    #[inline(always)]
    fn taps(&self, out: usize, len: usize, padding: usize) -> Range<usize> {
        let start = out * self.stride;
        padding.saturating_sub(start)..self.kernel.min((len + padding).saturating_sub(start))
    }

    /// The outputs of a row all of whose taps lie inside of the map.
    fn inside(&self) -> Range<usize> {
        let [_, padding] = self.padding;
        let first = padding.div_ceil(self.stride);
        let end = (self.width + padding).checked_sub(self.kernel).map_or(0, |at| at / self.stride + 1);
        first..end.min(self.out_width).max(first)
    }
}

struct Rows<'a> {
    conv: Depthwise,
    x: &'a [f32],
    weights: &'a [f32],
    rows: Range<usize>,
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
}

/// Channels of one photo in one row of the output.
#[derive(Clone, Copy)]
struct Part {
    y: usize,
    photo: usize,
    channel: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Depthwise { channels, batch, kernel, stride, .. } = self.conv;
        // A few channels at a time, whose weights stay in the first cache.
        for channel in (0..channels).step_by(VECTORS * S::F32_LANES) {
            for y in self.rows.clone() {
                for photo in 0..batch {
                    let part = Part { y, photo, channel };
                    match (kernel, stride) {
                        (3, 1) => self.row::<S, 3, 1, 6>(simd, part),
                        (3, 2) => self.row::<S, 3, 2, 9>(simd, part),
                        (5, 1) => self.row::<S, 5, 1, 8>(simd, part),
                        (5, 2) => self.row::<S, 5, 2, 11>(simd, part),
                        _ => self.edge(simd, part, 0..self.conv.out_width),
                    }
                }
            }
        }
    }
}

impl Rows<'_> {
    /// A row of a kernel of `K` and a stride of `T`, whose tiles of outputs read `C` columns.
    #[inline(always)]
    fn row<S: Simd, const K: usize, const T: usize, const C: usize>(&mut self, simd: S, part: Part) {
        let inside = self.conv.inside();
        let whole = inside.start..inside.start + inside.len() / PIXELS * PIXELS;
        self.edge(simd, part, 0..whole.start);
        let end = self.conv.channels.min(part.channel + VECTORS * S::F32_LANES);
        for channel in (part.channel..end).step_by(S::F32_LANES) {
            let part = Part { channel, ..part };
            if channel + S::F32_LANES > end {
                self.edge(simd, part, whole.clone());
                continue;
            }
            for place in whole.clone().step_by(PIXELS) {
                simd.vectorize(Tile::<K, T, C> { rows: self, part, place });
            }
        }
        self.edge(simd, part, whole.end..self.conv.out_width);
    }

    /// Index of a channel of a pixel of the input.
    #[inline(always)]
    fn source(&self, part: Part, y: usize, x: usize) -> usize {
        let Depthwise { batch, channels, row, .. } = self.conv;
        y * row + (x * batch + part.photo) * channels + part.channel
    }

    /// Index of a channel of a pixel of the output, from its first row on.
    #[inline(always)]
    fn target(&self, part: Part, x: usize) -> usize {
        let Depthwise { batch, channels, out_row, .. } = self.conv;
        (part.y - self.rows.start) * out_row + (x * batch + part.photo) * channels + part.channel
    }

    /// Pixel by pixel, with the taps that lie inside of the map.
    #[inline(always)]
    fn edge<S: Simd>(&mut self, simd: S, part: Part, places: Range<usize>) {
        let Depthwise { height, width, channels, kernel, stride, padding, .. } = self.conv;
        let end = channels.min(part.channel + VECTORS * S::F32_LANES);
        let count = end - part.channel;
        let down = self.conv.taps(part.y, height, padding[0]);
        for place in places {
            let mut sums = [simd.splat_f32s(0.0); VECTORS];
            for ky in down.clone() {
                for kx in self.conv.taps(place, width, padding[1]) {
                    let (y, x) = (part.y * stride + ky - padding[0], place * stride + kx - padding[1]);
                    let values = &self.x[self.source(part, y, x)..][..count];
                    let weights = &self.weights[(ky * kernel + kx) * channels + part.channel..][..count];
                    let values = load::<S, VECTORS>(simd, values);
                    let weights = load::<S, VECTORS>(simd, weights);
                    for vector in 0..VECTORS {
                        let sum = sums[vector];
                        sums[vector] = simd.mul_add_e_f32s(values[vector], weights[vector], sum);
                    }
                }
            }
            let at = self.target(part, place);
            let sums = self.epilogue.apply(simd, sums, part.channel..end, at);
            store(simd, &mut self.out[at..at + count], &sums);
        }
    }
}

/// Some neighbouring outputs of one vector of channels, all of whose columns lie inside of the map.
struct Tile<'a, 'b, const K: usize, const T: usize, const C: usize> {
    rows: &'a mut Rows<'b>,
    part: Part,
    place: usize,
}

impl<const K: usize, const T: usize, const C: usize> WithSimd for Tile<'_, '_, K, T, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, part, place } = self;
        let Depthwise { height, batch, channels, stride, padding, .. } = rows.conv;
        let pixel = batch * channels;
        let mut sums = [simd.splat_f32s(0.0); PIXELS];
        for ky in rows.conv.taps(part.y, height, padding[0]) {
            let y = part.y * stride + ky - padding[0];
            let values = &rows.x[rows.source(part, y, place * stride - padding[1])..];
            let mut columns = [simd.splat_f32s(0.0); C];
            for column in 0..C {
                columns[column] = load::<S, 1>(simd, &values[column * pixel..])[0];
            }
            let weights = &rows.weights[ky * K * channels + part.channel..];
            for kx in 0..K {
                let weight = load::<S, 1>(simd, &weights[kx * channels..])[0];
                for out in 0..PIXELS {
                    sums[out] = simd.mul_add_e_f32s(columns[out * T + kx], weight, sums[out]);
                }
            }
        }
        for (out, sum) in sums.into_iter().enumerate() {
            let at = rows.target(part, place + out);
            let channels = part.channel..part.channel + S::F32_LANES;
            let sum = rows.epilogue.apply(simd, [sum], channels, at);
            store(simd, &mut rows.out[at..at + S::F32_LANES], &sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::{Activation, Window};

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_depthwise_convolution_does_what_its_definition_says(
            (height, width, batch, channels) in (1..20_usize, 1..20_usize, 1..4_usize, 1..90_usize),
            (kernel, stride, same, seed) in (1..7_usize, 1..4_usize, any::<bool>(), any::<u32>()),
        ) {
            let window = if same { Window::same(kernel, stride) } else { Window::centred(kernel, stride) };
            let (Some(out_height), Some(out_width)) = (window.output(height), window.output(width)) else {
                return Ok(());
            };
            let padding = [window.padding(height)[0], window.padding(width)[0]];
            let [row, out_row] = [width, out_width].map(|width| width * batch * channels);
            let conv = Depthwise { height, width, batch, channels, kernel, stride, padding, out_height, out_width, row, out_row };
            let x = values(height * width * batch * channels, seed);
            let weights = values(kernel * kernel * channels, seed ^ 1);
            let bias = values(channels, seed ^ 2);
            let activation = [None, Some(Activation::Relu), Some(Activation::Relu6)][seed as usize % 3];
            let epilogue = Epilogue { bias: Some(&bias), residual: None, activation };
            let first = seed as usize % out_height;
            let mut out = vec![7.0; (out_height - first) * out_row];
            conv.rows(&x, &weights, first..out_height, epilogue, &mut out);
            for (at, ours) in out.iter().enumerate() {
                let (pixel, inner) = (at / (batch * channels), at % (batch * channels));
                let (oy, ox) = (first + pixel / out_width, pixel % out_width);
                let channel = inner % channels;
                let mut sum = f64::from(bias[channel]);
                for tap in 0..kernel * kernel {
                    let y = (oy * stride + tap / kernel).checked_sub(padding[0]).filter(|y| *y < height);
                    let x_at = (ox * stride + tap % kernel).checked_sub(padding[1]).filter(|x| *x < width);
                    if let Some((y, x_at)) = y.zip(x_at) {
                        let value = x[(y * width + x_at) * batch * channels + inner];
                        sum += f64::from(value) * f64::from(weights[tap * channels + channel]);
                    }
                }
                let [floor, ceiling] = activation.map_or([f32::NEG_INFINITY, f32::INFINITY], Activation::bounds);
                let theirs = sum.clamp(f64::from(floor), f64::from(ceiling));
                let far = (f64::from(*ours) - theirs).abs();
                prop_assert!(far < 1e-5, "{ours} is not {theirs} at {at}");
            }
        }
    }
}
