//! Convolution and batch normalisation on burn's CPU tensors through [`crate::kernel`], with their
//! gradients: the door between the two. Maps are `[h, w, n, c]` here.
//!
//! burn-flex spends most of a training step in layers of few channels and many pixels; these
//! kernels do not. Other devices take burn's own operations.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{Device, Tensor, TensorData};

use crate::kernel::{self, Activation, Affine, Conv, Largest, Norm, Packed, Statistics};

/// Buffers below this length are not worth keeping.
#[cfg(feature = "train")]
const WORTH_KEEPING: usize = 1 << 14;
/// With fewer inputs than this, patches are copied out.
const FEW_INPUTS: usize = 8;

/// Whether tensors of this device can come here.
pub(super) fn supports(device: &Device) -> bool {
    *device == Device::flex()
}

/// Of a convolution, on all sides alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spacing {
    pub(super) stride: usize,
    pub(super) padding: usize,
}

/// A normalised batch with the statistics it was normalised by.
#[cfg(feature = "train")]
pub(super) struct Normalized {
    pub(super) maps: Tensor<4>,
    pub(super) mean: Tensor<1>,
    pub(super) variance: Tensor<1>,
}

/// `[h, w, n, inputs]` by `[outputs, inputs, k, k]` -> `[h', w', n, outputs]`.
pub(super) fn conv(x: Tensor<4>, weight: Tensor<4>, spacing: Spacing) -> Tensor<4> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return gradients::conv(x, weight, spacing);
    }
    let (out, _) = convolve(&plain(x), &plain(weight), spacing, false);
    Tensor::from_primitive::<Flex>(out)
}

/// The largest of the three by three pixels around every second one: `[h, w, n, c]` ->
/// `[h / 2, w / 2, n, c]`, rounded up.
pub(super) fn largest(x: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "train")]
    if x.device().is_autodiff() {
        return gradients::largest(x);
    }
    let (out, _) = pool(&plain(x));
    Tensor::from_primitive::<Flex>(out)
}

/// Normalises by the batch's own statistics; the shortcut is added before the activation.
#[cfg(feature = "train")]
pub(super) use gradients::norm;

