//! Mixed precision (Micikevicius et al., "Mixed precision training", 2018): convolutions in 16-bit floats, for which GPUs
//! have faster units; parameters, batch norms, loss and optimiser in 32 bits.

use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::clip::{Scale, multiply, squares};
use crate::device::is_on_host;
use crate::error::{Error, Result};
use crate::nn::Network;

/// Initial loss scale.
const INITIAL_SCALE: f32 = 65_536.0;
/// Largest loss scale.
const MAX_SCALE: f32 = 16_777_216.0;
/// Growth per step without overflow: the scale doubles in 2,000 steps.
const GROWTH_FACTOR: f64 = 1.000_346_6;

/// Floating-point type of the convolutions in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrainingPrecision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, with a scaled loss; on GPUs that support them.
    F16,
}

impl TrainingPrecision {
    /// The loss scale of a training on a device; `None` in 32 bits.
    /// Errors: [`Error::Device`] where the device has no 16-bit floats.
    pub(super) fn loss_scale(self, device: &Device) -> Result<Option<LossScale>> {
        match self {
            Self::F32 => Ok(None),
            Self::F16 if is_on_host(device) => Err(Error::Device(
                "`precision: f16` is for GPUs: use f32 on a CPU, or the device `wgpu`".into(),
            )),
            Self::F16 if !device.supports_dtype(DType::F16) => Err(Error::Device(
                "this GPU or its driver has no 16-bit floats: use `precision: f32`".into(),
            )),
            Self::F16 => Ok(Some(LossScale::new(device))),
        }
    }
}

/// Dynamic loss scaling, which keeps gradients in the range of 16-bit floats. The scale halves when a gradient overflows,
/// and the gradients of that step are set to zero; otherwise it grows slowly. Everything stays on the device: reading the
/// overflow flag would stall the GPU in every step.
#[derive(Clone)]
pub(super) struct LossScale {
    /// `[1]`
    factor: Tensor<1>,
}

impl LossScale {
    fn new(device: &Device) -> Self {
        Self { factor: Tensor::from_floats([INITIAL_SCALE], device) }
    }

    /// The scaled loss `[1]`, to compute gradients of.
    pub(super) fn scaled(&self, loss: Tensor<1>) -> Tensor<1> {
        loss * Tensor::from_inner(self.factor.clone())
    }

    /// Gradients of the scaled loss -> those of the loss.
    pub(super) fn unscaled(
        &mut self,
        gradients: GradientsParams,
        model: &Network,
    ) -> GradientsParams {
        let Some(squares) = squares(&gradients, model) else { return gradients };
        let overflow = squares.is_finite().bool_not(); // [1]
        let scale = Scale { factor: self.factor.clone().recip(), overflow: Some(overflow.clone()) };
        let factor = self.factor.clone();
        let grown = (factor.clone() * GROWTH_FACTOR).clamp_max(MAX_SCALE);
        self.factor = grown.mask_where(overflow, factor * 0.5);
        multiply(gradients, model, scale)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use super::*;
    use crate::arch::{Architecture, Normalization, SimpleCnnConfig};

    #[test]
    fn an_overflow_gives_zero_gradients_and_half_the_scale() {
        let device = Device::flex();
        let config = SimpleCnnConfig { dropout: 0.0, ..Default::default() };
        let graph = Architecture::new(config).graph(2).unwrap();
        let network = Network::new(&graph, Normalization::default(), &device.clone().autodiff());
        let norm = |gradients: &GradientsParams| {
            squares(gradients, &network).unwrap().sqrt().into_scalar::<f32>()
        };
        let gradients = |scale: f32| {
            let images = Tensor::<4>::ones([2, 3, 16, 16], &device.clone().autodiff()) * 9.0;
            let loss = network.forward(images).sum() * scale;
            GradientsParams::from_grads(loss.backward(), &network)
        };
        let mut scale = LossScale::new(&device);
        let plain = norm(&gradients(1.0));
        let unscaled = norm(&scale.unscaled(gradients(INITIAL_SCALE), &network));
        assert!((unscaled / plain - 1.0).abs() < 1e-3, "{unscaled} {plain}");
        let grown = scale.factor.clone().into_scalar::<f32>();
        assert!(grown > INITIAL_SCALE && grown < INITIAL_SCALE * 1.001, "{grown}");
        let none = norm(&scale.unscaled(gradients(f32::INFINITY), &network));
        assert_eq!(none, 0.0);
        assert_eq!(scale.factor.into_scalar::<f32>(), grown / 2.0);
    }

    #[test]
    fn sixteen_bits_on_a_cpu_are_refused_with_what_to_use() {
        let refused = TrainingPrecision::F16.loss_scale(&Device::flex()).err().unwrap().to_string();
        assert!(refused.contains("use f32 on a CPU"), "{refused}");
    }
}
