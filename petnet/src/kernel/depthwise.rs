//! Depthwise convolutions in f32, shared by the engine and training: each channel is convolved with its own kernel.
//! Vectors hold neighbouring channels, which HWNC (and NHWC) keeps contiguous.
//!
//! Away from the edges, a tile is four neighbouring outputs of one vector of channels. For each kernel row it loads the
//! columns that the four windows cover once, and each of them serves all windows that overlap it. At the edges, outputs
//! are computed one by one with the taps inside of the map.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::axis::Axis;
use super::tiles::{Epilogue, load, store};
use super::vector_arch;
use crate::graph::Window;

/// Vectors of channels that are summed at the same time where a window crosses an edge.
const VECTORS: usize = 4;
/// Neighbouring outputs that are summed at the same time elsewhere.
const TILE: usize = 4;
/// Channels whose weights stay in the L1 cache while rows are computed, in multiples of [`VECTORS`] vectors.
const VECTOR_GROUPS: usize = 2;

/// Shapes of a depthwise convolution of `[height, width, batch, channels]`. The slices that it reads and writes begin
/// with the first pixel inside of a map's border, and the row strides include the borders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Depthwise {
    pub(crate) vertical: Axis,
    pub(crate) horizontal: Axis,
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    /// Row stride of the input, in values.
    pub(crate) row_stride: usize,
    /// Row stride of the output, in values.
    pub(crate) out_row_stride: usize,
}

impl Depthwise {
    /// For maps `[height, width, batch, channels]` without borders; `None` where the window does not fit.
    pub(crate) fn new(
        [height, width, batch, channels]: [usize; 4],
        window: Window,
    ) -> Option<Self> {
        let (vertical, horizontal) = (Axis::new(window, height)?, Axis::new(window, width)?);
        let row_strides = [width, horizontal.out_len].map(|width| width * batch * channels);
        let [row_stride, out_row_stride] = row_strides;
        Some(Self { vertical, horizontal, batch, channels, row_stride, out_row_stride })
    }

    pub(crate) fn taps(&self) -> usize {
        self.vertical.kernel * self.horizontal.kernel
    }

    /// Computes some rows of the output; `out` begins with the first of them. `weights` are
    /// `[kernel * kernel, channels]`.
    pub(crate) fn run_rows(
        &self,
        (x, weights): (&[f32], &[f32]),
        rows: Range<usize>,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) {
        assert!(weights.len() == self.taps() * self.channels);
        vector_arch().dispatch(Rows { conv: *self, x, weights, rows, epilogue, out });
    }
}

/// Some rows of the output.
struct Rows<'a> {
    conv: Depthwise,
    x: &'a [f32],
    weights: &'a [f32],
    rows: Range<usize>,
    epilogue: Epilogue<'a>,
    out: &'a mut [f32],
}

/// Some channels of one image in one row of the output.
#[derive(Clone, Copy)]
struct ChannelRange {
    y: usize,
    image: usize,
    channel: usize,
    /// End of the channels.
    end: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Depthwise { vertical: Axis { kernel, stride, .. }, channels, batch, .. } = self.conv;
        let chunk = VECTOR_GROUPS * VECTORS * S::F32_LANES;
        for channel in (0..channels).step_by(chunk) {
            let end = channels.min(channel + chunk);
            for y in self.rows.clone() {
                for image in 0..batch {
                    let range = ChannelRange { y, image, channel, end };
                    match (kernel, stride) {
                        (3, 1) => self.row_outputs::<S, 3, 1, 6>(simd, range),
                        (3, 2) => self.row_outputs::<S, 3, 2, 9>(simd, range),
                        (5, 1) => self.row_outputs::<S, 5, 1, 8>(simd, range),
                        (5, 2) => self.row_outputs::<S, 5, 2, 11>(simd, range),
                        _ => self.edge_outputs(simd, range, 0..self.conv.horizontal.out_len),
                    }
                }
            }
        }
    }
}

