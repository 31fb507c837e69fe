//! Conversion of weights to tensors of a model file and back, at 32, 16, 8 or 4 bits for each value.

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::graph::SOURCE_PREFIX;
use crate::weights::Weight;

/// Precision of weights in a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// Four bytes for each value: exact.
    #[default]
    F32,
    /// Two bytes: half the file size. Biases and batch norms stay exact.
    F16,
    /// One byte, and a scale for each output channel (Krishnamoorthi, "Quantizing deep convolutional
    /// networks", 2018): a quarter of the file size. Biases and batch norms take two bytes, the large
    /// layers of a source head half a byte. Only the file is smaller: weights are converted to f32
    /// when it is read. For int8 inference, see [`Checkpoint::quantized`](crate::Checkpoint::quantized).
    Int8,
}

/// Suffix of the tensor with the scales of a quantised weight.
pub(crate) const SCALE_SUFFIX: &str = ".scale";

/// A weight as the tensors of a file: name, shape, type, bytes.
pub(crate) fn encode(
    name: &str,
    Weight { shape, values }: &Weight,
    precision: Precision,
) -> Vec<(String, Vec<usize>, Dtype, Vec<u8>)> {
    let tensor = |dtype, bytes| vec![(name.to_string(), shape.clone(), dtype, bytes)];
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let scaled = |shape, dtype, bytes, scales: Vec<f32>| {
        let scale =
            (format!("{name}{SCALE_SUFFIX}"), vec![scales.len()], Dtype::F32, floats(&scales));
        vec![(name.to_string(), shape, dtype, bytes), scale]
    };
    let halves = |values: &[f32]| {
        let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
        halves.collect::<Vec<u8>>()
    };
    let fits_f16 = values.iter().all(|value| value.abs() <= f16::MAX.to_f32());
    match (precision, shape.len()) {
        (Precision::F16, 2..) => tensor(Dtype::F16, halves(values)),
        (Precision::Int8, 2..) if uses_int4(name, shape) => {
            let (bytes, scales) = encode_int4(values, &channels(shape));
            scaled(vec![bytes.len()], Dtype::U8, bytes, scales)
        }
        (Precision::Int8, 2..) => {
            let channel = channels(shape);
            let mut scales = vec![0.0_f32; channel.count];
            for (index, value) in values.iter().enumerate() {
                let scale = &mut scales[channel.of(index)];
                *scale = scale.max(value.abs() / 127.0);
            }
            let levels = values.iter().enumerate().map(|(index, value)| {
                let scale = scales[channel.of(index)];
                if scale > 0.0 { (value / scale).round() as i8 } else { 0 }
            });
            let bytes = levels.flat_map(i8::to_le_bytes).collect();
            scaled(shape.clone(), Dtype::I8, bytes, scales)
        }
        (Precision::Int8, _) if fits_f16 => tensor(Dtype::F16, halves(values)),
        (Precision::F32, _) | (Precision::F16 | Precision::Int8, _) => {
            tensor(Dtype::F32, floats(values))
        }
    }
}

/// True for weights that are stored at four bits: those of a source head, since only two sums over its many classes are
/// used, but for depthwise kernels, whose few values would save little.
fn uses_int4(name: &str, shape: &[usize]) -> bool {
    /// Minimum number of values of a channel.
    const MIN_VALUES: usize = 64;
    let values_per_channel = shape.iter().product::<usize>() / channels(shape).count;
    name.starts_with(SOURCE_PREFIX) && values_per_channel >= MIN_VALUES
}

/// Values at four bits, two in a byte with the first in its lower half, and a scale for each channel. They are -7 to 7
/// times the scale, stored with 8 added. The scale is that with the smallest squared error of several: clipping the
/// largest values reduces the rounding error of all others.
fn encode_int4(values: &[f32], channels: &Channels) -> (Vec<u8>, Vec<f32>) {
    let level = |value: f32, scale: f32| (value / scale).round().clamp(-7.0, 7.0);
    let mut of_channel = vec![Vec::new(); channels.count];
    for (index, value) in values.iter().enumerate() {
        of_channel[channels.of(index)].push(*value);
    }
    let scale = |values: &Vec<f32>| {
        let largest = values.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let error = |scale: f32| -> f32 {
            values.iter().map(|value| (level(*value, scale) * scale - value).powi(2)).sum()
        };
        let tried = (8..=20).map(|share| largest / 7.0 * share as f32 / 20.0);
        let errors = tried.map(|scale| (scale, error(scale)));
        errors.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(1.0, |(scale, _)| scale)
    };
    let scales: Vec<f32> = of_channel.iter().map(scale).collect();
    let nibble =
        |(index, value): (usize, &f32)| (level(*value, scales[channels.of(index)]) + 8.0) as u8;
    let nibbles: Vec<u8> = values.iter().enumerate().map(nibble).collect();
    let pairs = nibbles.chunks(2);
    (pairs.map(|pair| pair[0] | pair.get(1).copied().unwrap_or(8) << 4).collect(), scales)
}

