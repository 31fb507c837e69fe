//! Convolution, batch normalisation and max pool on burn's CPU tensors through [`crate::kernel`], with their gradients:
//! the interface between the two. Maps are `[h, w, n, c]` here.
//!
//! burn-flex spends most of a training step in layers of few channels and many pixels, for which these
//! kernels are fast. Other devices use burn's own operations.

#[cfg(feature = "train")]
mod gradients;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::ops;
use crate::graph::{Conv2d, Window};
use crate::kernel::{
    self, Affine, Conv, Depthwise, Epilogue, Follows, MaxPool2d, Norm, Packed, Statistics,
};
use crate::passes::FUSED_POOL;
use crate::weights::transposed;

/// Buffers below this length are not worth keeping.
#[cfg(feature = "train")]
const WORTH_KEEPING: usize = 1 << 14;
/// With fewer input channels than this, im2col's columns are copied out.
const FEW_INPUTS: usize = 8;

/// True where tensors of this device can be passed to the kernels.
pub(super) fn supports(device: &Device) -> bool {
    *device == Device::flex()
}

/// A normalised batch with the statistics it was normalised by.
#[cfg(feature = "train")]
pub(super) struct Normalized {
    pub(super) maps: Tensor<4>,
    pub(super) mean: Tensor<1>,
    pub(super) variance: Tensor<1>,
}

/// `[h, w, n, inputs]` by `[outputs, inputs / groups, k, k]` -> `[h', w', n, outputs]`.
pub(super) fn conv(x: Tensor<4>, weight: Tensor<4>, config: &Conv2d) -> Tensor<4> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return gradients::conv(x, weight, config);
    }
    let (x, weight) = (plain(x), plain(weight));
    let out = match config.is_depthwise() {
        true => depthwise(&x, &weight, config.window),
        false => convolve(&x, &weight, config.window, false).0,
    };
    Tensor::from_primitive::<Flex>(out)
}

/// The largest value in each window: `[h, w, n, c]` -> `[h', w', n, c]`.
pub(super) fn max_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return gradients::max_pool(x, window);
    }
    let (out, _) = pool(&plain(x), window);
    Tensor::from_primitive::<Flex>(out)
}

/// Bias, norm, residual, activation and pool after a convolution.
pub(super) fn follow(
    z: Tensor<4>,
    bias: Option<Tensor<1>>,
    norm: Option<&BatchNorm>,
    residual: Option<Tensor<4>>,
    follows: Follows,
) -> Tensor<4> {
    match norm {
        // The fused kernel pools where there is no residual.
        Some(norm) => normalize(z, bias, norm, residual, follows),
        None => {
            let z = match bias {
                Some(bias) => z + bias.unsqueeze(), // [h, w, n, c]
                None => z,
            };
            let z = ops::add_and_activate(z, residual, follows.activation);
            if follows.pool { max_pool(z, FUSED_POOL) } else { z }
        }
    }
}

fn normalize(
    z: Tensor<4>,
    bias: Option<Tensor<1>>,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    follows: Follows,
) -> Tensor<4> {
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    // Normalisation takes the mean, and with it any bias of the convolution, out again.
    let bias = bias.map(|bias| bias.detach());
    #[cfg(feature = "train")]
    if z.device().is_autodiff() && norm.training.is_enabled() {
        let normalized = gradients::norm(z, [gamma, beta], norm.epsilon, residual, follows);
        let mean = match bias {
            Some(bias) => normalized.mean + bias.inner(),
            None => normalized.mean,
        };
        remember(norm, mean, normalized.variance);
        return normalized.maps;
    }
    let mean = match bias {
        Some(bias) => norm.running_mean.value() - bias,
        None => norm.running_mean.value(),
    };
    let [gamma, beta, mean, variance] = [gamma, beta, mean, norm.running_var.value()].map(plain);
    let statistics =
        Statistics { mean: values(&mean).to_vec(), variance: values(&variance).to_vec() };
    let affine = Affine::new(&statistics, values(&gamma), values(&beta), norm.epsilon as f32);
    let residual = residual.map(plain);
    Tensor::from_primitive::<Flex>(apply(&plain(z), &affine, residual.as_ref(), follows))
}

