//! Depthwise convolutions: each channel is convolved alone, with vectors across channels.
#![allow(
    unsafe_code,
    reason = "bounds checks in the innermost loop halve the speed; tests compare with the definition"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "loops of constant length over sums must unroll, or the sums are spilled"
)]

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::arch;
use super::tiles::{Epilogue, load, store};

/// Vectors of channels that are summed together where a window crosses an edge.
const VECTORS: usize = 4;
/// Pixels of the output that are summed together elsewhere.
const PIXELS: usize = 4;
/// Vectors of channels whose weights stay in the first cache while a row is computed, in multiples of [`VECTORS`].
const CHUNK: usize = 2;

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
        (x, weights): (&[f32], &[f32]),
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
        let first = padding.div_ceil(self.stride).min(self.out_width);
        let end =
            (self.width + padding).checked_sub(self.kernel).map_or(0, |at| at / self.stride + 1);
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
    /// End of the channels that are computed together.
    end: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Depthwise { channels, batch, kernel, stride, .. } = self.conv;
        // A few channels at a time, whose weights stay in the first cache.
        let chunk = CHUNK * VECTORS * S::F32_LANES;
        for channel in (0..channels).step_by(chunk) {
            let end = channels.min(channel + chunk);
            for y in self.rows.clone() {
                for photo in 0..batch {
                    let part = Part { y, photo, channel, end };
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
    fn row<S: Simd, const K: usize, const T: usize, const C: usize>(
        &mut self,
        simd: S,
        part: Part,
    ) {
        let inside = self.conv.inside();
        // What is added to an output is rare here, and left to the other way.
        if inside.len() < PIXELS || self.epilogue.residual.is_some() {
            return self.edge(simd, part, 0..self.conv.out_width);
        }
        self.edge(simd, part, 0..inside.start);
        let rest = part.end - (part.end - part.channel) % S::F32_LANES;
        for channel in (part.channel..rest).step_by(S::F32_LANES) {
            let (part, places) = (Part { channel, ..part }, inside.clone());
            simd.vectorize(Tiles::<K, T, C> { rows: self, part, places });
        }
        self.edge(simd, Part { channel: rest, ..part }, inside.clone());
        self.edge(simd, part, inside.end..self.conv.out_width);
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
    fn edge<S: Simd>(&mut self, simd: S, mut part: Part, places: Range<usize>) {
        while part.channel < part.end && !places.is_empty() {
            let places = places.clone();
            let vectors = (part.end - part.channel) / S::F32_LANES;
            let (rows, next) = (&mut *self, part.channel + S::F32_LANES);
            part.channel = match vectors {
                VECTORS.. => {
                    simd.vectorize(Edge::<VECTORS, true> { rows, part, places });
                    part.channel + VECTORS * S::F32_LANES
                }
                1.. => {
                    simd.vectorize(Edge::<1, true> { rows, part, places });
                    next
                }
                0 => {
                    simd.vectorize(Edge::<1, false> { rows, part, places });
                    next
                }
            };
        }
    }
}

/// Outputs whose windows may cross an edge, of `V` vectors of channels; `WHOLE` where they are full.
struct Edge<'a, 'b, const V: usize, const WHOLE: bool> {
    rows: &'a mut Rows<'b>,
    part: Part,
    places: Range<usize>,
}

impl<const V: usize, const WHOLE: bool> WithSimd for Edge<'_, '_, V, WHOLE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, part, places } = self;
        let Depthwise { height, width, channels, kernel, stride, padding, .. } = rows.conv;
        let count = if WHOLE { V * S::F32_LANES } else { part.end - part.channel };
        let down = rows.conv.taps(part.y, height, padding[0]);
        let get = |values: &[f32], at: usize| {
            let values = &values[at..at + count];
            match WHOLE {
                // SAFETY: a slice of V vectors.
                true => std::array::from_fn(|v| unsafe { vector::<S>(values, v * S::F32_LANES) }),
                false => load::<S, V>(simd, values),
            }
        };
        for place in places {
            let mut sums = [simd.splat_f32s(0.0); V];
            let across = rows.conv.taps(place, width, padding[1]);
            for ky in down.clone() {
                for kx in across.clone() {
                    let (y, x) =
                        (part.y * stride + ky - padding[0], place * stride + kx - padding[1]);
                    let values: [S::f32s; V] = get(rows.x, rows.source(part, y, x));
                    let weights: [S::f32s; V] =
                        get(rows.weights, (ky * kernel + kx) * channels + part.channel);
                    for v in 0..V {
                        sums[v] = simd.mul_add_e_f32s(values[v], weights[v], sums[v]);
                    }
                }
            }
            let at = rows.target(part, place);
            let sums = rows.epilogue.apply(simd, sums, part.channel..part.channel + count, at);
            store(simd, &mut rows.out[at..at + count], &sums);
        }
    }
}

