//! Compiles a program, its weights and the ranges of its maps to an int8 plan.

use super::conv::{Int8ConvSpec, Int8DenseConv, Int8DepthwiseConv};
use super::{Int8, Kernel, QuantParams};
use crate::arch::Normalization;
use crate::engine::Ranges;
use crate::engine::compile::{self as f32_plan, Compiler};
use crate::engine::plan::{Map, Step};
use crate::engine::simple::MaxPool;
use crate::error::ModelError;
use crate::graph::Conv2d;
use crate::kernel::int8::{Requantization, supported};
use crate::passes::{FusedStep, MainOp, Program};
use crate::weights::Weights;

/// Upper bound of values before they are rounded to 32-bit integers.
const MAX_VALUE: f64 = (1_u32 << 30) as f64;

/// The parts of an int8 plan. `None` where the CPU lacks the instructions, or the network has a step without an int8
/// kernel: a norm, sum or activation that follows no convolution, a step other than a dense convolution that reads the
/// image, or a convolution whose sums may overflow 32 bits.
/// Errors: as [`compile`](crate::engine::compile::compile); [`ModelError::MissingRange`] for a map without a range.
pub(in crate::engine) fn compile(
    program: &Program,
    normalization: Normalization,
    weights: &Weights,
    ranges: &Ranges,
) -> Result<Option<PlanParts>, ModelError> {
    if !supported() || !f32_plan::folds_normalization(program) {
        return Ok(None);
    }
    let mut maps = f32_plan::maps(program);
    f32_plan::assign_slots(program, &mut maps);
    let params = params(program, ranges)?;
    let folded = Some(normalization);
    let compiler = Compiler { program, weights, normalization: folded, maps: &maps };
    let border = normalization.mean.map(|mean| (mean * 255.0).round() as u8);
    let quantizer = Quantizer { compiler, params: &params, border };
    let steps = program.steps.iter().map(|step| {
        let kernel = quantizer.kernel(step)?;
        Ok(kernel.map(|kernel| quantizer.compiler.step(step, kernel)))
    });
    let Some(steps) = steps.collect::<Result<Option<Vec<_>>, ModelError>>()? else {
        return Ok(None);
    };
    let head_params = program.head_inputs.iter().map(|node| params[*node]).collect();
    Ok(Some((Int8 { head_params }, maps, steps)))
}

/// The parts of a plan without its heads.
type PlanParts = (Int8, Vec<Option<Map>>, Vec<Step<Kernel>>);

/// Parameters of each step's output, by node; those of other nodes are unused. The image's bytes represent themselves.
fn params(program: &Program, ranges: &Ranges) -> Result<Vec<QuantParams>, ModelError> {
    let mut params = vec![QuantParams { scale: 1.0, zero_point: 0 }; program.nodes.len()];
    for step in &program.steps {
        params[step.output] = match step.main {
            // The output of a max pool has values of its input.
            MainOp::MaxPool(_) => params[step.input],
            _ => {
                let name = &program.nodes[step.output].name;
                let range =
                    ranges.get(name).ok_or_else(|| ModelError::MissingRange(name.clone()))?;
                QuantParams::new(*range, step.epilogue.activation)
            }
        };
    }
    Ok(params)
}

/// Inputs of the compilation of single steps.
struct Quantizer<'a> {
    compiler: Compiler<'a>,
    params: &'a [QuantParams],
    /// The bytes of an image that represent zero after normalisation.
    border: [u8; 3],
}

/// Symmetrically quantised weights of a convolution, with a scale for each output channel.
struct QuantizedWeights {
    /// -127 to 127, in the layout of the f32 weights.
    weights: Vec<i8>,
    scale: Vec<f32>,
}

impl QuantizedWeights {
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
    fn kernel(&self, step: &FusedStep) -> Result<Option<Kernel>, ModelError> {
        match step.main {
            MainOp::Identity => Ok(None),
            MainOp::MaxPool(window) => {
                let output = self.compiler.shape(step.output);
                Ok(Some(Kernel::MaxPool(MaxPool { window, output })))
            }
            MainOp::Conv(conv) => self.conv(step, conv),
        }
    }

    fn conv(&self, step: &FusedStep, conv: Conv2d) -> Result<Option<Kernel>, ModelError> {
        let shapes = [step.input, step.output].map(|node| self.compiler.shape(node));
        let (weights, bias) = self.compiler.folded(step, &conv)?;
        let quantized = QuantizedWeights::new(&weights, conv.outputs);
        let Some(requantize) = self.requantize(step, &quantized, &bias) else { return Ok(None) };
        let weights = &quantized.weights;
        let zero_point = self.params[step.input].zero_point;
        Ok(Some(if conv.is_depthwise() {
            let Conv2d { window, .. } = conv;
            let conv = Int8DepthwiseConv::new(window, zero_point, weights, &requantize, shapes);
            Kernel::Depthwise(conv)
        } else {
            let padding_pixel = match step.input {
                0 => self.border.to_vec(),
                _ => vec![zero_point; conv.inputs],
            };
            let spec = Int8ConvSpec { conv, fused_max_pool: step.epilogue.pool, padding_pixel };
            Kernel::Dense(Int8DenseConv::new(spec, weights, &requantize, shapes))
        }))
    }

    /// The requantisation of a convolution. With input `s_x (x - z_x)`, weights `s_w w` and output `s_y (y - z_y)`, it is
    /// `y = sum(x w) * s_x s_w / s_y + bias / s_y + z_y - z_x * sum(w) * s_x s_w / s_y`, and likewise for a residual.
    /// `None` where sums may overflow 32 bits.
    fn requantize(
        &self,
        step: &FusedStep,
        QuantizedWeights { weights, scale: scales }: &QuantizedWeights,
        bias: &[f32],
    ) -> Option<Requantization> {
        let [input, output] = [step.input, step.output].map(|node| self.params[node]);
        let (residual_zero_point, residual_scale) =
            match step.epilogue.residual.map(|node| self.params[node]) {
                Some(QuantParams { scale, zero_point }) => {
                    (f32::from(zero_point), scale / output.scale)
                }
                None => (0.0, 0.0),
            };
        let values = weights.len() / bias.len();
        let channels = weights.chunks_exact(values).zip(scales).zip(bias);
        let affine = channels.map(|((weights, weight_scale), bias)| {
            let scale = input.scale * weight_scale / output.scale;
            let sum: i64 = weights.iter().copied().map(i64::from).sum();
            let largest: i64 =
                weights.iter().map(|weight| 255 * i64::from(weight.unsigned_abs())).sum();
            let excess = scale * f32::from(input.zero_point) * sum as f32
                + residual_scale * residual_zero_point;
            let offset = bias / output.scale + f32::from(output.zero_point) - excess;
            let most = f64::from(scale) * largest as f64
                + f64::from(offset.abs())
                + 255.0 * f64::from(residual_scale);
            (most < MAX_VALUE && largest < 1 << 30).then_some((scale, offset))
        });
        let (scale, offset) = affine.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        Some(Requantization { scale, offset, residual_scale })
    }
}
