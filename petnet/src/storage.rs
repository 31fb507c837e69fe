//! A weight as the tensors of a file, at four, two or one byte a value, and back.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::weights::Weight;

/// How many bytes a stored weight takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// Four bytes: exact.
    #[default]
    F32,
    /// Two bytes: half the file; batch-norm statistics stay exact.
    F16,
    /// One byte, and a scale for each output channel (Krishnamoorthi, "Quantizing deep convolutional
    /// networks", 2018): a quarter of the file; biases and norms stay exact. It is a smaller file, not a
    /// faster network: weights are floats again once they are read. For inference in bytes, see
    /// [`Checkpoint::quantized`](crate::Checkpoint::quantized).
    Int8,
}

/// After the name of a weight of bytes.
pub(crate) const SCALE: &str = ".scale";

/// A weight as the tensors of a file: name, shape, type, bytes.
pub(crate) fn store(
    name: &str,
    Weight { shape, values }: &Weight,
    precision: Precision,
) -> Vec<(String, Vec<usize>, Dtype, Vec<u8>)> {
    let tensor = |dtype, bytes| vec![(name.to_string(), shape.clone(), dtype, bytes)];
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    match precision {
        Precision::F16 if shape.len() > 1 => {
            let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
            tensor(Dtype::F16, halves.collect())
        }
        Precision::Int8 if shape.len() > 1 => {
            let channel = channels(shape);
            let mut scales = vec![0.0_f32; channel.count];
            for (place, value) in values.iter().enumerate() {
                let scale = &mut scales[channel.of(place)];
                *scale = scale.max(value.abs() / 127.0);
            }
            let steps = values.iter().enumerate().map(|(place, value)| {
                let scale = scales[channel.of(place)];
                if scale > 0.0 { (value / scale).round() as i8 } else { 0 }
            });
            let mut tensors = tensor(Dtype::I8, steps.flat_map(i8::to_le_bytes).collect());
            let scale =
                (format!("{name}{SCALE}"), vec![channel.count], Dtype::F32, floats(&scales));
            tensors.push(scale);
            tensors
        }
        _ => tensor(Dtype::F32, floats(values)),
    }
}

pub(crate) fn unpack(view: &TensorView<'_>, scales: &[f32]) -> Weight {
    let channel = channels(view.shape());
    let steps = view.data().iter().map(|byte| f32::from(i8::from_le_bytes([*byte])));
    // A file may say what it likes of its scales.
    let scale = |place| scales.get(channel.of(place)).copied().unwrap_or_default();
    let values = steps.enumerate().map(|(place, step)| step * scale(place)).collect();
    Weight { shape: view.shape().to_vec(), values }
}

/// Where a weight's output channels lie.
pub(crate) struct Channels {
    pub(crate) count: usize,
    /// Values of one channel that lie side by side.
    stride: usize,
}

impl Channels {
    pub(crate) fn of(&self, place: usize) -> usize {
        place / self.stride % self.count
    }
}

/// First of a convolution's `[outputs, inputs, k, k]`, last of a dense layer's `[inputs, outputs]`.
pub(crate) fn channels(shape: &[usize]) -> Channels {
    let (count, stride) = match shape {
        [outputs, rest @ ..] if shape.len() > 2 => (*outputs, rest.iter().product()),
        _ => (shape.last().copied().unwrap_or(1), 1),
    };
    Channels { count: count.max(1), stride: stride.max(1) }
}

pub(crate) fn read_weight(name: &str, view: &TensorView<'_>) -> Result<Weight, ModelError> {
    let values = match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => {
            view.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::BF16 => {
            view.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::F64 => {
            view.data().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()
        }
        other => {
            let dtype = format!("{other:?}");
            return Err(ModelError::WeightType { name: name.into(), dtype });
        }
    };
    Ok(Weight { shape: view.shape().to_vec(), values })
}
