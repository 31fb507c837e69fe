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
    self, Affine, BatchConv, Depthwise, Epilogue, MaxPool2d, Norm, NormEpilogue, PackedWeights,
    Statistics,
};
use crate::passes::FUSED_POOL;
use crate::weights::transposed;

/// Shorter buffers are not returned to the pool: allocating them is as fast.
#[cfg(feature = "train")]
const MIN_REUSED_LEN: usize = 1 << 14;
/// With fewer input channels, im2col is faster.
const MIN_DIRECT_INPUTS: usize = 8;

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
    let (x, weight) = (contiguous(x), contiguous(weight));
    let out = match config.is_depthwise() {
        true => depthwise(&x, &weight, config.window),
        false => dense(&x, &weight, config.window, false).0,
    };
    Tensor::from_primitive::<Flex>(out)
}

/// Max pooling: `[h, w, n, c]` -> `[h', w', n, c]`.
pub(super) fn max_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return gradients::max_pool(x, window);
    }
    let (out, ..) = max_pooled(&contiguous(x), window);
    Tensor::from_primitive::<Flex>(out)
}

/// Bias, norm, residual, activation and pool after a convolution.
pub(super) fn apply_epilogue(
    z: Tensor<4>,
    bias: Option<Tensor<1>>,
    norm: Option<&BatchNorm>,
    residual: Option<Tensor<4>>,
    epilogue: NormEpilogue,
) -> Tensor<4> {
    match norm {
        // The fused kernel pools where there is no residual.
        Some(norm) => normalize(z, bias, norm, residual, epilogue),
        None => {
            let z = match bias {
                Some(bias) => z + bias.unsqueeze(), // [h, w, n, c]
                None => z,
            };
            let z = ops::add_and_activate(z, residual, epilogue.activation);
            if epilogue.pool { max_pool(z, FUSED_POOL) } else { z }
        }
    }
}

fn normalize(
    z: Tensor<4>,
    bias: Option<Tensor<1>>,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    epilogue: NormEpilogue,
) -> Tensor<4> {
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    // Normalisation subtracts the mean, which includes any bias of the convolution.
    let bias = bias.map(|bias| bias.detach());
    #[cfg(feature = "train")]
    if z.device().is_autodiff() && norm.training.is_enabled() {
        let normalized = gradients::batch_norm(z, [gamma, beta], norm.epsilon, residual, epilogue);
        let mean = match bias {
            Some(bias) => normalized.mean + bias.inner(),
            None => normalized.mean,
        };
        update_running_statistics(norm, mean, normalized.variance);
        return normalized.maps;
    }
    let mean = match bias {
        Some(bias) => norm.running_mean.value() - bias,
        None => norm.running_mean.value(),
    };
    let [gamma, beta, mean, variance] =
        [gamma, beta, mean, norm.running_var.value()].map(contiguous);
    let statistics =
        Statistics { mean: values(&mean).to_vec(), variance: values(&variance).to_vec() };
    let affine = Affine::new(&statistics, values(&gamma), values(&beta), norm.epsilon as f32);
    let residual = residual.map(contiguous);
    let out = normalize_by(&contiguous(z), &affine, residual.as_ref(), epilogue);
    Tensor::from_primitive::<Flex>(out)
}

/// Moves the running statistics towards those of a batch.
#[cfg(feature = "train")]
fn update_running_statistics(norm: &BatchNorm, mean: Tensor<1>, variance: Tensor<1>) {
    let momentum = norm.momentum;
    for (running, new) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let old = running.value_sync();
        let new = Tensor::from_inner(new).to_device(&old.device());
        running.update((old * (1.0 - momentum) + new * momentum).detach());
    }
    ops::sync_running_statistics(norm);
}

fn contiguous<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let primitive = tensor.try_into_primitive::<Flex>();
    primitive.expect("`supports` was asked").to_contiguous()
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous tensor of f32")
}

fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims::<D>()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A window fits each map of a valid graph: the graph's sides were computed for the image.
const VALID_SIDES: &str = "the graph's sides were worked out for this image";

