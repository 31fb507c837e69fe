//! A graph, its weights and the ranges of its maps to a plan of bytes.

use super::conv::{Conv, Depthwise, Form};
use super::{Int8, Kernel, Levels};
use crate::arch::Normalization;
use crate::engine::Ranges;
use crate::engine::compile::{self as floats, Compiler};
use crate::engine::plan::{Map, Step};
use crate::engine::simple::MaxPool;
use crate::error::ModelError;
use crate::graph::Op;
use crate::kernel::int8::{Requantize, supported};
use crate::passes::{self, Epilogue, Main, Program};
use crate::weights::Weights;

/// Largest value before it is rounded, as conversions to 32-bit integers need it.
const LARGEST: f64 = (1_u32 << 30) as f64;

/// `None` where the CPU lacks the instructions, or the network has a step that is not computed in bytes: a norm, sum or
/// activation that follows no convolution, an image that anything but a dense convolution reads, or sums that 32 bits
/// may not hold.
///
/// # Errors
/// As [`compile`](crate::engine::compile::compile); [`ModelError::MissingRange`] for a map without a range.
pub(in crate::engine) fn compile(
    program: &Program,
    normalization: Normalization,
    weights: &Weights,
    ranges: &Ranges,
) -> Result<Option<Unfinished>, ModelError> {
    if !supported() || !floats::folds(program) {
        return Ok(None);
    }
    let mut maps = floats::maps(program);
    floats::assign_slots(program, &mut maps);
    let levels = levels(program, ranges)?;
    let folds = Some(normalization);
    let compiler = Compiler { nodes: &program.nodes, weights, folds, maps: &maps };
    let quantizer = Quantizer { compiler, levels: &levels, border: border(normalization) };
    let steps = program.steps.iter().map(|step| quantizer.step(step));
    let Some(kernels) = steps.collect::<Result<Option<Vec<_>>, _>>()? else { return Ok(None) };
    let ends = program.ends.iter().map(|node| levels[*node]).collect();
    Ok(Some((Int8 { ends }, maps, kernels)))
}

/// The parts of a plan, but for its heads.
type Unfinished = (Int8, Vec<Option<Map>>, Vec<Step<Kernel>>);

/// The bytes that become zero when an image is normalised.
fn border(Normalization { mean, .. }: Normalization) -> [u8; 3] {
    mean.map(|mean| (mean * 255.0).round() as u8)
}

/// Of each step's output; those of other nodes stand for nothing. The image's bytes are numbers as they are.
fn levels(program: &Program, ranges: &Ranges) -> Result<Vec<Levels>, ModelError> {
    let mut levels = vec![Levels { scale: 1.0, zero: 0 }; program.nodes.len()];
    for step in &program.steps {
        levels[step.output] = match step.main {
            // The largest of some bytes is one of them.
            Main::MaxPool(_) => levels[step.input],
            _ => {
                let name = &program.nodes[step.output].name;
                let range =
                    ranges.get(name).ok_or_else(|| ModelError::MissingRange(name.clone()))?;
                Levels::new(*range, step.epilogue.activation)
            }
        };
    }
    Ok(levels)
}

struct Quantizer<'a> {
    compiler: Compiler<'a>,
    levels: &'a [Levels],
    border: [u8; 3],
}

/// A convolution's weights as signed bytes, symmetric and with a scale for each output channel.
struct Integers {
    /// In the order of the floats.
    weights: Vec<i8>,
    scale: Vec<f32>,
}

impl Integers {
    fn new(floats: &[f32], outputs: usize) -> Self {
        let values = floats.len() / outputs;
        let mut weights = Vec::with_capacity(floats.len());
        let scale = floats.chunks_exact(values).map(|floats| {
            let largest = floats.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            weights.extend(floats.iter().map(|value| (value / scale).round() as i8));
            scale
        });
        let scale = scale.collect();
        Self { weights, scale }
    }
}

impl Quantizer<'_> {
    fn step(&self, step: &passes::Step) -> Result<Option<Step<Kernel>>, ModelError> {
        let (node, made) = match step.main {
            Main::Identity => return Ok(None),
            Main::MaxPool(node) => (node, self.max_pool(step, node)),
            Main::Conv(node) => (node, self.conv(step, node)?),
        };
        let (input, residual, output) = (step.input, step.epilogue.residual, step.output);
        let name = self.compiler.name(node).to_string();
        Ok(made.map(|(kernel, flops)| Step { name, kernel, input, residual, output, flops }))
    }

    fn max_pool(&self, step: &passes::Step, node: usize) -> Option<(Kernel, u64)> {
        let Op::MaxPool(window) = self.compiler.nodes[node].op else { return None };
        let pool = MaxPool { window, output: self.compiler.shape(step.output) };
        Some((Kernel::MaxPool(pool), 0))
    }

    /// A convolution and its operations.
    fn conv(&self, step: &passes::Step, node: usize) -> Result<Option<(Kernel, u64)>, ModelError> {
        let Op::Conv2d(conv) = self.compiler.nodes[node].op else { return Ok(None) };
        let shapes = [step.input, step.output].map(|node| self.compiler.shape(node));
        let Epilogue { norm, pool, .. } = step.epilogue;
        let (weights, bias) = self.compiler.folded(node, &conv, norm, step.input == 0)?;
        let Integers { weights, scale } = Integers::new(&weights, conv.outputs);
        let Some(requantize) = self.requantize(step, (&weights, &scale), &bias) else {
            return Ok(None);
        };
        let zero = self.levels[step.input].zero;
        let kernel = if conv.is_depthwise() {
            let conv = Depthwise::new((conv.window, zero), &weights, &requantize, shapes);
            Kernel::Depthwise(conv)
        } else {
            let border = match step.input {
                0 => self.border.to_vec(),
                _ => vec![zero; conv.inputs],
            };
            let form = Form { conv, pool, border };
            Kernel::Conv(Conv::new(form, &weights, &requantize, shapes))
        };
        let sides = [shapes[0].height, shapes[0].width];
        let pixels = sides.map(|len| conv.window.output(len).unwrap_or_default());
        Ok(Some((kernel, passes::conv_flops(&conv, pixels[0] * pixels[1]))))
    }

    /// How a convolution's sums become bytes; `None` where they may be too large for 32 bits.
    fn requantize(
        &self,
        step: &passes::Step,
        (weights, scales): (&[i8], &[f32]),
        bias: &[f32],
    ) -> Option<Requantize> {
        let [input, output] = [step.input, step.output].map(|node| self.levels[node]);
        let (zero, residual) = match step.epilogue.residual.map(|node| self.levels[node]) {
            Some(Levels { scale, zero }) => (f32::from(zero), scale / output.scale),
            None => (0.0, 0.0),
        };
        let values = weights.len() / bias.len();
        let channels = weights.chunks_exact(values).zip(scales).zip(bias);
        let affine = channels.map(|((weights, weight_scale), bias)| {
            let scale = input.scale * weight_scale / output.scale;
            let sum: i64 = weights.iter().copied().map(i64::from).sum();
            let largest: i64 =
                weights.iter().map(|weight| 255 * i64::from(weight.unsigned_abs())).sum();
            let excess = scale * f32::from(input.zero) * sum as f32 + residual * zero;
            let offset = bias / output.scale + f32::from(output.zero) - excess;
            let most = f64::from(scale) * largest as f64
                + f64::from(offset.abs())
                + 255.0 * f64::from(residual);
            (most < LARGEST && largest < 1 << 30).then_some((scale, offset))
        });
        let (scale, offset) = affine.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        Some(Requantize { scale, offset, residual })
    }
}
