//! Compiles a program and its weights to a plan of f32 maps; shapes, memory and folding are shared with `int8/compile.rs`.

use super::dense::{ConvSpec, DenseConv};
use super::depthwise::DepthwiseConv;
use super::head::Head;
use super::plan::{F32, Kernel, Map, Plan, PlanHead, Step};
use super::shape::Shape;
use super::simple::{Elementwise, MaxPool};
use crate::arch::Normalization;
use crate::error::ModelError;
use crate::graph::{Conv2d, Op, Window};
use crate::kernel::batch_norm_affine;
use crate::passes::{self, FusedOps, FusedStep, MainOp, Program};
use crate::weights::Weights;

/// The plan of a program.
/// Errors: [`ModelError::MissingWeight`].
pub(super) fn compile(
    program: &Program,
    normalization: Normalization,
    weights: &Weights,
    heads: Vec<Head>,
) -> Result<Plan, ModelError> {
    let mut maps = maps(program);
    add_borders(program, &mut maps);
    assign_slots(program, &mut maps);
    let folds = folds_normalization(program);
    let folded = folds.then_some(normalization);
    let compiler = Compiler { program, weights, normalization: folded, maps: &maps };
    let steps = program.steps.iter().map(|step| Ok(compiler.step(step, compiler.kernel(step)?)));
    let steps = steps.collect::<Result<_, ModelError>>()?;
    // The bytes of the image as they are, or normalised; the border represents zero.
    let format = if folds {
        let border = normalization.mean.map(|mean| mean * 255.0);
        F32 { scale: [1.0; 3], shift: [0.0; 3], border }
    } else {
        let [scale, shift] = normalization.affine();
        F32 { scale, shift, border: [0.0; 3] }
    };
    Ok(Plan::new(format, maps, steps, plan_heads(program, heads)))
}

/// Each head with the node whose feature map it reads.
pub(super) fn plan_heads(program: &Program, heads: Vec<Head>) -> Vec<PlanHead> {
    let nodes = program.head_inputs.iter().zip(heads);
    nodes.map(|(node, head)| PlanHead { node: *node, head }).collect()
}

/// True where only dense convolutions read the image, so that its normalisation can be folded into their weights. The
/// border of the image then holds the values that represent zero.
pub(super) fn folds_normalization(program: &Program) -> bool {
    program.steps.iter().all(|step| {
        let reads = step.input == 0 || step.epilogue.residual == Some(0);
        !reads || (step.dense_conv().is_some() && step.epilogue.residual != Some(0))
    })
}

/// Shape of each step's output, without a border, by node; `None` for nodes that are no step's output.
pub(super) fn maps(program: &Program) -> Vec<Option<Map>> {
    let mut maps: Vec<Option<Map>> = vec![None; program.nodes.len()];
    let mut channels = Vec::with_capacity(program.nodes.len());
    for node in &program.nodes {
        let input = node.inputs.first().map_or(0, |from| channels[*from]);
        channels.push(node.op.output_channels(input));
    }
    for node in std::iter::once(0).chain(program.steps.iter().map(|step| step.output)) {
        let [height, width] = program.sides[node];
        let shape = Shape { height, width, channels: channels[node], border: 0 };
        maps[node] = Some(Map { shape, slot: 0 });
    }
    maps
}

/// Adds the borders of zeros that dense f32 convolutions read.
fn add_borders(Program { steps, .. }: &Program, maps: &mut [Option<Map>]) {
    let widen = |maps: &mut [Option<Map>], node: usize, border: usize| {
        if let Some(map) = &mut maps[node] {
            map.shape.border = map.shape.border.max(border);
        }
    };
    for step in steps {
        if let Some(conv) = step.dense_conv() {
            let border = maps[step.input].map_or(0, |Map { shape, .. }| {
                border_width(conv.window, shape.height).max(border_width(conv.window, shape.width))
            });
            widen(maps, step.input, border);
        }
    }
    // A residual has the layout of the output: borders propagate along chains of sums, until nothing changes.
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for step in steps.iter().rev() {
            let Some(residual) = step.epilogue.residual else { continue };
            let borders =
                [residual, step.output].map(|node| maps[node].map_or(0, |map| map.shape.border));
            changed |= borders[0] != borders[1];
            let border = borders[0].max(borders[1]);
            widen(maps, residual, border);
            widen(maps, step.output, border);
        }
    }
}

/// Number of pixels beyond the ends of an axis of `len` pixels that a window reads.
pub(super) fn border_width(window: Window, len: usize) -> usize {
    let [before, _] = window.padding(len);
    let last = window.output(len).unwrap_or(1).saturating_sub(1) * window.stride + window.kernel;
    before.max(last.saturating_sub(before + len))
}

/// Assigns a slot of memory to each map; a slot is reused after the last step that reads its map. Borders must stay zero:
/// a slot with a border is reused for maps of the same shape only, and the image's slot, whose border is not zero, never.
/// Maps that heads read are kept to the end.
pub(super) fn assign_slots(Program { steps, head_inputs, .. }: &Program, maps: &mut [Option<Map>]) {
    let reads = |step: &FusedStep, node| step.input == node || step.epilogue.residual == Some(node);
    let mut slots: Vec<Shape> = maps[0].iter().map(|map| map.shape).collect();
    let mut free: Vec<usize> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let Some(shape) = maps[step.output].map(|map| map.shape) else { continue };
        let fits = |slot: &Shape| *slot == shape || (slot.border == 0 && shape.border == 0);
        let found = free.iter().rposition(|slot| fits(&slots[*slot]));
        let slot = match found {
            Some(at) => free.swap_remove(at),
            None => {
                slots.push(shape);
                slots.len() - 1
            }
        };
        if let Some(map) = &mut maps[step.output] {
            map.slot = slot;
        }
        for node in [Some(step.input), step.epilogue.residual].into_iter().flatten() {
            let last = !head_inputs.contains(&node)
                && !steps[index + 1..].iter().any(|later| reads(later, node));
            if let Some(map) = maps[node]
                && last
                && map.slot != 0
                && !free.contains(&map.slot)
            {
                free.push(map.slot);
            }
        }
    }
}

