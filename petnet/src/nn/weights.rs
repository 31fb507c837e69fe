//! A network's parameters as named, flat numbers, and back.

use burn::module::{Param, RunningState};
use burn::tensor::{Tensor, TensorData};

use super::Network;
use crate::error::ModelError;
use crate::graph::Op;
use crate::passes;
use crate::weights::{Weight, Weights};

/// Reads every parameter and every running statistic.
pub(crate) fn read(network: &Network) -> Weights {
    let mut weights = Weights::new();
    for (node, index) in network.graph.nodes().iter().zip(&network.layer_indices) {
        let mut put = |part: &str, weight: Weight| {
            weights.insert(format!("{}.{part}", node.name), weight);
        };
        match node.op {
            Op::Conv2d(_) => {
                let conv = &network.convs[*index];
                put("weight", read_tensor(conv.weight.val()));
                conv.bias.iter().for_each(|bias| put("bias", read_tensor(bias.val())));
            }
            Op::BatchNorm { .. } => {
                let norm = &network.norms[*index];
                put("weight", read_tensor(norm.gamma.val()));
                put("bias", read_tensor(norm.beta.val()));
                put("running_mean", read_tensor(norm.running_mean.value_sync()));
                put("running_var", read_tensor(norm.running_var.value_sync()));
            }
            Op::Linear { .. } => {
                let linear = &network.linears[*index];
                put("weight", read_tensor(linear.weight.val()));
                linear.bias.iter().for_each(|bias| put("bias", read_tensor(bias.val())));
            }
            _ => {}
        }
    }
    weights
}

/// Replaces every parameter and every running statistic.
/// Errors: [`ModelError`] names the first weight that is missing, superfluous or of another shape.
pub(crate) fn write(mut network: Network, weights: &Weights) -> Result<Network, ModelError> {
    passes::validate(network.graph.nodes().iter().flat_map(passes::parameters), weights)?;
    let Network { graph, layer_indices, convs, norms, linears, .. } = &mut network;
    for (node, index) in graph.nodes().iter().zip(layer_indices.iter()) {
        let get = |part: &str| {
            let name = format!("{}.{part}", node.name);
            weights.get(&name).ok_or(ModelError::MissingWeight(name))
        };
        match node.op {
            Op::Conv2d(_) => {
                let conv = &mut convs[*index];
                conv.weight = replace(conv.weight.clone(), get("weight")?);
                if let Some(bias) = conv.bias.take() {
                    conv.bias = Some(replace(bias, get("bias")?));
                }
            }
            Op::BatchNorm { .. } => {
                let norm = &mut norms[*index];
                norm.gamma = replace(norm.gamma.clone(), get("weight")?);
                norm.beta = replace(norm.beta.clone(), get("bias")?);
                set_statistic(&norm.running_mean, get("running_mean")?);
                set_statistic(&norm.running_var, get("running_var")?);
            }
            Op::Linear { .. } => {
                let linear = &mut linears[*index];
                linear.weight = replace(linear.weight.clone(), get("weight")?);
                if let Some(bias) = linear.bias.take() {
                    linear.bias = Some(replace(bias, get("bias")?));
                }
            }
            _ => {}
        }
    }
    Ok(network)
}

fn read_tensor<const D: usize>(tensor: Tensor<D>) -> Weight {
    let shape = tensor.dims().to_vec();
    let values = tensor.into_data().try_into_vec_as().unwrap_or_default();
    Weight { shape, values }
}

fn tensor_data(weight: &Weight) -> TensorData {
    TensorData::new(weight.values.clone(), weight.shape.clone())
}

fn replace<const D: usize>(param: Param<Tensor<D>>, weight: &Weight) -> Param<Tensor<D>> {
    param.map(|old| {
        let new = Tensor::from_data(tensor_data(weight), &old.device());
        if old.is_require_grad() { new.require_grad() } else { new }
    })
}

fn set_statistic(running: &RunningState<Tensor<1>>, weight: &Weight) {
    let old = running.value_sync();
    running.update(Tensor::from_data(tensor_data(weight), &old.device()));
    running.value_sync();
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use burn::module::Module as _;
    use burn::store::ModuleRecord;
    use burn::tensor::Device;

    use super::*;
    use crate::arch::{Architecture, Normalization};
    use crate::checkpoint::ModelInfo;
    use crate::preprocess::{Preprocess, Resize};

    #[test]
    fn burns_own_file_holds_every_weight() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bpk");
        let device = Device::flex();
        let graph = Architecture::named("petnet").unwrap().graph(3).unwrap();
        let network = Network::new(&graph, Normalization::default(), &device);
        let labels = ["a", "b", "c"].map(String::from).into();
        let preprocess = Preprocess { size: 32, resize: Resize::Squeeze };
        let info = ModelInfo::new(graph.clone(), labels, preprocess);
        network.checkpoint(info).unwrap().save_burnpack(&path).unwrap();
        let other = Network::new(&graph, Normalization::default(), &device);
        assert_ne!(read(&other), read(&network));
        let loaded = other.try_load_record(ModuleRecord::load(&path).unwrap()).unwrap();
        assert_eq!(read(&loaded), read(&network));
    }
}
