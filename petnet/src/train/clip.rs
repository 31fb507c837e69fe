//! Gradient clipping by the norm over all parameters together, as PyTorch's `clip_grad_norm_`. The norm stays on the device:
//! reading it would have a GPU wait.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::nn::Network;

/// Scales all gradients so that their common L2 norm is at most `limit`.
pub(super) fn clip(gradients: GradientsParams, model: &Network, limit: f64) -> GradientsParams {
    let mut norm = Norm { gradients: &gradients, squares: Vec::new() };
    model.visit(&mut norm);
    if norm.squares.is_empty() {
        return gradients;
    }
    let total = Tensor::cat(norm.squares, 0).sum().sqrt(); // [1]
    let factor = ((total + 1e-6).recip() * limit).clamp_max(1.0); // [1]
    let mut scale = Scale { gradients, factor };
    model.visit(&mut scale);
    scale.gradients
}

struct Norm<'a> {
    gradients: &'a GradientsParams,
    /// `[1]` a parameter.
    squares: Vec<Tensor<1>>,
}

impl ModuleVisitor for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.squares.push((gradient.clone() * gradient).sum());
        }
    }
}

struct Scale {
    gradients: GradientsParams,
    /// `[1]`
    factor: Tensor<1>,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let factor = self.factor.clone().reshape([1; D]);
            self.gradients.register::<D>(param.id, gradient * factor);
        }
    }
}