/// Moves the running statistics towards those of a batch.
#[cfg(feature = "train")]
fn remember(norm: &BatchNorm, mean: Tensor<1>, variance: Tensor<1>) {
    let momentum = norm.momentum;
    for (running, new) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let old = running.value_sync();
        let new = Tensor::from_inner(new).to_device(&old.device());
        running.update((old * (1.0 - momentum) + new * momentum).detach());
    }
    ops::settle(norm);
}

fn plain<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>();
    primitive.expect("`supports` was asked").to_contiguous()
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous tensor of f32")
}

fn sizes<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims::<D>()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A window fits each map of a valid graph: the graph's sides were computed for the image.
const FITS: &str = "the graph's sides were worked out for this image";

fn shape_of(x: &FlexTensor, weight: &FlexTensor, window: Window) -> Conv {
    let [outputs, ..] = sizes::<4>(weight);
    Conv::new(sizes(x), outputs, window).expect(FITS)
}

/// The output and, where they were copied out and are wanted, the columns it was made from.
fn convolve(
    x: &FlexTensor,
    weight: &FlexTensor,
    window: Window,
    input_has_gradient: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let conv = shape_of(x, weight, window);
    let weights = values(weight);
    let (taps, inputs) = (conv.taps(), conv.inputs);
    let mut out = kernel::take(conv.out_len());
    let shape = [conv.out_height, conv.out_width, conv.batch, conv.outputs];
    let packed = Packed::new([taps, inputs, conv.outputs], |tap, input, output| {
        weights[(output * inputs + input) * taps + tap]
    });
    if inputs >= FEW_INPUTS || input_has_gradient || taps == 1 {
        conv.forward(values(x), packed.view(), &mut out);
        return (tensor(out, shape), None);
    }
    let over_columns = conv.over_columns();
    let mut columns = kernel::take(over_columns.in_len());
    conv.im2col(values(x), &mut columns);
    over_columns.forward(&columns, packed.view().joined(taps), &mut out);
    let [height, width, batch, _] = shape;
    (tensor(out, shape), Some(tensor(columns, [height, width, batch, taps * inputs])))
}

fn depthwise_of(x: &FlexTensor, window: Window) -> Depthwise {
    Depthwise::new(sizes(x), window).expect(FITS)
}

fn depthwise(x: &FlexTensor, weight: &FlexTensor, window: Window) -> FlexTensor {
    let conv = depthwise_of(x, window);
    let weights = transposed(values(weight), conv.kernel * conv.kernel); // [k * k, channels]
    let mut out = kernel::take(conv.out_height * conv.out_row);
    let x = values(x);
    out.par_chunks_mut(conv.out_row).enumerate().for_each(|(y, out)| {
        conv.rows((x, &weights), y..y + 1, Epilogue::default(), out);
    });
    tensor(out, [conv.out_height, conv.out_width, conv.batch, conv.channels])
}

fn pool_of(x: &FlexTensor, window: Window) -> MaxPool2d {
    MaxPool2d::new(sizes(x), window).expect(FITS)
}

/// The output, and which pixel of its window each value of it was.
fn pool(x: &FlexTensor, window: Window) -> (FlexTensor, Vec<u32>) {
    let ([_, _, batch, channels], pool) = (sizes(x), pool_of(x, window));
    let (mut out, mut taps) = (kernel::take(pool.out_len()), vec![0; pool.out_len()]);
    pool.forward(values(x), &mut out, &mut taps);
    (tensor(out, [pool.out_height, pool.out_width, batch, channels]), taps)
}

fn norm_of(z: &FlexTensor, follows: Follows) -> Norm {
    let [height, width, batch, channels] = sizes(z);
    Norm { height, width, batch, channels, follows }
}

fn apply(
    z: &FlexTensor,
    affine: &Affine,
    residual: Option<&FlexTensor>,
    follows: Follows,
) -> FlexTensor {
    let norm = norm_of(z, follows);
    let mut out = kernel::take(norm.out_len());
    norm.forward(values(z), affine, residual.map(values), &mut out);
    let (height, width) = norm.out_size();
    tensor(out, [height, width, norm.batch, norm.channels])
}

/// Keeps a tensor's memory for the next one, if nothing else holds it.
#[cfg(feature = "train")]
fn recycle(tensor: FlexTensor) {
    if tensor.is_unique()
        && tensor.layout().num_elements() >= WORTH_KEEPING
        && let Ok(buffer) = tensor.into_data().try_into_vec_as::<f32>()
    {
        kernel::give(buffer);
    }
}
