//! The gradients of the CPU's kernels, as operations of burn's automatic differentiation.

use super::*;
use crate::kernel::NormGradient;
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

type Tracked = FloatTensor<Autodiff<Flex>>;

fn tracked<const D: usize>(tensor: Tensor<D>) -> Tracked {
    tensor.try_into_primitive::<Autodiff<Flex>>().expect("`supports` was asked")
}

/// Records an operation for the backward pass, where one of its inputs is tracked, with the state that it needs there.
fn record<B: Backward<Flex, N>, const N: usize>(
    operation: B,
    inputs: [NodeGuard; N],
    out: FlexTensor,
    state: impl FnOnce(&FlexTensor) -> B::State,
) -> Tensor<4> {
    let prepared = operation.prepare::<NoCheckpointing>(inputs).compute_bound();
    Tensor::from_primitive::<Autodiff<Flex>>(match prepared.stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state(&out), out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    })
}

#[derive(Debug)]
struct ConvBackward;

/// State for the gradient of a convolution; `columns` in place of `x` where there are some.
#[derive(Debug, Clone)]
struct ConvState {
    x: FlexTensor,
    columns: Option<FlexTensor>,
    weight: FlexTensor,
    config: Conv2d,
}

pub(super) fn conv(x: Tensor<4>, weight: Tensor<4>, config: &Conv2d) -> Tensor<4> {
    let (x, weight, window) = (tracked(x), tracked(weight), config.window);
    let input_has_gradient = x.is_tracked();
    let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
    let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
    let (out, columns) = match config.is_depthwise() {
        true => (depthwise(&x, &weight, window), None),
        false => dense(&x, &weight, window, input_has_gradient),
    };
    let state = ConvState { x, columns, weight, config: *config };
    record(ConvBackward, [x_node, weight_node], out, |_| state)
}

impl Backward<Flex, 2> for ConvBackward {
    type State = ConvState;

    fn backward(self, ops: Ops<ConvState, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let [x_node, weight_node] = ops.parents;
        let state = ops.state;
        if let Some(node) = weight_node {
            let dw = state.weight_gradient(values(&dy));
            grads.register::<Flex>(node.id, tensor(dw, dims::<4>(&state.weight)));
        }
        if let Some(node) = x_node {
            let dx = state.input_gradient(values(&dy));
            grads.register::<Flex>(node.id, tensor(dx, dims::<4>(&state.x)));
        }
        [Some(dy), Some(state.x), state.columns].into_iter().flatten().for_each(recycle);
    }
}

impl ConvState {
    /// The gradient of the weights in burn's layout, `[outputs, inputs / groups, k, k]`.
    fn weight_gradient(&self, dy: &[f32]) -> Vec<f32> {
        let Self { x, columns, weight, config } = self;
        if config.is_depthwise() {
            let conv = Depthwise::new(dims(x), config.window).expect(VALID_SIDES);
            return transposed(&conv.backward_weights(values(x), dy), conv.channels);
        }
        let (conv, shape) = (conv_of(x, weight, config.window), dims(weight));
        let (taps, inputs) = (conv.taps(), conv.inputs);
        // Rows are `[tap, input]` for columns, `[input, tap]` for maps.
        match columns {
            Some(columns) => {
                let dw = conv.over_columns().backward_weights(values(columns), dy);
                to_burn_layout(&dw, shape, |input, tap| tap * inputs + input)
            }
            None => {
                let dw = conv.backward_weights(values(x), dy);
                to_burn_layout(&dw, shape, |input, tap| input * taps + tap)
            }
        }
    }

    /// The gradient of the input.
    fn input_gradient(&self, dy: &[f32]) -> Vec<f32> {
        let Self { x, weight, config, .. } = self;
        let weights = values(weight);
        if config.is_depthwise() {
            let conv = Depthwise::new(dims(x), config.window).expect(VALID_SIDES);
            let mut dx = kernel::acquire_buffer(conv.vertical.len * conv.row_stride);
            conv.backward_input(dy, &transposed(weights, conv.taps()), &mut dx);
            return dx;
        }
        let conv = conv_of(x, weight, config.window);
        let (taps, inputs) = (conv.taps(), conv.inputs);
        let packed = PackedWeights::new([taps, conv.outputs, inputs], |tap, output, input| {
            weights[(output * inputs + input) * taps + tap]
        });
        let mut dx = kernel::acquire_buffer(conv.in_len());
        conv.backward_input(dy, &packed, &mut dx);
        dx
    }
}

