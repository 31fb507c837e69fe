//! Feature maps and their operations, in two layouts: NCHW with burn's own operations, and on the CPU HWNC with
//! the kernels of [`super::cpu`].

use burn::nn::BatchNorm;
use burn::nn::conv;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{FloatDType, Tensor};

#[cfg(feature = "flex")]
use super::cpu;
use super::ops::{self, padding};
use crate::graph::{Conv2d, Window};
use crate::kernel::NormEpilogue;
use crate::passes::FUSED_POOL;

/// Feature maps in the layout that suits the device.
#[derive(Debug, Clone)]
pub struct FeatureMaps(Layout);

#[derive(Debug, Clone)]
enum Layout {
    /// `[n, c, h, w]`.
    Nchw(Tensor<4>),
    /// `[h, w, n, c]`.
    #[cfg(feature = "flex")]
    Hwnc(Tensor<4>),
}

/// A convolution with its weights.
pub(super) struct ConvLayer<'a> {
    pub(super) config: Conv2d,
    pub(super) layer: &'a conv::Conv2d,
    /// True for 16-bit floats on a device with automatic differentiation. Grouped convolutions keep 32 bits: burn adds the products of a
    /// depthwise weight gradient, one for each pixel of the batch, in the type of its input.
    pub(super) mixed: bool,
}

impl FeatureMaps {
    /// From `[n, c, h, w]`.
    pub(super) fn new(maps: Tensor<4>) -> Self {
        #[cfg(feature = "flex")]
        if cpu::supports(&maps.device()) {
            return Self(Layout::Hwnc(maps.permute([2, 3, 0, 1]))); // [h, w, n, c]
        }
        Self(Layout::Nchw(maps))
    }

    /// From `[n, c, h, w]`, for burn's own operations on any device.
    #[cfg(all(test, feature = "train"))]
    pub(super) fn new_nchw(maps: Tensor<4>) -> Self {
        Self(Layout::Nchw(maps))
    }

    /// To `[n, c, h, w]`.
    pub(super) fn nchw(self) -> Tensor<4> {
        match self.0 {
            Layout::Nchw(maps) => maps,
            #[cfg(feature = "flex")]
            Layout::Hwnc(maps) => maps.permute([2, 3, 0, 1]), // [n, c, h, w]
        }
    }

    /// The same on a device with automatic differentiation, as constants: no gradient flows into them.
    #[cfg(feature = "train")]
    pub fn lifted(self) -> Self {
        Self(match self.0 {
            Layout::Nchw(maps) => Layout::Nchw(Tensor::from_inner(maps)),
            #[cfg(feature = "flex")]
            Layout::Hwnc(maps) => Layout::Hwnc(Tensor::from_inner(maps)),
        })
    }

    /// Max pooling.
    pub(super) fn max_pool(self, window: Window) -> Self {
        Self(match self.0 {
            Layout::Nchw(maps) => Layout::Nchw(ops::pool(maps, window)), // [n, c, h', w']
            #[cfg(feature = "flex")]
            Layout::Hwnc(maps) => Layout::Hwnc(cpu::max_pool(maps, window)), // [h', w', n, c]
        })
    }

    /// The mean of each map, `[n, c]`.
    pub(super) fn mean(self) -> Tensor<2> {
        match self.0 {
            Layout::Nchw(maps) => {
                let [n, c, h, w] = maps.dims();
                maps.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]) // [n, c]
            }
            #[cfg(feature = "flex")]
            Layout::Hwnc(maps) => {
                let [h, w, n, c] = maps.dims();
                maps.reshape([h * w, n, c]).mean_dim(0).reshape([n, c]) // [n, c]
            }
        }
    }
}

impl ConvLayer<'_> {
    /// The convolution; also its bias, where that is not added yet.
    pub(super) fn forward(&self, x: FeatureMaps) -> (FeatureMaps, Option<Tensor<1>>) {
        let (weight, bias) = (self.layer.weight.val(), self.layer.bias.as_ref().map(|b| b.val()));
        match x.0 {
            Layout::Nchw(x) => (FeatureMaps(Layout::Nchw(self.nchw(x, weight, bias))), None),
            #[cfg(feature = "flex")]
            Layout::Hwnc(x) => {
                (FeatureMaps(Layout::Hwnc(cpu::conv(x, weight, &self.config))), bias)
            }
        }
    }

    fn nchw(&self, x: Tensor<4>, weight: Tensor<4>, bias: Option<Tensor<1>>) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let Conv2d { window, groups, .. } = self.config;
        let mut options = ConvOptions::new([window.stride; 2], [0; 2], [1; 2], groups);
        options.padding = padding(window, [height, width]);
        // [n, outputs, h', w']
        if self.mixed && groups == 1 && x.device().is_autodiff() {
            let bias = bias.map(|bias| bias.cast(FloatDType::F16));
            let x = conv2d(x.cast(FloatDType::F16), weight.cast(FloatDType::F16), bias, options);
            x.cast(FloatDType::F32)
        } else {
            conv2d(x, weight, bias, options)
        }
    }
}

/// Bias, norm, residual, activation and pool, in this order.
pub(super) fn apply_epilogue(
    x: FeatureMaps,
    bias: Option<Tensor<1>>,
    norm: Option<&BatchNorm>,
    residual: Option<FeatureMaps>,
    epilogue: NormEpilogue,
) -> FeatureMaps {
    FeatureMaps(match x.0 {
        Layout::Nchw(x) => {
            assert!(bias.is_none(), "added by the convolution");
            let x = match norm {
                Some(norm) => normalize(x, norm),
                None => x,
            };
            let residual = residual.map(FeatureMaps::nchw);
            let x = ops::add_and_activate(x, residual, epilogue.activation);
            Layout::Nchw(if epilogue.pool { ops::pool(x, FUSED_POOL) } else { x })
        }
        #[cfg(feature = "flex")]
        Layout::Hwnc(x) => {
            Layout::Hwnc(cpu::apply_epilogue(x, bias, norm, residual.map(hwnc), epilogue))
        }
    })
}

/// Batch norm over the rows of `[n h w, c]`. burn's convolutions on GPUs leave a pixel's channels side by side in memory, so
/// that these rows are the maps as they lie; over four axes burn would copy them into another layout for each sum.
fn normalize(x: Tensor<4>, norm: &BatchNorm) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let rows = x.permute([0, 2, 3, 1]).reshape([n * h * w, c]);
    let rows = norm.forward(rows);
    #[cfg(feature = "train")]
    ops::sync_running_statistics(norm);
    rows.reshape([n, h, w, c]).permute([0, 3, 1, 2]) // [n, c, h, w]
}

/// To `[h, w, n, c]`.
#[cfg(feature = "flex")]
fn hwnc(maps: FeatureMaps) -> Tensor<4> {
    match maps.0 {
        Layout::Hwnc(maps) => maps,
        Layout::Nchw(maps) => maps.permute([2, 3, 0, 1]), // [h, w, n, c]
    }
}