impl Rows<'_> {
    /// A row of the output for a `K`x`K` kernel of stride `STRIDE`, whose tiles read `C = (TILE - 1) * STRIDE + K` columns.
    #[inline(always)]
    fn row_outputs<S: Simd, const K: usize, const STRIDE: usize, const C: usize>(
        &mut self,
        simd: S,
        range: ChannelRange,
    ) {
        let inside = self.conv.horizontal.inner_outputs();
        // Residuals after depthwise convolutions are rare, and supported by `edge_outputs` only.
        if inside.len() < TILE || self.epilogue.residual.is_some() {
            return self.edge_outputs(simd, range, 0..self.conv.horizontal.out_len);
        }
        self.edge_outputs(simd, range, 0..inside.start);
        let rest = range.end - (range.end - range.channel) % S::F32_LANES;
        for channel in (range.channel..rest).step_by(S::F32_LANES) {
            let (range, outputs) = (ChannelRange { channel, ..range }, inside.clone());
            simd.vectorize(Tiles::<K, STRIDE, C> { rows: self, range, outputs });
        }
        self.edge_outputs(simd, ChannelRange { channel: rest, ..range }, inside.clone());
        self.edge_outputs(simd, range, inside.end..self.conv.horizontal.out_len);
    }

    /// Offset of the range's first channel at an input pixel.
    #[inline(always)]
    fn input_offset(&self, range: ChannelRange, y: usize, x: usize) -> usize {
        let Depthwise { batch, channels, row_stride, .. } = self.conv;
        y * row_stride + (x * batch + range.image) * channels + range.channel
    }

    /// Offset of the range's first channel at an output pixel, from the first of the rows on.
    #[inline(always)]
    fn output_offset(&self, range: ChannelRange, x: usize) -> usize {
        let Depthwise { batch, channels, out_row_stride, .. } = self.conv;
        (range.y - self.rows.start) * out_row_stride
            + (x * batch + range.image) * channels
            + range.channel
    }

    /// Computes outputs one by one, with the taps inside of the map.
    #[inline(always)]
    fn edge_outputs<S: Simd>(&mut self, simd: S, mut range: ChannelRange, outputs: Range<usize>) {
        while range.channel < range.end && !outputs.is_empty() {
            let outputs = outputs.clone();
            let vectors = (range.end - range.channel) / S::F32_LANES;
            let (rows, next) = (&mut *self, range.channel + S::F32_LANES);
            range.channel = match vectors {
                VECTORS.. => {
                    simd.vectorize(Edge::<VECTORS, true> { rows, range, outputs });
                    range.channel + VECTORS * S::F32_LANES
                }
                1.. => {
                    simd.vectorize(Edge::<1, true> { rows, range, outputs });
                    next
                }
                0 => {
                    simd.vectorize(Edge::<1, false> { rows, range, outputs });
                    next
                }
            };
        }
    }
}

/// Outputs whose windows may cross an edge, of `V` vectors of channels; `WHOLE` where the last vector is full.
struct Edge<'a, 'b, const V: usize, const WHOLE: bool> {
    rows: &'a mut Rows<'b>,
    range: ChannelRange,
    outputs: Range<usize>,
}

#[expect(unsafe_code, reason = "bounds checks in the innermost loop halve the speed")]
impl<const V: usize, const WHOLE: bool> WithSimd for Edge<'_, '_, V, WHOLE> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, range, outputs } = self;
        let Depthwise { vertical, horizontal, channels, .. } = rows.conv;
        let Axis { kernel, stride, .. } = vertical;
        let count = if WHOLE { V * S::F32_LANES } else { range.end - range.channel };
        let down = vertical.valid_taps(range.y);
        let get = |values: &[f32], at: usize| {
            let values = &values[at..at + count];
            match WHOLE {
                // SAFETY: a slice of V vectors.
                true => std::array::from_fn(|v| unsafe { vector::<S>(values, v * S::F32_LANES) }),
                false => load::<S, V>(simd, values),
            }
        };
        for output in outputs {
            let mut sums = [simd.splat_f32s(0.0); V];
            let across = horizontal.valid_taps(output);
            for ky in down.clone() {
                for kx in across.clone() {
                    let (y, x) = (
                        range.y * stride + ky - vertical.padding,
                        output * stride + kx - horizontal.padding,
                    );
                    let values: [S::f32s; V] = get(rows.x, rows.input_offset(range, y, x));
                    let weights: [S::f32s; V] =
                        get(rows.weights, (ky * kernel + kx) * channels + range.channel);
                    for v in 0..V {
                        sums[v] = simd.mul_add_e_f32s(values[v], weights[v], sums[v]);
                    }
                }
            }
            let at = rows.output_offset(range, output);
            let sums = rows.epilogue.apply(simd, sums, range.channel..range.channel + count, at);
            store(simd, &mut rows.out[at..at + count], &sums);
        }
    }
}

/// Tiles of neighbouring outputs of one vector of channels whose windows lie within the map's columns.
struct Tiles<'a, 'b, const K: usize, const STRIDE: usize, const C: usize> {
    rows: &'a mut Rows<'b>,
    range: ChannelRange,
    outputs: Range<usize>,
}