/// A weight of a given shape from values at four bits.
/// Errors: [`ModelError::WeightShape`] for more or fewer values.
pub(crate) fn decode_int4(
    name: &str,
    view: &TensorView<'_>,
    shape: &[usize],
    scales: &[f32],
) -> Result<Weight, ModelError> {
    let count: usize = shape.iter().product();
    let channel = channels(shape);
    if view.data().len() != count.div_ceil(2) || scales.len() != channel.count {
        let (name, found) = (name.to_string(), vec![view.data().len(), scales.len()]);
        return Err(ModelError::WeightShape { name, found, expected: shape.to_vec() });
    }
    let nibbles = view.data().iter().flat_map(|byte| [byte & 15, byte >> 4]).take(count);
    let value = |(index, nibble)| (f32::from(nibble) - 8.0) * scales[channel.of(index)];
    Ok(Weight { shape: shape.to_vec(), values: nibbles.enumerate().map(value).collect() })
}

/// A weight from values at eight bits.
/// Errors: [`ModelError::WeightShape`] for another number of scales than channels.
pub(crate) fn decode_int8(
    name: &str,
    view: &TensorView<'_>,
    scales: &[f32],
) -> Result<Weight, ModelError> {
    let channel = channels(view.shape());
    if scales.len() != channel.count {
        let (name, found) = (format!("{name}{SCALE_SUFFIX}"), vec![scales.len()]);
        return Err(ModelError::WeightShape { name, found, expected: vec![channel.count] });
    }
    let levels = view.data().iter().map(|byte| f32::from(i8::from_le_bytes([*byte])));
    let values =
        levels.enumerate().map(|(index, level)| level * scales[channel.of(index)]).collect();
    Ok(Weight { shape: view.shape().to_vec(), values })
}

/// Layout of the output channels of a weight.
pub(crate) struct Channels {
    pub(crate) count: usize,
    /// Number of contiguous values of one channel.
    stride: usize,
}

impl Channels {
    /// The channel of the value at an index.
    pub(crate) fn of(&self, index: usize) -> usize {
        index / self.stride % self.count
    }
}

/// The output channels: the first axis of a convolution's `[outputs, inputs, k, k]`, the last of a linear layer's
/// `[inputs, outputs]`.
pub(crate) fn channels(shape: &[usize]) -> Channels {
    let (count, stride) = match shape {
        [outputs, rest @ ..] if shape.len() > 2 => (*outputs, rest.iter().product()),
        _ => (shape.last().copied().unwrap_or(1), 1),
    };
    Channels { count: count.max(1), stride: stride.max(1) }
}

/// Values of `N` bytes each, converted to f32.
pub(crate) fn floats<const N: usize>(bytes: &[u8], to_f32: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|value| to_f32(*value)).collect()
}

/// A weight from a tensor of floats of any width.
/// Errors: [`ModelError::WeightType`] for other types.
pub(crate) fn read_weight(name: &str, view: &TensorView<'_>) -> Result<Weight, ModelError> {
    let values = match view.dtype() {
        Dtype::F32 => floats(view.data(), f32::from_le_bytes),
        Dtype::F16 => floats(view.data(), |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => floats(view.data(), |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F64 => floats(view.data(), |bytes| f64::from_le_bytes(bytes) as f32),
        other => {
            let dtype = format!("{other:?}");
            return Err(ModelError::WeightType { name: name.into(), dtype });
        }
    };
    Ok(Weight { shape: view.shape().to_vec(), values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bit_values_keep_their_shape_and_scale_and_other_shapes_are_refused() {
        let values: Vec<f32> = (0..3 * 65).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let weight = Weight { shape: vec![65, 3], values };
        let stored = encode("source.classes.weight", &weight, Precision::Int8);
        let [(_, shape, Dtype::U8, bytes), (_, _, _, scales)] = &stored[..] else {
            panic!("{stored:?}")
        };
        assert_eq!(bytes.len(), 98, "two values a byte");
        let scales: Vec<f32> =
            scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let view = TensorView::new(Dtype::U8, shape.clone(), bytes).unwrap();
        let read = decode_int4("w", &view, &[65, 3], &scales).unwrap();
        assert_eq!(read.shape, weight.shape);
        let pairs = read.values.iter().zip(&weight.values);
        let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 0.15, "{error}");
        for shape in [[65, 4], [64, 3]] {
            assert!(decode_int4("w", &view, &shape, &scales).is_err());
        }
        assert_eq!(encode("classes.weight", &weight, Precision::Int8)[0].2, Dtype::I8);
    }
}