/// The gradient of weights in the kernels' layout to burn's, `[outputs, inputs, k, k]`; `row` is the row of outputs of an
/// input and a tap.
fn to_burn_layout(
    dw: &[f32],
    [outputs, inputs, k, _]: [usize; 4],
    row: impl Fn(usize, usize) -> usize + Sync,
) -> Vec<f32> {
    let taps = k * k;
    let mut weights = vec![0.0; dw.len()];
    let values = weights.par_chunks_exact_mut(inputs * taps).with_min_len(4).enumerate();
    values.for_each(|(output, values)| {
        for (input, values) in values.chunks_exact_mut(taps).enumerate() {
            for (tap, value) in values.iter_mut().enumerate() {
                *value = dw[row(input, tap) * outputs + output];
            }
        }
    });
    weights
}

#[derive(Debug)]
struct MaxPoolBackward;

/// The input's sizes, and the index of each output in its window.
#[derive(Debug, Clone)]
struct MaxPoolState {
    pool: MaxPool2d,
    sizes: [usize; 4],
    taps: Vec<u32>,
}

pub(super) fn max_pool(x: Tensor<4>, window: Window) -> Tensor<4> {
    let (x, node) = tracked(x).into_parts();
    let x = x.to_contiguous();
    let (out, pool, taps) = max_pooled(&x, window);
    record(MaxPoolBackward, [node], out, |_| MaxPoolState { pool, sizes: dims(&x), taps })
}

impl Backward<Flex, 1> for MaxPoolBackward {
    type State = MaxPoolState;

    fn backward(self, ops: Ops<MaxPoolState, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let MaxPoolState { pool, sizes, taps } = ops.state;
        let [node] = ops.parents;
        if let Some(node) = node {
            let mut dx = kernel::acquire_buffer(pool.len());
            pool.backward(values(&dy), &taps, &mut dx);
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
    /// The output, where a residual was added.
    y: Option<FlexTensor>,
    statistics: Statistics,
    affine: Affine,
    epsilon: f32,
    epilogue: NormEpilogue,
}

/// Normalises by the batch's own statistics; the residual is added before the activation.
pub(super) fn batch_norm(
    z: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    residual: Option<Tensor<4>>,
    epilogue: NormEpilogue,
) -> Normalized {
    let device = z.device().inner();
    let epsilon = epsilon as f32;
    let (z, gamma, beta) = (tracked(z), tracked(gamma), tracked(beta));
    let residual = residual.map(tracked);
    let nodes = [z.node(), gamma.node(), beta.node()];
    let z = z.into_primitive().to_contiguous();
    let norm = norm_of(&z, epilogue);
    let statistics = norm.statistics(values(&z));
    let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
    let affine = Affine::new(&statistics, values(&gamma), values(&beta), epsilon);
    let to_tensor = |values: &[f32]| Tensor::from_floats(values, &device);
    let (mean, variance) = (to_tensor(&statistics.mean), to_tensor(&statistics.variance));
    let state = |z: FlexTensor, y: Option<FlexTensor>| NormState {
        z,
        y,
        statistics: statistics.clone(),
        affine: affine.clone(),
        epsilon,
        epilogue,
    };
    let maps = match residual {
        None => {
            let out = normalize_by(&z, &affine, None, epilogue);
            record(NormBackward, nodes, out, |_| state(z, None))
        }
        Some(residual) => {
            let (residual, node) = residual.into_parts();
            let residual = residual.to_contiguous();
            let out = normalize_by(&z, &affine, Some(&residual), epilogue);
            let [a, b, c] = nodes;
            record(NormBackward, [a, b, c, node], out, |out| state(z, Some(out.clone())))
        }
    };
    Normalized { maps, mean, variance }
}

impl<const N: usize> Backward<Flex, N> for NormBackward {
    type State = NormState;

    fn backward(self, ops: Ops<NormState, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let mut dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let NormState { z, y, statistics, affine, epsilon, epilogue } = ops.state;
        let norm = norm_of(&z, epilogue);
        let mut dz = kernel::acquire_buffer(norm.len());
        let from = NormGradient {
            dy: dy.storage_mut::<f32>(),
            z: values(&z),
            y: y.as_ref().map(values),
            statistics: &statistics,
            affine: &affine,
            epsilon,
        };
        let (gamma, beta) = norm.backward(from, &mut dz);
        let mut dy = Some(dy);
        let mut dz = Some(tensor(dz, dims::<4>(&z)));
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
