//! A network behind an interface without tensors: bytes in, plain numbers out.

use burn::tensor::activation::relu;
use burn::tensor::{Tensor, TensorData};

use super::{Network, weights};
use crate::checkpoint::Checkpoint;
use crate::engine::{Head, Heat, Outputs, SourceOutputs};
use crate::error::{Error, Result};
use crate::metrics::argmax;

/// A network, and the source head on its trunk, as a whole network of its own.
#[derive(Debug)]
pub(crate) struct Networks {
    pub(crate) own: Network,
    pub(crate) source: Option<Network>,
    /// Blocks that both networks begin with; `None` where they share all feature maps.
    blocks: Option<usize>,
}

impl Networks {
    /// A model's networks on a device.
    /// Errors: [`Error::Checkpoint`] for a source head that is not a network.
    pub(crate) fn load(checkpoint: &Checkpoint, device: &burn::tensor::Device) -> Result<Self> {
        let own = Network::load(checkpoint, device)?;
        let source = checkpoint.source_network()?;
        let source = source.map(|source| Network::load(&source, device)).transpose()?;
        let shared = checkpoint.info().source.as_ref().map(|source| source.shared());
        let ends = own.graph().blocks().iter();
        let blocks = ends.zip(1..).find(|(end, _)| Some(**end) == shared).map(|(_, blocks)| blocks);
        Ok(Self { own, source, blocks })
    }

    /// A network without a source head.
    #[cfg(all(test, feature = "flex"))]
    pub(crate) fn alone(own: Network) -> Self {
        Self { own, source: None, blocks: None }
    }

    /// `[n, 3, s, s]` -> each image's outputs.
    pub(crate) fn outputs(&self, images: Tensor<4>) -> Result<Vec<Outputs>> {
        let Some(source) = &self.source else { return outputs(&self.own, images) };
        let [own, source_features] = match self.blocks {
            Some(blocks) => {
                let maps = self.own.trunk(images, blocks);
                let own = self.own.features_after(maps.clone(), blocks); // [n, width]
                [own, source.features_after(maps, blocks)]
            }
            None => {
                let features = self.own.features(images); // [n, width]
                [features.clone(), features]
            }
        };
        let source_features = outputs_of_features(source, source_features)?.into_iter();
        let pairs = outputs_of_features(&self.own, own)?.into_iter().zip(source_features);
        let joined = pairs.map(|(own, Outputs { logits, features, .. })| Outputs {
            source: Some(SourceOutputs { logits, features }),
            ..own
        });
        Ok(joined.collect())
    }
}

/// `[n, 3, s, s]` -> each image's outputs.
pub(crate) fn outputs(network: &Network, images: Tensor<4>) -> Result<Vec<Outputs>> {
    outputs_of_features(network, network.features(images))
}

/// One image's outputs and heat map.
pub(crate) fn explain(networks: &Networks, image: Tensor<4>) -> Result<(Outputs, Heat)> {
    let network = &networks.own;
    let outputs = networks.outputs(image.clone())?.pop();
    let outputs = outputs.ok_or_else(|| Error::Device("an answer is missing".into()))?;
    let maps = network.maps(image);
    let head = Head::new(network.graph(), &weights::read(network))
        .map_err(|reason| Error::checkpoint("<network>", reason))?;
    let gradient = head.gradient(&outputs.features, argmax(&outputs.logits));
    let maps = maps.nchw(); // [1, c, h, w]
    let [_, channels, height, width] = maps.dims();
    let gradient = Tensor::<1>::from_floats(gradient.as_slice(), &maps.device());
    let heat = relu((maps * gradient.reshape([1, channels, 1, 1])).sum_dim(1)); // [1, 1, h, w]
    Ok((outputs, Heat { height, width, values: values(heat)? }))
}

/// Means of the last feature maps, `[n, width]` -> each image's outputs.
pub(crate) fn outputs_of_features(network: &Network, features: Tensor<2>) -> Result<Vec<Outputs>> {
    let logits = rows(network.classify(features.clone()))?; // [n, classes]
    let pairs = logits.into_iter().zip(rows(features)?);
    Ok(pairs.map(|(logits, features)| Outputs { logits, features, source: None }).collect())
}

/// `[n, size, size, 3]` bytes -> `[n, 3, size, size]` floats of 0 to 255 on the device.
pub(crate) fn to_tensor(bytes: Vec<u8>, size: usize, device: &burn::tensor::Device) -> Tensor<4> {
    let shape = [bytes.len() / (size * size * 3), size, size, 3];
    #[cfg(feature = "wgpu")]
    if !crate::device::is_on_host(device) {
        return unpack_bytes(bytes, shape, device).permute([0, 3, 1, 2]);
    }
    let data = TensorData::new(bytes, shape).convert::<f32>();
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

/// Bytes as floats. They are sent to the device packed in 32-bit integers, a quarter of the size of floats, and unpacked
/// there: not every GPU has 8-bit integers.
#[cfg(feature = "wgpu")]
fn unpack_bytes(mut bytes: Vec<u8>, shape: [usize; 4], device: &burn::tensor::Device) -> Tensor<4> {
    use burn::tensor::Int;

    let count = bytes.len();
    bytes.resize(count.next_multiple_of(4), 0);
    let words: Vec<i32> =
        bytes.as_chunks::<4>().0.iter().map(|four| i32::from_le_bytes(*four)).collect();
    let words = Tensor::<1, Int>::from_ints(words.as_slice(), device); // [n / 4]
    let byte = |place: i32| {
        // The shift is arithmetic: the mask removes copies of the sign bit.
        words.clone().bitwise_right_shift_scalar(8 * place).bitwise_and_scalar(255).float()
    };
    let bytes: Tensor<2> = Tensor::stack((0..4).map(byte).collect(), 1); // [n / 4, 4]
    bytes.reshape([-1]).slice(0..count).reshape(shape)
}

/// A tensor's values, in order.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().map_err(|e| Error::Device(e.to_string()))?;
    data.try_into_vec_as::<f32>().map_err(|e| Error::Device(format!("{e:?}")))
}

/// `[n, m]` -> a vector a row.
pub(crate) fn rows(tensor: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let [_, columns] = tensor.dims();
    Ok(values(tensor)?.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
}