fn conv_of(x: &FlexTensor, weight: &FlexTensor, window: Window) -> BatchConv {
    let [outputs, ..] = dims::<4>(weight);
    BatchConv::new(dims(x), outputs, window).expect(VALID_SIDES)
}

/// A dense convolution: `[h', w', n, outputs]`, and im2col's columns `[h', w', n, taps * inputs]` where it has few inputs
/// and these need no gradient.
fn dense(
    x: &FlexTensor,
    weight: &FlexTensor,
    window: Window,
    input_has_gradient: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let conv = conv_of(x, weight, window);
    let weights = values(weight);
    let (taps, inputs) = (conv.taps(), conv.inputs);
    let mut out = kernel::acquire_buffer(conv.out_len());
    let shape = [conv.vertical.out_len, conv.horizontal.out_len, conv.batch, conv.outputs];
    let packed = PackedWeights::new([taps, inputs, conv.outputs], |tap, input, output| {
        weights[(output * inputs + input) * taps + tap]
    });
    if inputs >= MIN_DIRECT_INPUTS || input_has_gradient || taps == 1 {
        conv.forward(values(x), packed.view(), &mut out);
        return (tensor(out, shape), None);
    }
    let over_columns = conv.over_columns();
    let mut columns = kernel::acquire_buffer(over_columns.in_len());
    conv.im2col(values(x), &mut columns);
    over_columns.forward(&columns, packed.view().merge_taps(taps), &mut out);
    let [height, width, batch, _] = shape;
    (tensor(out, shape), Some(tensor(columns, [height, width, batch, taps * inputs])))
}

fn depthwise(x: &FlexTensor, weight: &FlexTensor, window: Window) -> FlexTensor {
    let conv = Depthwise::new(dims(x), window).expect(VALID_SIDES);
    let weights = transposed(values(weight), conv.taps()); // [k * k, channels]
    let mut out = kernel::acquire_buffer(conv.vertical.out_len * conv.out_row_stride);
    let x = values(x);
    out.par_chunks_mut(conv.out_row_stride).enumerate().for_each(|(y, out)| {
        conv.run_rows((x, &weights), y..y + 1, Epilogue::default(), out);
    });
    tensor(out, [conv.vertical.out_len, conv.horizontal.out_len, conv.batch, conv.channels])
}

/// The output, its pool, and the index of each of its values in the window.
fn max_pooled(x: &FlexTensor, window: Window) -> (FlexTensor, MaxPool2d, Vec<u32>) {
    let ([_, _, batch, channels], pool) =
        (dims(x), MaxPool2d::new(dims(x), window).expect(VALID_SIDES));
    let (mut out, mut taps) = (kernel::acquire_buffer(pool.out_len()), vec![0; pool.out_len()]);
    pool.forward(values(x), &mut out, &mut taps);
    (tensor(out, [pool.vertical.out_len, pool.horizontal.out_len, batch, channels]), pool, taps)
}

fn norm_of(z: &FlexTensor, epilogue: NormEpilogue) -> Norm {
    let [height, width, batch, channels] = dims(z);
    Norm { height, width, batch, channels, epilogue }
}

fn normalize_by(
    z: &FlexTensor,
    affine: &Affine,
    residual: Option<&FlexTensor>,
    epilogue: NormEpilogue,
) -> FlexTensor {
    let norm = norm_of(z, epilogue);
    let mut out = kernel::acquire_buffer(norm.out_len());
    norm.forward(values(z), affine, residual.map(values), &mut out);
    let (height, width) = norm.out_size();
    tensor(out, [height, width, norm.batch, norm.channels])
}

/// Returns a tensor's memory to the pool, if nothing else refers to it.
#[cfg(feature = "train")]
fn recycle(tensor: FlexTensor) {
    if tensor.is_unique()
        && tensor.layout().num_elements() >= MIN_REUSED_LEN
        && let Ok(buffer) = tensor.into_data().try_into_vec_as::<f32>()
    {
        kernel::release_buffer(buffer);
    }
}
