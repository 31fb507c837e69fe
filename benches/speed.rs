//! Median milliseconds per image of one case, for scripts/bench-peers.sh.
//! Run with `cargo run --release --features train --example speed -- step petnet 128 32`.

use std::time::Instant;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use petnet::model::{Architecture, Network, Normalization, PetNetConfig};
use petnet::preprocess::{Pixels, Preprocess, Resize};
use petnet::{Checkpoint, Classifier, ModelInfo};

const RUNS: usize = 15;

fn median(mut work: impl FnMut()) -> f64 {
    (0..3).for_each(|_| work());
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[RUNS / 2]
}

/// A name, or `petnet/STEM/WIDTHS/DEPTHS` with numbers between commas.
fn architecture(name: &str) -> Architecture {
    let numbers = |text: &str| text.split(',').map(|n| n.parse().expect("a number")).collect();
    match name.split('/').collect::<Vec<_>>()[..] {
        ["petnet", stem, widths, depths] => Architecture::PetNet(PetNetConfig {
            stem: stem.parse().expect("a number"),
            widths: numbers(widths),
            depths: numbers(depths),
            dropout: 0.0,
        }),
        _ => Architecture::named(name, 0.0).expect("petnet or simple_cnn"),
    }
}

fn network(name: &str, device: &Device) -> Network {
    architecture(name).build(2, Normalization::default(), device)
}

fn images(count: usize, side: usize, device: &Device) -> Tensor<4> {
    let values = (0..count * 3 * side * side).map(|i| (i * 7 % 256) as f32).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [count, 3, side, side]), device)
}

/// What a user calls, without decoding: the engine on `cpu`, burn's path on `flex`.
fn forward(name: &str, side: usize, count: usize, device: petnet::Device) -> f64 {
    let network = network(name, &Device::flex());
    let architecture = architecture(name);
    let preprocess = Preprocess { size: side as u32, resize: Resize::Squeeze };
    let info = ModelInfo::new(architecture, vec!["cat".into(), "dog".into()], preprocess);
    let classifier = Classifier::new(Checkpoint::new(info, &network), device).expect("a device");
    let pictures: Vec<Pixels> = (0..count)
        .map(|photo| (0..side * side * 3).map(|i| ((i + photo) * 7 % 256) as u8).collect())
        .filter_map(|values| Pixels::new(side as u32, side as u32, values))
        .collect();
    median(|| drop(classifier.classify_pixels(&pictures)))
}

fn step(name: &str, side: usize, count: usize) -> f64 {
    let device = Device::flex().autodiff();
    let (mut network, batch) = (network(name, &device), images(count, side, &device));
    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
    let mut sgd = SgdConfig::new().with_momentum(Some(momentum)).init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let classes: Vec<i32> = (0..count as i32).map(|i| i % 2).collect();
    let targets = Tensor::<1, Int>::from_ints(classes.as_slice(), &device);
    median(|| {
        let loss = loss.forward(network.forward(batch.clone()), targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = sgd.step(1e-3, network.clone(), gradients);
    })
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, name, side, count] = arguments.as_slice() else {
        eprintln!("usage: speed forward|flex|step|size NETWORK SIDE BATCH");
        std::process::exit(2);
    };
    let (side, count) = (side.parse().expect("a side"), count.parse().expect("a batch"));
    let seconds = match what.as_str() {
        "size" => {
            let parameters = network(name, &Device::flex()).num_params();
            let flops = architecture(name).flops(side) as f64 * 1e-9;
            return println!("{parameters} parameters, {flops:.3} GFLOP");
        }
        "forward" => forward(name, side, count, petnet::Device::Cpu),
        "flex" => forward(name, side, count, petnet::Device::Flex),
        _ => step(name, side, count),
    };
    println!("{:.4}", seconds * 1e3 / count as f64);
}
