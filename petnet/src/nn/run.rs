//! A network as those see it who know no tensors: bytes in, plain numbers out.

use burn::tensor::activation::relu;
use burn::tensor::{Tensor, TensorData};

use super::{Network, weights};
use crate::engine::{Head, Heat, Outputs};
use crate::error::{Error, Result};
use crate::metrics::argmax;

/// `[n, 3, s, s]` -> what the network says of each picture.
pub(crate) fn outputs(network: &Network, images: Tensor<4>) -> Result<Vec<Outputs>> {
    answers(network, network.features(images))
}

/// One image's outputs and heat map.
pub(crate) fn explain(network: &Network, image: Tensor<4>) -> Result<(Outputs, Heat)> {
    let maps = network.maps(image);
    let outputs = answers(network, maps.clone().mean())?.pop().ok_or_else(nothing)?;
    let head = Head::new(network.graph(), &weights::read(network))
        .map_err(|reason| Error::checkpoint("<network>", reason))?;
    let gradient = head.gradient(&outputs.features, argmax(&outputs.logits));
    let maps = maps.nchw(); // [1, c, h, w]
    let [_, channels, height, width] = maps.dims();
    let gradient = Tensor::<1>::from_floats(gradient.as_slice(), &maps.device());
    let heat = relu((maps * gradient.reshape([1, channels, 1, 1])).sum_dim(1)); // [1, 1, h, w]
    Ok((outputs, Heat { height, width, values: numbers(heat)? }))
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
