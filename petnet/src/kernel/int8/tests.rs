//! Each kernel compared with its definition in 64-bit integers and floats.

use proptest::prelude::*;

use super::*;
use crate::graph::Window;
use crate::kernel::tests::numbers;

/// True where this CPU can run the kernels; otherwise prints that the test is skipped.
fn runs(test: &str) -> bool {
    if !supported() {
        eprintln!("skipped: {test} needs a CPU with AVX-512 VNNI");
    }
    supported()
}

fn bytes(count: usize, seed: u32) -> Vec<u8> {
    numbers(seed).map(|bits| (bits >> 24) as u8).take(count).collect()
}

/// From -127 to 127.
fn weights(count: usize, seed: u32) -> Vec<i8> {
    bytes(count, seed).into_iter().map(|byte| (i16::from(byte) - 128).max(-127) as i8).collect()
}

/// Scales with which most sums of `depth` products fit a byte, but not all; where `exact`, scales of whole numbers.
fn requantize(outputs: usize, depth: usize, exact: bool) -> Requantization {
    let scale = if exact { 1.0 } else { 1.0 / (127.0 * (depth as f32).sqrt()) };
    let scale = (0..outputs).map(|output| scale * (1 + output % 3) as f32).collect();
    let offset = (0..outputs).map(|output| (output * 7 % 50) as f32 + 64.0).collect();
    Requantization { scale, offset, residual_scale: 0.37 }
}

/// True for a byte of the output that equals its exact value up to rounding.
fn close(
    actual: u8,
    sum: i64,
    residual: Option<u8>,
    output: usize,
    requantize: &Requantization,
) -> bool {
    let [scale, offset] =
        [&requantize.scale, &requantize.offset].map(|values| f64::from(values[output]));
    let added = residual.map_or(0.0, |byte| f64::from(byte) * f64::from(requantize.residual_scale));
    let value = (sum as f64 * scale + offset + added).clamp(0.0, 255.0);
    // Rounding changes a value by up to half a step, and a little more where sums in f32 are inexact.
    (f64::from(actual) - value).abs() < 0.5 + 1e-3
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_product_equals_its_definition(
        (height, width, inputs, outputs) in (1..9_usize, 1..30_usize, 1..40_usize, 1..120_usize),
        (kernel, stride, exact, added, shared, seed) in (1..5_usize, 1..3_usize, any::<bool>(), any::<bool>(), any::<bool>(), any::<u32>()),
    ) {
        if !runs("a product") {
            return Ok(());
        }
        let pitch = ((width - 1) * stride + kernel) * inputs;
        let len = ((height - 1) * stride + kernel) * pitch;
        let depth = kernel * kernel * inputs;
        // Sums that fit a byte without a scale: most inputs are zero.
        let x: Vec<u8> = bytes(len + SLACK, seed).into_iter().map(|x| if exact { u8::from(x > 250) } else { x }).collect();
        let values = weights(outputs * depth, seed ^ 1);
        let affine = requantize(outputs, depth, exact);
        let packed = PackedWeights::new([kernel, kernel * inputs], &affine, |row, value, output| {
            values[output * depth + row * kernel * inputs + value]
        });
        let strides = Strides { width, pixel: stride * inputs, row: stride * pitch, window: pitch };
        let residual = added.then(|| bytes(height * width * outputs, seed ^ 2));
        let mut out = vec![7; height * width * outputs];
        let product = Product { x: &x, weights: &packed, strides, residual: residual.as_deref(), out: &mut out };
        if shared { product.run_by_channels() } else { product.run() }
        for (at, actual) in out.iter().enumerate() {
            let (pixel, output) = (at / outputs, at % outputs);
            let start = pixel / width * strides.row + pixel % width * strides.pixel;
            let rows = (0..kernel).flat_map(|row| {
                let x = &x[start + row * pitch..][..kernel * inputs];
                x.iter().zip(&values[output * depth + row * kernel * inputs..])
            });
            let sum = rows.map(|(x, weight)| i64::from(*x) * i64::from(*weight)).sum();
            let residual = residual.as_ref().map(|all| all[at]);
            prop_assert!(close(*actual, sum, residual, output, &affine), "{actual}, {sum} at {at}");
        }
    }

    #[test]
    fn a_depthwise_convolution_equals_its_definition(
        (height, width, channels, zero) in (1..40_usize, 1..40_usize, 1..200_usize, any::<u8>()),
        (kernel, stride, same, added, exact, seed) in (1..12_usize, 1..4_usize, any::<bool>(), any::<bool>(), any::<bool>(), any::<u32>()),
    ) {
        // Kernels of 3 and 5, which networks have, in most cases.
        let kernel = if seed % 4 > 0 { [3, 5][kernel % 2] } else { kernel };
        let window = if same { Window::same(kernel, stride) } else { Window::centred(kernel, stride) };
        let zero_point = if exact { zero % 2 } else { zero };
        let Some(geometry) = Geometry::new([height, width, channels], window, zero_point) else { return Ok(()) };
        let (out_height, out_width) = (geometry.vertical.out_len, geometry.horizontal.out_len);
        if !runs("a depthwise convolution") {
            return Ok(());
        }
        let padding = [window.padding(height)[0], window.padding(width)[0]];
        let x: Vec<u8> = bytes(height * width * channels, seed).into_iter().map(|x| if exact { x % 2 } else { x }).collect();
        let values = weights(channels * kernel * kernel, seed ^ 1);
        let values: Vec<i8> = values.into_iter().map(|w| if exact { w / 32 } else { w }).collect();
        let affine = requantize(channels, kernel * kernel, exact);
        let first = seed as usize % out_height;
        let residual = added.then(|| bytes((out_height - first) * out_width * channels, seed ^ 2));
        let mut out = vec![7; (out_height - first) * out_width * channels];
        Depthwise::new(geometry, &values, &affine).run_rows(&x, first..out_height, residual.as_deref(), &mut out);
        for (at, actual) in out.iter().enumerate() {
            let (pixel, channel) = (at / channels, at % channels);
            let (oy, ox) = (first + pixel / out_width, pixel % out_width);
            let mut sum = 0;
            for tap in 0..kernel * kernel {
                let y = (oy * stride + tap / kernel).checked_sub(padding[0]).filter(|y| *y < height);
                let column = (ox * stride + tap % kernel).checked_sub(padding[1]).filter(|x| *x < width);
                let byte = y.zip(column).map_or(zero_point, |(y, column)| x[(y * width + column) * channels + channel]);
                sum += i64::from(byte) * i64::from(values[channel * kernel * kernel + tap]);
            }
            let residual = residual.as_ref().map(|all| all[at]);
            prop_assert!(close(*actual, sum, residual, channel, &affine), "{actual}, {sum} at {at}");
        }
    }
}