/// Tiles of neighbouring outputs of one vector of channels, all of whose windows lie inside of the map.
struct Tiles<'a, 'b, const K: usize, const T: usize, const C: usize> {
    rows: &'a mut Rows<'b>,
    part: Part,
    places: Range<usize>,
}

impl<const K: usize, const T: usize, const C: usize> WithSimd for Tiles<'_, '_, K, T, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, part, places } = self;
        let Depthwise { height, batch, channels, stride, padding, row, .. } = rows.conv;
        let (pixel, lanes) = (batch * channels, S::F32_LANES);
        let down = rows.conv.taps(part.y, height, padding[0]);
        let y = part.y * stride + down.start - padding[0];
        let last = places.len() - PIXELS;
        // The first value that is read or written, and how many there are up to the last.
        let x = &rows.x[rows.source(part, y, places.start * stride - padding[1])..];
        let x = &x[..(down.len() - 1) * row + ((places.len() - 1) * T + K - 1) * pixel + lanes];
        let weights = &rows.weights[down.start * K * channels + part.channel..];
        let weights = &weights[..(down.len() * K - 1) * channels + lanes];
        let at = rows.target(part, places.start);
        let out = &mut rows.out[at..at + (places.len() - 1) * pixel + lanes];
        let bias = match rows.epilogue.bias {
            Some(bias) => load::<S, 1>(simd, &bias[part.channel..part.channel + lanes])[0],
            None => simd.splat_f32s(0.0),
        };
        let after = Epilogue { bias: None, ..rows.epilogue };
        for tile in 0..places.len().div_ceil(PIXELS) {
            // The last tile may compute again what the one before it has.
            let first = (tile * PIXELS).min(last);
            let mut sums = [bias; PIXELS];
            for ky in 0..down.len() {
                let values = ky * row + first * T * pixel;
                let mut columns = [bias; C];
                for column in 0..C {
                    // SAFETY: at most ky = down.len() - 1, first = last, and column C - 1 = (PIXELS - 1) * T + K - 1: the
                    // last vector of the slice.
                    columns[column] = unsafe { vector::<S>(x, values + column * pixel) };
                }
                for kx in 0..K {
                    // SAFETY: at most (down.len() * K - 1) * channels: the last vector of the slice.
                    let weight = unsafe { vector::<S>(weights, (ky * K + kx) * channels) };
                    for place in 0..PIXELS {
                        sums[place] =
                            simd.mul_add_e_f32s(columns[place * T + kx], weight, sums[place]);
                    }
                }
            }
            for (place, sum) in sums.into_iter().enumerate() {
                let sum = after.apply(simd, [sum], 0..lanes, 0);
                let at = (first + place) * pixel;
                store(simd, &mut out[at..at + lanes], &sum);
            }
        }
    }
}

/// The vector of values from `at` on.
///
/// # Safety
/// There are as many values behind `at` as a vector has.
#[inline(always)]
unsafe fn vector<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    // SAFETY: as the caller says; vectors of floats are plain values, which need no alignment to be read so.
    unsafe { values.as_ptr().add(at).cast::<S::f32s>().read_unaligned() }
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
            conv.rows((&x, &weights), first..out_height, epilogue, &mut out);
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
