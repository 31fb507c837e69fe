//! Gradient clipping by the norm over all parameters together, as PyTorch's `clip_grad_norm_`. The norm stays on the
//! device: reading it would stall a GPU.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Tensor};

use crate::nn::Network;

/// Scales all gradients so that their common L2 norm is at most `limit`.
pub(super) fn clip(gradients: GradientsParams, model: &Network, limit: f64) -> GradientsParams {
    let Some(squares) = squares(&gradients, model) else { return gradients };
    let factor = ((squares.sqrt() + 1e-6).recip() * limit).clamp_max(1.0); // [1]
    multiply(gradients, model, Scale { factor, overflow: None })
}

/// The sum of all gradients' squares, `[1]`; `None` where there are no gradients.
pub(super) fn squares(gradients: &GradientsParams, model: &Network) -> Option<Tensor<1>> {
    let mut squares = Squares { gradients, sums: Vec::new() };
    model.visit(&mut squares);
    (!squares.sums.is_empty()).then(|| Tensor::cat(squares.sums, 0).sum())
}

/// A factor for all gradients.
#[derive(Clone)]
pub(super) struct Scale {
    /// `[1]`
    pub(super) factor: Tensor<1>,
    /// `[1]`; true sets all gradients to zero.
    pub(super) overflow: Option<Tensor<1, Bool>>,
}

/// All gradients, scaled.
pub(super) fn multiply(
    gradients: GradientsParams,
    model: &Network,
    scale: Scale,
) -> GradientsParams {
    let mut scaled = Scaled { gradients, scale };
    model.visit(&mut scaled);
    scaled.gradients
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    /// `[1]` a parameter.
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.sums.push((gradient.clone() * gradient).sum());
        }
    }
}

struct Scaled {
    gradients: GradientsParams,
    scale: Scale,
}

impl ModuleVisitor for Scaled {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let Scale { factor, overflow } = self.scale.clone();
            let scaled = gradient * factor.reshape([1; D]);
            let scaled = match overflow {
                Some(overflow) => {
                    let everywhere = overflow.reshape([1; D]).expand(scaled.dims());
                    scaled.mask_fill(everywhere, 0.0)
                }
                None => scaled,
            };
            self.gradients.register::<D>(param.id, scaled);
        }
    }
}