/// Inputs of the compilation of single steps.
pub(super) struct Compiler<'a> {
    pub(super) program: &'a Program,
    pub(super) weights: &'a Weights,
    /// The normalisation to fold into the convolutions that read the image.
    pub(super) normalization: Option<Normalization>,
    pub(super) maps: &'a [Option<Map>],
}

impl Compiler<'_> {
    /// A step of a plan with its kernel.
    pub(super) fn step<K>(&self, step: &FusedStep, kernel: K) -> Step<K> {
        let FusedStep { main, node, input, output, .. } = *step;
        let flops = match main {
            MainOp::Conv(conv) => {
                let [height, width] = self.program.sides[node];
                passes::conv_flops(&conv, height * width)
            }
            MainOp::MaxPool(_) | MainOp::Identity => 0,
        };
        let name = self.name(if main == MainOp::Identity { output } else { node }).into();
        Step { name, kernel, input, residual: step.epilogue.residual, output, flops }
    }

    fn kernel(&self, step: &FusedStep) -> Result<Kernel, ModelError> {
        let shapes = [step.input, step.output].map(|node| self.shape(node));
        let FusedOps { norm, residual, activation, pool } = step.epilogue;
        assert!(
            residual.is_none_or(|residual| self.shape(residual) == shapes[1]),
            "a residual has the layout of the output"
        );
        Ok(match step.main {
            MainOp::Conv(conv) => {
                let (weights, bias) = self.folded(step, &conv)?;
                if conv.is_depthwise() {
                    let window = conv.window;
                    let conv = DepthwiseConv::new(window, activation, &weights, bias, shapes);
                    Kernel::Depthwise(conv)
                } else {
                    let spec = ConvSpec { conv, activation, fused_max_pool: pool };
                    Kernel::Dense(DenseConv::new(spec, &weights, bias, shapes))
                }
            }
            MainOp::MaxPool(window) => Kernel::MaxPool(MaxPool { window, output: shapes[1] }),
            MainOp::Identity => {
                let affine = norm.map(|norm| self.affine(norm)).transpose()?;
                Kernel::Elementwise(Elementwise { affine, activation, output: shapes[1] })
            }
        })
    }

    fn name(&self, node: usize) -> &str {
        &self.program.nodes[node].name
    }

    pub(super) fn shape(&self, node: usize) -> Shape {
        self.maps[node]
            .map_or(Shape { height: 0, width: 0, channels: 0, border: 0 }, |map| map.shape)
    }

    fn values(&self, node: usize, part: &str) -> Result<&[f32], ModelError> {
        let name = format!("{}.{part}", self.name(node));
        let weight = self.weights.get(&name).map(|weight| weight.values.as_slice());
        weight.ok_or(ModelError::MissingWeight(name))
    }

    /// A batch norm's scale and shift of each channel.
    fn affine(&self, norm: usize) -> Result<[Vec<f32>; 2], ModelError> {
        let Op::BatchNorm { epsilon, .. } = self.program.nodes[norm].op else {
            return Err(ModelError::MissingWeight(self.name(norm).into()));
        };
        let [gamma, beta] = [self.values(norm, "weight")?, self.values(norm, "bias")?];
        let mean = self.values(norm, "running_mean")?;
        let variance = self.values(norm, "running_var")?;
        Ok(batch_norm_affine([gamma, beta, mean, variance], epsilon))
    }

    /// Weights and bias of a convolution with its batch norm folded in (Jacob et al., 2018), and for one that
    /// reads the image also the normalisation.
    pub(super) fn folded(
        &self,
        step: &FusedStep,
        conv: &Conv2d,
    ) -> Result<(Vec<f32>, Vec<f32>), ModelError> {
        let mut weights = self.values(step.node, "weight")?.to_vec();
        let mut bias = match conv.bias {
            true => self.values(step.node, "bias")?.to_vec(),
            false => vec![0.0; conv.outputs],
        };
        let weights_per_output = weights.len() / conv.outputs;
        if let Some(norm) = step.epilogue.norm {
            let [scale, shift] = self.affine(norm)?;
            for (output, weights) in weights.chunks_exact_mut(weights_per_output).enumerate() {
                weights.iter_mut().for_each(|weight| *weight *= scale[output]);
                bias[output] = bias[output] * scale[output] + shift[output];
            }
        }
        if let Some(normalization) = self.normalization.filter(|_| step.input == 0) {
            fold_normalization(normalization, &mut weights, &mut bias);
        }
        Ok((weights, bias))
    }
}

/// Turns a convolution of a normalised image into one of its bytes.
fn fold_normalization(
    Normalization { mean, std }: Normalization,
    weights: &mut [f32],
    bias: &mut [f32],
) {
    let weights_per_output = weights.len() / bias.len();
    for (weights, bias) in weights.chunks_exact_mut(weights_per_output).zip(bias) {
        for (channel, weights) in weights.chunks_exact_mut(weights_per_output / 3).enumerate() {
            for weight in weights {
                *bias -= *weight * mean[channel] / std[channel];
                *weight /= 255.0 * std[channel];
            }
        }
    }
}
