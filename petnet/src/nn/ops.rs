//! burn's own operations that both layouts share, and the epilogue of a convolution.

#[cfg(feature = "train")]
use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use crate::graph::{Activation, Window};

/// Residual add and activation, where there are any.
pub(super) fn add_and_activate(
    x: Tensor<4>,
    residual: Option<Tensor<4>>,
    activation: Option<Activation>,
) -> Tensor<4> {
    let x = match residual {
        Some(residual) => x + residual,
        None => x,
    };
    match activation {
        Some(function) => activate(x, function),
        None => x,
    }
}

pub(super) fn activate<const D: usize>(x: Tensor<D>, function: Activation) -> Tensor<D> {
    match function {
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}

/// Applies the last update of the running statistics. burn keeps an update aside until the same thread makes another,
/// and averages those of several threads; but the steps of a training run on any thread of the pool.
#[cfg(feature = "train")]
pub(super) fn sync_running_statistics(norm: &BatchNorm) {
    norm.running_mean.value_sync();
    norm.running_var.value_sync();
}

pub(super) fn pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let options = MaxPoolOptions {
        kernel_size: [window.kernel; 2],
        stride: [window.stride; 2],
        padding: padding(window, [height, width]),
        dilation: [1; 2],
        ceil_mode: false,
    };
    max_pool2d(x, options) // [n, c, h', w']
}

pub(super) fn padding(window: Window, sides: [usize; 2]) -> [(usize, usize); 2] {
    sides.map(|side| window.padding(side).into())
}
