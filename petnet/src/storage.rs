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
    /// networks", 2018): a quarter of the file. Biases and norms take two bytes, the large
    /// layers of a source head half a byte. It is a smaller file, not a faster network: weights
    /// are floats again once they are read. For inference in bytes, see
    /// [`Checkpoint::quantized`](crate::Checkpoint::quantized).
    Int8,
}

/// Before the names of a source head's weights.
const SOURCE: &str = crate::graph::SOURCE_PREFIX;
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
    let halves = |values: &[f32]| {
        let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
        halves.collect::<Vec<u8>>()
    };
    let fits = values.iter().all(|value| value.abs() <= f16::MAX.to_f32());
    match (precision, shape.len()) {
        (Precision::F16, 2..) => tensor(Dtype::F16, halves(values)),
        (Precision::Int8, 2..) if is_coarse(name, shape) => {
            let (bytes, scales) = nibbles(values, &channels(shape));
            vec![
                (name.to_string(), vec![bytes.len()], Dtype::U8, bytes),
                (format!("{name}{SCALE}"), vec![scales.len()], Dtype::F32, floats(&scales)),
            ]
        }
        (Precision::Int8, 2..) => {
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
        (Precision::Int8, _) if fits => tensor(Dtype::F16, halves(values)),
        (Precision::F32, _) | (Precision::F16 | Precision::Int8, _) => {
            tensor(Dtype::F32, floats(values))
        }
    }
}

/// True for weights of a source head that are stored at four bits a value: only two sums over its many classes are
/// used. Depthwise kernels, of few values each, are not worth it.
fn is_coarse(name: &str, shape: &[usize]) -> bool {
    /// Fewest values of a channel.
    const MANY: usize = 64;
    let channel = shape.iter().product::<usize>() / channels(shape).count;
    name.starts_with(SOURCE) && channel >= MANY
}

/// Values at four bits, two to a byte, the first in its lower half, and a scale for each channel. They are -7 to 7
/// scales, stored with 8 added. Of some scales, a channel takes the one with the smallest squared error: clipping the
/// largest values makes all others finer.
fn nibbles(values: &[f32], channels: &Channels) -> (Vec<u8>, Vec<f32>) {
    let step = |value: f32, scale: f32| (value / scale).round().clamp(-7.0, 7.0);
    let mut of_channel = vec![Vec::new(); channels.count];
    values
        .iter()
        .enumerate()
        .for_each(|(place, value)| of_channel[channels.of(place)].push(*value));
    let scale = |values: &Vec<f32>| {
        let largest = values.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let error = |scale: f32| -> f32 {
            values.iter().map(|value| (step(*value, scale) * scale - value).powi(2)).sum()
        };
        let tried = (8..=20).map(|share| largest / 7.0 * share as f32 / 20.0);
        let errors = tried.map(|scale| (scale, error(scale)));
        errors.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(1.0, |(scale, _)| scale)
    };
    let scales: Vec<f32> = of_channel.iter().map(scale).collect();
    let nibble =
        |(place, value): (usize, &f32)| (step(*value, scales[channels.of(place)]) + 8.0) as u8;
    let nibbles: Vec<u8> = values.iter().enumerate().map(nibble).collect();
    let pairs = nibbles.chunks(2);
    (pairs.map(|pair| pair[0] | pair.get(1).copied().unwrap_or(8) << 4).collect(), scales)
}

/// Values at four bits as a weight of a shape.
///
/// # Errors
/// [`ModelError::WeightShape`] for more or fewer values.
pub(crate) fn unpack_nibbles(
    name: &str,
    view: &TensorView<'_>,
    (shape, scales): (&[usize], &[f32]),
) -> Result<Weight, ModelError> {
    let count: usize = shape.iter().product();
    let channel = channels(shape);
    if view.data().len() != count.div_ceil(2) || scales.len() != channel.count {
        let (name, found) = (name.to_string(), vec![view.data().len(), scales.len()]);
        return Err(ModelError::WeightShape { name, found, expected: shape.to_vec() });
    }
    let nibbles = view.data().iter().flat_map(|byte| [byte & 15, byte >> 4]).take(count);
    let value = |(place, nibble)| (f32::from(nibble) - 8.0) * scales[channel.of(place)];
    Ok(Weight { shape: shape.to_vec(), values: nibbles.enumerate().map(value).collect() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_bytes_keep_shape_and_size_of_values_and_refuse_others() {
        let values: Vec<f32> = (0..3 * 65).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let weight = Weight { shape: vec![65, 3], values };
        let stored = store("source.classes.weight", &weight, Precision::Int8);
        let [(_, shape, Dtype::U8, bytes), (_, _, _, scales)] = &stored[..] else {
            panic!("{stored:?}")
        };
        assert_eq!(bytes.len(), 98, "two values a byte");
        let scales: Vec<f32> =
            scales.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let view = TensorView::new(Dtype::U8, shape.clone(), bytes).unwrap();
        let read = unpack_nibbles("w", &view, (&[65, 3], &scales)).unwrap();
        assert_eq!(read.shape, weight.shape);
        let pairs = read.values.iter().zip(&weight.values);
        let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 0.15, "{error}");
        for shape in [[65, 4], [64, 3]] {
            assert!(unpack_nibbles("w", &view, (&shape, &scales)).is_err());
        }
        assert_eq!(store("classes.weight", &weight, Precision::Int8)[0].2, Dtype::I8);
    }
}
