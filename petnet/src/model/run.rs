//! A network as those see it who know no tensors: bytes in, plain numbers out.

use burn::tensor::{Tensor, TensorData};

use super::Network;
use crate::engine::Outputs;
use crate::error::{Error, Result};
use crate::runner::Heat;

/// `[n, 3, s, s]` -> what the network says of each picture.
pub(crate) fn outputs(network: &Network, images: Tensor<4>) -> Result<Vec<Outputs>> {
    answers(network, network.features(images))
}

/// One picture, and where the network looked.
pub(crate) fn explain(network: &Network, image: Tensor<4>) -> Result<(Outputs, Heat)> {
    let (features, heat) = network.explain(image); // [1, width], [1, h, w]
    let [_, height, width] = heat.dims();
    let outputs = answers(network, features)?.pop().ok_or_else(nothing)?;
    Ok((outputs, ([height, width], numbers(heat)?)))
}

fn nothing() -> Error {
    Error::Device("an answer is missing".into())
}

fn answers(network: &Network, features: Tensor<2>) -> Result<Vec<Outputs>> {
    let logits = rows(network.classify(features.clone()))?; // [n, classes]
    let pairs = logits.into_iter().zip(rows(features)?);
    Ok(pairs.map(|(logits, features)| Outputs { logits, features }).collect())
}

/// `[n, size, size, 3]` bytes -> `[n, 3, size, size]` floats of 0 to 255 on the device.
pub(crate) fn to_tensor(bytes: Vec<u8>, size: usize, device: &burn::tensor::Device) -> Tensor<4> {
    let count = bytes.len() / (size * size * 3);
    let data = TensorData::new(bytes, [count, size, size, 3]).convert::<f32>();
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

/// A tensor's values, in order.
fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().map_err(|e| Error::Device(e.to_string()))?;
    data.try_into_vec_as::<f32>().map_err(|e| Error::Device(format!("{e:?}")))
}

/// `[n, m]` -> a vector a row.
pub(crate) fn rows(tensor: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, columns] = tensor.dims();
    Ok(numbers(tensor)?.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
}