/// Normalises by `gamma`, `beta` and given statistics.
pub(super) fn affine(
    z: Tensor<4>,
    [gamma, beta, mean, variance]: [Tensor<1>; 4],
    epsilon: f64,
    shortcut: Option<Tensor<4>>,
    activation: Activation,
) -> Tensor<4> {
    let (z, shortcut) = (plain(z), shortcut.map(plain));
    let [gamma, beta, mean, variance] = [gamma, beta, mean, variance].map(plain);
    let statistics =
        Statistics { mean: values(&mean).to_vec(), variance: values(&variance).to_vec() };
    let affine = Affine::new(&statistics, values(&gamma), values(&beta), epsilon as f32);
    Tensor::from_primitive::<Flex>(apply(&z, &affine, shortcut.as_ref(), activation))
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

fn shape_of(x: &FlexTensor, weight: &FlexTensor, spacing: Spacing) -> Conv {
    let [height, width, batch, inputs] = sizes(x);
    let [outputs, _, kernel, _] = sizes(weight);
    let Spacing { stride, padding } = spacing;
    Conv { height, width, batch, inputs, outputs, kernel, stride, padding }
}

/// The output and, where they were copied out and are wanted, the patches it was made from.
fn convolve(
    x: &FlexTensor,
    weight: &FlexTensor,
    spacing: Spacing,
    input_has_gradient: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let conv = shape_of(x, weight, spacing);
    let weights = values(weight);
    let (taps, inputs) = (conv.taps(), conv.inputs);
    let mut out = kernel::take(conv.out_len());
    let shape = [conv.out_height(), conv.out_width(), conv.batch, conv.outputs];
    let packed = Packed::new([taps, inputs, conv.outputs], |tap, input, output| {
        weights[(output * inputs + input) * taps + tap]
    });
    if inputs >= FEW_INPUTS || input_has_gradient || taps == 1 {
        conv.forward(values(x), packed.view(), &mut out);
        return (tensor(out, shape), None);
    }
    let unfolded = conv.unfolded();
    let mut patches = kernel::take(unfolded.in_len());
    conv.unfold(values(x), &mut patches);
    unfolded.forward(&patches, packed.view().joined(taps), &mut out);
    let [height, width, batch, _] = shape;
    (tensor(out, shape), Some(tensor(patches, [height, width, batch, taps * inputs])))
}

fn largest_of(x: &FlexTensor) -> Largest {
    let [height, width, batch, channels] = sizes(x);
    Largest { height, width, lanes: batch * channels }
}

/// The output, and which pixel each value of it was.
fn pool(x: &FlexTensor) -> (FlexTensor, Vec<u32>) {
    let ([_, _, batch, channels], largest) = (sizes(x), largest_of(x));
    let (mut out, mut taps) = (kernel::take(largest.out_len()), vec![0; largest.out_len()]);
    largest.forward(values(x), &mut out, &mut taps);
    let (height, width) = largest.out_size();
    (tensor(out, [height, width, batch, channels]), taps)
}

fn norm_of(z: &FlexTensor, activation: Activation) -> Norm {
    let [height, width, batch, channels] = sizes(z);
    Norm { height, width, batch, channels, activation }
}

fn apply(
    z: &FlexTensor,
    affine: &Affine,
    shortcut: Option<&FlexTensor>,
    activation: Activation,
) -> FlexTensor {
    let norm = norm_of(z, activation);
    let mut out = kernel::take(norm.out_len());
    norm.forward(values(z), affine, shortcut.map(values), &mut out);
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

#[cfg(feature = "train")]
mod gradients {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use rayon::prelude::*;

    use super::*;
    use crate::kernel::Slopes;

    type Tracked = FloatTensor<Autodiff<Flex>>;

    fn tracked<const D: usize>(tensor: Tensor<D>) -> Tracked {
        tensor.try_into_primitive::<Autodiff<Flex>>().expect("`supports` was asked")
    }

    #[derive(Debug)]
    struct ConvBackward;

    /// What the gradient of a convolution needs; `patches` in place of `x` where there are some.
    #[derive(Debug, Clone)]
    struct ConvState {
        x: FlexTensor,
        patches: Option<FlexTensor>,
        weight: FlexTensor,
        spacing: Spacing,
    }

    pub(super) fn conv(x: Tensor<4>, weight: Tensor<4>, spacing: Spacing) -> Tensor<4> {
        let (x, weight) = (tracked(x), tracked(weight));
        let input_has_gradient = x.is_tracked();
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let (out, patches) = convolve(&x, &weight, spacing, input_has_gradient);
        let prepared = ConvBackward
            .prepare::<NoCheckpointing>([x_node, weight_node])
            .compute_bound()
            .stateful();
        Tensor::from_primitive::<Autodiff<Flex>>(match prepared {
            OpsKind::Tracked(prepared) => {
                prepared.finish(ConvState { x, patches, weight, spacing }, out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(out),
        })
    }

    impl Backward<Flex, 2> for ConvBackward {
        type State = ConvState;

        fn backward(self, ops: Ops<ConvState, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
            let [x_node, weight_node] = ops.parents;
            let ConvState { x, patches, weight, spacing } = ops.state;
            let conv = shape_of(&x, &weight, spacing);
            if let Some(node) = weight_node {
                let shape: [usize; 4] = sizes(&weight);
                let (taps, inputs) = (conv.taps(), conv.inputs);
                // Patches list all inputs of a tap, whole maps all taps of an input.
                let dw = match &patches {
                    Some(patches) => {
                        let dw = weight_gradient(&conv.unfolded(), values(patches), values(&dy));
                        fold(&dw, shape, |input, tap| tap * inputs + input)
                    }
                    None => {
                        let dw = weight_gradient(&conv, values(&x), values(&dy));
                        fold(&dw, shape, |input, tap| input * taps + tap)
                    }
                };
                grads.register::<Flex>(node.id, tensor(dw, shape));
            }
            if let Some(node) = x_node {
                let dx = input_gradient(&conv, values(&weight), values(&dy));
                let shape = [conv.height, conv.width, conv.batch, conv.inputs];
                grads.register::<Flex>(node.id, tensor(dx, shape));
            }
            [Some(dy), Some(x), patches].into_iter().flatten().for_each(recycle);
        }
    }

    fn weight_gradient(conv: &Conv, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dw = vec![0.0; conv.inputs * conv.taps() * conv.outputs];
        conv.backward_weights(x, dy, &mut dw);
        dw
    }

    /// The kernels' order, where `row` finds the outputs, to burn's `[outputs, inputs, k, k]`.
    fn fold(
        dw: &[f32],
        [outputs, inputs, k, _]: [usize; 4],
        row: impl Fn(usize, usize) -> usize + Sync,
    ) -> Vec<f32> {
        let taps = k * k;
        let mut folded = vec![0.0; dw.len()];
        let values = folded.par_chunks_exact_mut(inputs * taps).with_min_len(4).enumerate();
        values.for_each(|(output, values)| {
            for (input, values) in values.chunks_exact_mut(taps).enumerate() {
                for (tap, value) in values.iter_mut().enumerate() {
                    *value = dw[row(input, tap) * outputs + output];
                }
            }
        });
        folded
    }

    fn input_gradient(conv: &Conv, weights: &[f32], dy: &[f32]) -> Vec<f32> {
        let (taps, inputs) = (conv.taps(), conv.inputs);
        let packed = Packed::new([taps, conv.outputs, inputs], |tap, output, input| {
            weights[(output * inputs + input) * taps + tap]
        });
        let mut dx = kernel::take(conv.in_len());
        conv.backward_input(dy, &packed, &mut dx);
        dx
    }

    #[derive(Debug)]
    struct LargestBackward;

    /// The input's sizes, and which of its pixels each output was.
    #[derive(Debug, Clone)]
    struct LargestState {
        sizes: [usize; 4],
        taps: Vec<u32>,
    }

    pub(super) fn largest(x: Tensor<4>) -> Tensor<4> {
        let (x, node) = tracked(x).into_parts();
        let x = x.to_contiguous();
        let (out, taps) = pool(&x);
        let prepared = LargestBackward.prepare::<NoCheckpointing>([node]).compute_bound();
        Tensor::from_primitive::<Autodiff<Flex>>(match prepared.stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(LargestState { sizes: sizes(&x), taps }, out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(out),
        })
    }

    impl Backward<Flex, 1> for LargestBackward {
        type State = LargestState;

        fn backward(self, ops: Ops<LargestState, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
            let LargestState { sizes, taps } = ops.state;
            let [height, width, batch, channels] = sizes;
            let largest = Largest { height, width, lanes: batch * channels };
            let [node] = ops.parents;
            if let Some(node) = node {
                let mut dx = kernel::take(largest.len());
                largest.backward(values(&dy), &taps, &mut dx);
                grads.register::<Flex>(node.id, tensor(dx, sizes));
            }
            recycle(dy);
        }
    }

    #[derive(Debug)]
    struct NormBackward;

    #[derive(Debug, Clone)]
    struct NormState {
        z: FlexTensor,
        /// The output, where a shortcut was added.
        y: Option<FlexTensor>,
        statistics: Statistics,
        affine: Affine,
        epsilon: f32,
        activation: Activation,
    }

    pub(crate) fn norm(
        z: Tensor<4>,
        [gamma, beta]: [Tensor<1>; 2],
        epsilon: f64,
        shortcut: Option<Tensor<4>>,
        activation: Activation,
    ) -> Normalized {
        let device = z.device().inner();
        let epsilon = epsilon as f32;
        let (z, gamma, beta) = (tracked(z), tracked(gamma), tracked(beta));
        let shortcut = shortcut.map(tracked);
        let nodes = [z.node(), gamma.node(), beta.node()];
        let z = z.into_primitive().to_contiguous();
        let norm = norm_of(&z, activation);
        let statistics = norm.statistics(values(&z));
        let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
        let affine = Affine::new(&statistics, values(&gamma), values(&beta), epsilon);
        let plain = |values: &[f32]| Tensor::from_floats(values, &device);
        let (mean, variance) = (plain(&statistics.mean), plain(&statistics.variance));
        let state = |z: FlexTensor, y: Option<FlexTensor>| NormState {
            z,
            y,
            statistics: statistics.clone(),
            affine: affine.clone(),
            epsilon,
            activation,
        };
        let maps = match shortcut {
            None => {
                let out = apply(&z, &affine, None, activation);
                match NormBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
                    OpsKind::Tracked(prepared) => prepared.finish(state(z, None), out),
                    OpsKind::UnTracked(prepared) => prepared.finish(out),
                }
            }
            Some(shortcut) => {
                let (shortcut, node) = shortcut.into_parts();
                let shortcut = shortcut.to_contiguous();
                let out = apply(&z, &affine, Some(&shortcut), activation);
                let [a, b, c] = nodes;
                let prepared = NormBackward.prepare::<NoCheckpointing>([a, b, c, node]);
                match prepared.compute_bound().stateful() {
                    OpsKind::Tracked(prepared) => prepared.finish(state(z, Some(out.clone())), out),
                    OpsKind::UnTracked(prepared) => prepared.finish(out),
                }
            }
        };
        Normalized { maps: Tensor::from_primitive::<Autodiff<Flex>>(maps), mean, variance }
    }

    impl<const N: usize> Backward<Flex, N> for NormBackward {
        type State = NormState;

        fn backward(self, ops: Ops<NormState, N>, grads: &mut Gradients, _: &mut Checkpointer) {
            let mut dy = grads.consume::<Flex>(&ops.node).to_contiguous();
            let NormState { z, y, statistics, affine, epsilon, activation } = ops.state;
            let norm = norm_of(&z, activation);
            let mut dz = kernel::take(norm.len());
            let slopes = Slopes {
                dy: dy.storage_mut::<f32>(),
                z: values(&z),
                y: y.as_ref().map(values),
                statistics: &statistics,
                affine: &affine,
                epsilon,
            };
            let (gamma, beta) = norm.backward(slopes, &mut dz);
            let mut dy = Some(dy);
            let mut dz = Some(tensor(dz, sizes::<4>(&z)));
            let mut affine = [gamma, beta].map(|g| Some(tensor(g, [norm.channels])));
            for (place, parent) in ops.parents.into_iter().enumerate() {
                let gradient = match place {
                    0 => dz.take(),
                    1 | 2 => affine[place - 1].take(),
                    _ => dy.take(),
                };
                if let Some((node, gradient)) = parent.zip(gradient) {
                    grads.register::<Flex>(node.id, gradient);
                }
            }
            [dy, Some(z), y].into_iter().flatten().for_each(recycle);
        }
    }
}
