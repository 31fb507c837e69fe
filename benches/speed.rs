//! Median milliseconds per image of one case, for the scripts that compare with peers.
//! Run with `cargo run --release --features train --example speed -- step petnet 128 32`.

use std::time::Instant;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use petnet::arch::{Architecture, PetNetConfig};
use petnet::burn::Network;
use petnet::preprocess::{Pixels, Preprocess, Resize};
use petnet::{Checkpoint, Classifier, ModelInfo, Precision};

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
        ["petnet", stem, widths, depths] => Architecture::new(PetNetConfig {
            stem: stem.parse().expect("a number"),
            widths: numbers(widths),
            depths: numbers(depths),
            dropout: 0.0,
        }),
        _ => Architecture::named(name).expect("petnet or simple_cnn"),
    }
}

fn network(name: &str, device: &Device) -> Network {
    device.seed(1);
    let architecture = architecture(name);
    let graph = architecture.graph(2).expect("a network");
    Network::new(&graph, architecture.normalization(), device)
}

fn images(count: usize, side: usize, device: &Device) -> Tensor<4> {
    let values = (0..count * 3 * side * side).map(|i| (i * 7 % 256) as f32).collect();
    Tensor::from_data(TensorData::new::<f32, _>(values, [count, 3, side, side]), device)
}

/// A model file, or a network of random weights.
fn checkpoint(name: &str, side: usize) -> Checkpoint {
    if name.ends_with(".safetensors") {
        return Checkpoint::load(name).expect("a model file");
    }
    let preprocess = Preprocess { size: side as u32, resize: Resize::Squeeze };
    let architecture = architecture(name);
    let labels = vec!["cat".into(), "dog".into()];
    let mut info = ModelInfo::new(architecture.graph(2).expect("a network"), labels, preprocess);
    info.normalization = architecture.normalization();
    network(name, &Device::flex()).checkpoint(info).expect("a whole model")
}

fn pictures(side: usize, count: usize) -> Vec<Pixels> {
    (0..count)
        .map(|photo| (0..side * side * 3).map(|i| ((i + photo) * 7 % 256) as u8).collect())
        .filter_map(|values| Pixels::new(side as u32, side as u32, values))
        .collect()
}

/// Median microseconds of each convolution, and its rate.
fn profile(model: Checkpoint, side: usize) {
    let classifier = Classifier::new(model, petnet::Device::Cpu).expect("a model");
    let picture = &pictures(side, 1)[0];
    let runs: Vec<_> =
        (0..RUNS).map(|_| classifier.profile(picture).expect("a fitting picture")).collect();
    for (place, layer) in runs[0].iter().enumerate() {
        let mut times: Vec<_> = runs.iter().map(|layers| layers[place].time).collect();
        times.sort();
        let seconds = times[RUNS / 2].as_secs_f64();
        let rate = layer.flops as f64 / seconds * 1e-9;
        println!("{:32} {:9.0} us {rate:7.1} GFLOP/s", layer.name, seconds * 1e6);
    }
}

/// The model with the ranges of its feature maps on some images, for the engine's int8 plan.
fn quantized(name: &str, side: usize) -> Checkpoint {
    checkpoint(name, side).quantized(&pictures(side, 8)).expect("fitting pictures")
}

/// The library's call without decoding: the engine on `cpu`, burn on `flex`. Milliseconds
/// per image, and the first image's probability of the first class.
fn forward(model: Checkpoint, side: usize, count: usize, device: petnet::Device) {
    let classifier = Classifier::new(model, device).expect("a device");
    let pictures = pictures(side, count);
    let seconds = median(|| drop(classifier.classify_pixels(&pictures)));
    let answers = classifier.classify_pixels(&pictures).expect("answers");
    println!("{:.4} {:.6}", seconds * 1e3 / count as f64, answers[0].probabilities()[0]);
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
        eprintln!(
            "usage: speed forward|int8|flex|profile|profile-int8|step|size NETWORK|FILE SIDE BATCH"
        );
        eprintln!("       speed save NETWORK SIDE FILE");
        std::process::exit(2);
    };
    let side = side.parse().expect("a side");
    if what == "save" {
        return checkpoint(name, side).save(count, Precision::F32).expect("a writable file");
    }
    let count = count.parse().expect("a batch");
    match what.as_str() {
        "size" => {
            let parameters = network(name, &Device::flex()).num_params();
            let flops = architecture(name).flops(side).expect("a side that fits") as f64 * 1e-9;
            println!("{parameters} parameters, {flops:.3} GFLOP");
        }
        "profile" => profile(checkpoint(name, side), side),
        "profile-int8" => profile(quantized(name, side), side),
        "forward" => forward(checkpoint(name, side), side, count, petnet::Device::Cpu),
        "int8" => forward(quantized(name, side), side, count, petnet::Device::Cpu),
        "flex" => forward(checkpoint(name, side), side, count, petnet::Device::Flex),
        _ => println!("{:.4}", step(name, side, count) * 1e3 / count as f64),
    }
}
