//! `simple_cnn` against PyTorch: the fixture is written by `scripts/golden.py`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use burn::module::Module as _;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;

use super::Network;
use super::weights::{read, write};
use crate::arch::{Architecture, Normalization, SimpleCnnConfig};
use crate::storage::read_weight;
use crate::weights::{Weight, Weights};

const FIXTURE: &[u8] = include_bytes!("../../tests/golden/simple_cnn.safetensors");

fn tensor(name: &str) -> Weight {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    read_weight(name, &file.tensor(name).unwrap()).unwrap()
}

fn weights(prefix: &str) -> Weights {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let names = file.names().into_iter().filter_map(|name| name.strip_prefix(prefix));
    names.map(|name| (name.to_string(), tensor(&format!("{prefix}{name}")))).collect()
}

fn network(device: &Device) -> Network {
    let config = SimpleCnnConfig { channels: vec![4, 6, 8, 10], hidden: 8, dropout: 0.0 };
    let graph = Architecture::new(config).graph(2).unwrap();
    let network = Network::new(&graph, Normalization::default(), device);
    let names: Vec<String> = read(&network).into_keys().collect();
    let fixture: Vec<String> = weights("before.").into_keys().collect();
    assert_eq!(names, fixture, "layer names");
    write(network, &weights("before.")).unwrap()
}

fn images(device: &Device) -> Tensor<4> {
    let Weight { shape, values } = tensor("images");
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn logits_agree_with_pytorch_within_1e_4() {
    let device = Device::flex();
    let logits = network(&device).forward(images(&device));
    let ours = logits.into_data().try_into_vec_as::<f32>().unwrap();
    let theirs = tensor("logits").values;
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!((ours - theirs).abs() < 1e-4, "{ours} is not {theirs}");
    }
}

#[test]
fn one_step_of_adam_agrees_with_pytorch_within_1e_3() {
    let device = Device::flex().autodiff();
    let model = network(&device);
    let targets: Vec<i32> = tensor("targets").values.iter().map(|t| *t as i32).collect();
    let targets = Tensor::<1, Int>::from_ints(targets.as_slice(), &device);
    let loss = burn::nn::loss::CrossEntropyLossConfig::new()
        .init(&device)
        .forward(model.forward(images(&device)), targets);
    let value = loss.clone().into_scalar::<f32>();
    assert!((value - tensor("loss").values[0]).abs() < 1e-4, "loss {value}");
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let decay = Some(WeightDecayConfig::new(1e-4));
    let mut adam = AdamConfig::new().with_epsilon(1e-8).with_weight_decay(decay).init();
    let ours = read(&adam.step(1e-3, model, gradients).valid());
    for (name, theirs) in weights("after.") {
        for (ours, theirs) in ours[&name].values.iter().zip(&theirs.values) {
            assert!((ours - theirs).abs() < 1e-3, "{name}: {ours} is not {theirs}");
        }
    }
}