#[expect(unsafe_code, reason = "bounds checks in the innermost loop halve the speed")]
impl<const K: usize, const STRIDE: usize, const C: usize> WithSimd for Tiles<'_, '_, K, STRIDE, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, range, outputs } = self;
        let Depthwise { vertical, horizontal, batch, channels, row_stride, .. } = rows.conv;
        let (pixel, lanes) = (batch * channels, S::F32_LANES);
        let down = vertical.valid_taps(range.y);
        let y = range.y * vertical.stride + down.start - vertical.padding;
        let last = outputs.len() - TILE;
        // Slices from the first value that is read or written to the last.
        let x = &rows.x[rows.input_offset(range, y, outputs.start * STRIDE - horizontal.padding)..];
        let x = &x[..(down.len() - 1) * row_stride
            + ((outputs.len() - 1) * STRIDE + K - 1) * pixel
            + lanes];
        let weights = &rows.weights[down.start * K * channels + range.channel..];
        let weights = &weights[..(down.len() * K - 1) * channels + lanes];
        let at = rows.output_offset(range, outputs.start);
        let out = &mut rows.out[at..at + (outputs.len() - 1) * pixel + lanes];
        let bias = match rows.epilogue.bias {
            Some(bias) => load::<S, 1>(simd, &bias[range.channel..range.channel + lanes])[0],
            None => simd.splat_f32s(0.0),
        };
        // The sums start at the bias.
        let epilogue = Epilogue { bias: None, ..rows.epilogue };
        for tile in 0..outputs.len().div_ceil(TILE) {
            // The last tile may overlap the one before it.
            let first = (tile * TILE).min(last);
            let mut sums = [bias; TILE];
            for ky in 0..down.len() {
                let values = ky * row_stride + first * STRIDE * pixel;
                let mut columns = [bias; C];
                for column in 0..C {
                    // SAFETY: at most ky = down.len() - 1, first = last, and column C - 1 = (TILE - 1) * STRIDE + K - 1: the
                    // last vector of the slice.
                    columns[column] = unsafe { vector::<S>(x, values + column * pixel) };
                }
                for kx in 0..K {
                    // SAFETY: at most (down.len() * K - 1) * channels: the last vector of the slice.
                    let weight = unsafe { vector::<S>(weights, (ky * K + kx) * channels) };
                    for output in 0..TILE {
                        sums[output] = simd.mul_add_e_f32s(
                            columns[output * STRIDE + kx],
                            weight,
                            sums[output],
                        );
                    }
                }
            }
            for (output, sum) in sums.into_iter().enumerate() {
                let sum = epilogue.apply(simd, [sum], 0..lanes, 0);
                let at = (first + output) * pixel;
                store(simd, &mut out[at..at + lanes], &sum);
            }
        }
    }
}

/// The vector of values from `at` on.
///
/// # Safety
/// `values` has at least a vector's number of values from `at` on.
#[expect(unsafe_code, reason = "bounds checks in the innermost loop halve the speed")]
#[inline(always)]
unsafe fn vector<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    // SAFETY: within the slice, as the caller ensures; any bits are a valid vector, and unaligned reads need no alignment.
    unsafe { values.as_ptr().add(at).cast::<S::f32s>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::Activation;
    use crate::kernel::tests::values;

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_depthwise_convolution_equals_its_definition(
            (height, width, batch, channels) in (1..20_usize, 1..20_usize, 1..4_usize, 1..90_usize),
            (kernel, stride, same, seed) in (1..7_usize, 1..4_usize, any::<bool>(), any::<u32>()),
        ) {
            let window = if same { Window::same(kernel, stride) } else { Window::centred(kernel, stride) };
            let Some(conv) = Depthwise::new([height, width, batch, channels], window) else { return Ok(()) };
            let (out_height, out_width) = (conv.vertical.out_len, conv.horizontal.out_len);
            let padding = [height, width].map(|len| window.padding(len)[0]);
            let x = values(height * width * batch * channels, seed);
            let weights = values(kernel * kernel * channels, seed ^ 1);
            let bias = values(channels, seed ^ 2);
            let activation = [None, Some(Activation::Relu), Some(Activation::Relu6)][seed as usize % 3];
            let epilogue = Epilogue { bias: Some(&bias), residual: None, activation };
            let first = seed as usize % out_height;
            let mut out = vec![7.0; (out_height - first) * conv.out_row_stride];
            conv.run_rows((&x, &weights), first..out_height, epilogue, &mut out);
            for (at, actual) in out.iter().enumerate() {
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
                let expected = sum.clamp(f64::from(floor), f64::from(ceiling));
                let difference = (f64::from(*actual) - expected).abs();
                prop_assert!(difference < 1e-5, "{actual} is not {expected} at {at}");
            }
        }
    }
}
