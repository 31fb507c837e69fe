//! Gradient clipping by the norm over all parameters together, as PyTorch's `clip_grad_norm_`.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::nn::Network;

/// Scales all gradients so that their common L2 norm is at most `limit`.
pub(super) fn clip(gradients: GradientsParams, model: &Network, limit: f64) -> GradientsParams {
    let mut norm = Norm { gradients: &gradients, squares: 0.0 };
    model.visit(&mut norm);
    let total = norm.squares.sqrt();
    if !total.is_finite() || total <= limit {
        return gradients;
    }
    let mut scale = Scale { gradients, factor: limit / (total + 1e-6) };
    model.visit(&mut scale);
    scale.gradients
}

struct Norm<'a> {
    gradients: &'a GradientsParams,
    squares: f64,
}

impl ModuleVisitor for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let squares = (gradient.clone() * gradient).sum().into_scalar::<f32>();
            self.squares += f64::from(squares);
        }
    }
}

struct Scale {
    gradients: GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register::<D>(param.id, gradient * self.factor);
        }
    }
}
