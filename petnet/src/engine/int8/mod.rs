//! Plans whose maps are bytes, for CPUs with AVX-512 VNNI: static quantisation with one scale and zero point for each
//! map and one weight scale for each output channel (Jacob et al., "Quantization and training of neural networks for
//! efficient integer-arithmetic-only inference", 2018). Features and logits are floats.

mod compile;
mod conv;
#[cfg(test)]
mod tests;

pub(super) use compile::compile;

use self::conv::{Conv, Depthwise};
use super::plan::Numbers;
use super::shape::{Input, Shape};
use super::simple::MaxPool;
use crate::graph::Activation;
use crate::kernel::arch;
use crate::kernel::int8::SLACK;

/// Which number a byte of a map stands for: `scale * (byte - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Levels {
    pub(super) scale: f32,
    pub(super) zero: u8,
}

impl Levels {
    /// From the smallest to the largest value of a map. They end where its activation does, so that saturation to
    /// bytes is the activation.
    fn new([low, high]: [f32; 2], activation: Option<Activation>) -> Self {
        let [floor, ceiling] =
            activation.map_or([f32::NEG_INFINITY, f32::INFINITY], Activation::bounds);
        let (low, high) = (low.min(0.0).max(floor), high.max(0.0).min(ceiling));
        let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
        Self { scale, zero: (-low / scale).round() as u8 }
    }
}

/// Maps of bytes, and the levels of those that heads read.
#[derive(Debug)]
pub(super) struct Int8 {
    ends: Vec<Levels>,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Conv(Conv),
    Depthwise(Depthwise),
    MaxPool(MaxPool),
}

impl Numbers for Int8 {
    type Value = u8;
    type Kernel = Kernel;
    const SLACK: usize = SLACK;

    fn border(&self) -> [u8; 3] {
        // Maps of bytes have none.
        [0; 3]
    }

    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [u8]) {
        map[..shape.len()].copy_from_slice(pixels);
    }

    fn run(kernel: &Kernel, input: Input<'_, u8>, residual: Option<&[u8]>, out: &mut [u8]) {
        match kernel {
            Kernel::Conv(conv) => conv.run(input, residual, out),
            Kernel::Depthwise(conv) => conv.run(input, residual, out),
            Kernel::MaxPool(pool) => pool.run(input, u8::MIN, out),
        }
    }

    fn means(&self, end: usize, shape: Shape, map: &[u8]) -> Vec<f32> {
        let mut sums = vec![0_u32; shape.channels];
        arch().dispatch(
            #[inline(always)]
            || {
                for pixel in shape.pixels(map) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
                }
            },
        );
        let (pixels, Levels { scale, zero }) =
            ((shape.height * shape.width) as f32, self.ends[end]);
        sums.iter().map(|sum| (*sum as f32 / pixels - f32::from(zero)) * scale).collect()
    }

    fn float(&self, end: usize, value: u8) -> f32 {
        let Levels { scale, zero } = self.ends[end];
        (f32::from(value) - f32::from(zero)) * scale
    }
}
