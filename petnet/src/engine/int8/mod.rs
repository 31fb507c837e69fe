//! Int8 plans, for CPUs with AVX-512 VNNI: static quantisation with one scale and zero point for each feature map and one
//! weight scale for each output channel (Jacob et al., 2018; see [`crate::kernel::int8`]). Features and logits are f32.
//! Maps are NHWC without borders.

mod compile;
mod conv;
#[cfg(test)]
mod tests;

pub(super) use compile::compile;

use self::conv::{Int8DenseConv, Int8DepthwiseConv};
use super::plan::MapFormat;
use super::shape::{Input, Shape};
use super::simple::MaxPool;
use crate::graph::Activation;
use crate::kernel::int8::SLACK;
use crate::kernel::vectorized;

/// Quantisation parameters of a map: a byte represents `scale * (byte - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct QuantParams {
    pub(super) scale: f32,
    pub(super) zero_point: u8,
}

impl QuantParams {
    /// For a map's smallest and largest value. The range ends at the bounds of its activation, so that saturation of the
    /// bytes applies the activation.
    fn new([low, high]: [f32; 2], activation: Option<Activation>) -> Self {
        let [floor, ceiling] =
            activation.map_or([f32::NEG_INFINITY, f32::INFINITY], Activation::bounds);
        let (low, high) = (low.min(0.0).max(floor), high.max(0.0).min(ceiling));
        let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
        Self { scale, zero_point: (-low / scale).round() as u8 }
    }
}

/// Feature maps of bytes, and the parameters of those that heads read.
#[derive(Debug)]
pub(super) struct Int8 {
    head_params: Vec<QuantParams>,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Dense(Int8DenseConv),
    Depthwise(Int8DepthwiseConv),
    MaxPool(MaxPool),
}

impl MapFormat for Int8 {
    type Value = u8;
    type Kernel = Kernel;
    const SLACK: usize = SLACK;

    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [u8]) {
        map[..shape.len()].copy_from_slice(pixels);
    }

    fn run(kernel: &Kernel, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        match kernel {
            Kernel::Dense(conv) => conv.run(input, residual, out),
            Kernel::Depthwise(conv) => conv.run(input, residual, out),
            Kernel::MaxPool(pool) => pool.run(input, u8::MIN, out),
        }
    }

    fn means(&self, head: usize, shape: Shape, map: &[u8]) -> Vec<f32> {
        let mut sums = vec![0_u32; shape.channels];
        vectorized!({
            for pixel in shape.pixels(map) {
                sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
            }
        });
        let (pixels, QuantParams { scale, zero_point }) =
            ((shape.height * shape.width) as f32, self.head_params[head]);
        sums.iter().map(|sum| (*sum as f32 / pixels - f32::from(zero_point)) * scale).collect()
    }

    fn dequantize(&self, head: usize, value: u8) -> f32 {
        let QuantParams { scale, zero_point } = self.head_params[head];
        (f32::from(value) - f32::from(zero_point)) * scale
    }
}
