//! What runs a classifier's network: the CPU's engine, or burn on any device.

use burn::tensor::{Tensor, TensorData};

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::device::Device;
use crate::engine::{self, Outputs, Plan};
use crate::error::{Error, Result};
use crate::model::Network;

/// A network in a form that can be run.
#[derive(Debug)]
pub(crate) enum Runner {
    Engine(Plan),
    Burn { network: Network, device: burn::tensor::Device },
}

/// Rows, columns and values of a heat map.
pub(crate) type Heat = ([usize; 2], Vec<f32>);

impl Runner {
    pub(crate) fn new(checkpoint: Checkpoint, device: Device) -> Result<(ModelInfo, Self)> {
        if device == Device::Cpu {
            let (info, weights) = checkpoint.into_parts();
            let plan = engine::compile(&info.architecture, info.normalization, &weights)
                .map_err(|e| Error::checkpoint("<weights>", e))?;
            return Ok((info, Self::Engine(plan)));
        }
        let device = device.open()?;
        let (info, network) = checkpoint.network(&device)?;
        Ok((info, Self::Burn { network, device }))
    }

    /// `pixels` are `[count, side, side, 3]`.
    pub(crate) fn run(&self, pixels: Vec<u8>, count: usize, side: usize) -> Result<Vec<Outputs>> {
        match self {
            Self::Engine(plan) => Ok(plan.run(&pixels, count, side)),
            Self::Burn { network, device } => {
                outputs(network, to_tensor(pixels, count, side, device))
            }
        }
    }

    /// One picture, and where the network looked.
    pub(crate) fn explain(&self, pixels: Vec<u8>, side: usize) -> Result<(Outputs, Heat)> {
        match self {
            Self::Engine(plan) => {
                let explained = plan.explain(&pixels, side);
                let (outputs, size, heat) = explained.ok_or_else(nothing)?;
                Ok((outputs, (size, heat)))
            }
            Self::Burn { network, device } => {
                let image = to_tensor(pixels, 1, side, device); // [1, 3, s, s]
                let (features, heat) = network.explain(image); // [1, width], [1, h, w]
                let [_, height, width] = heat.dims();
                let outputs = answers(network, features)?.pop().ok_or_else(nothing)?;
                Ok((outputs, ([height, width], numbers(heat)?)))
            }
        }
    }
}

fn nothing() -> Error {
    Error::Device("an answer is missing".into())
}

/// `[n, 3, s, s]` -> what the network says of each picture.
pub(crate) fn outputs(network: &Network, images: Tensor<4>) -> Result<Vec<Outputs>> {
    answers(network, network.features(images))
}

fn answers(network: &Network, features: Tensor<2>) -> Result<Vec<Outputs>> {
    let logits = rows(network.classify(features.clone()))?; // [n, classes]
    let pairs = logits.into_iter().zip(rows(features)?);
    Ok(pairs.map(|(logits, features)| Outputs { logits, features }).collect())
}

/// `[n, size, size, 3]` bytes -> `[n, 3, size, size]` floats of 0 to 255 on the device.
pub(crate) fn to_tensor(
    bytes: Vec<u8>,
    count: usize,
    size: usize,
    device: &burn::tensor::Device,
) -> Tensor<4> {
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
