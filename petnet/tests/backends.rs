//! The wgpu backend beside the CPU: outputs and gradients, also where a part of the network is frozen (burn issues 5162
//! and 5202: gradients that are not numbers with fusion or autotune, or with some parameters untracked).
//! `scripts/backends.sh` runs it on software Vulkan; a real GPU is taken where there is one.
#![cfg(all(feature = "train", feature = "wgpu"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use petnet::{Checkpoint, ModelInfo};
#[path = "common/networks.rs"]
mod networks;

use petnet::arch::Normalization;
use petnet::burn::module::{Module, ModuleVisitor, Param};
use petnet::burn::nn::loss::CrossEntropyLossConfig;
use petnet::burn::optim::{GradientsParams, SgdConfig};
use petnet::burn::tensor::{Device, Int, Tensor, TensorData};
use petnet::burn::{Network, open};
use petnet::preprocess::{Preprocess, Resize};

const SIDE: usize = 24;
const IMAGES: usize = 3;

#[derive(Default)]
struct Collected {
    gradients: Option<GradientsParams>,
    values: Vec<Option<Vec<f32>>>,
}

impl ModuleVisitor for Collected {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = self.gradients.as_ref().and_then(|all| all.get::<D>(param.id));
        self.values.push(gradient.map(flat));
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec_as::<f32>().unwrap()
}

fn images(device: &Device) -> Tensor<4> {
    let values = (0..IMAGES * 3 * SIDE * SIDE).map(|i| (i * 7919 % 251) as f32).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [IMAGES, 3, SIDE, SIDE]), device)
}

/// Logits of inference, and the gradients of a step's loss with so many blocks frozen.
fn run(network: &Network, device: &Device, frozen: usize) -> (Vec<f32>, Vec<Option<Vec<f32>>>) {
    let autodiff = device.clone().autodiff();
    let logits = flat(network.clone().valid().forward(images(device)));
    let trained = match frozen {
        0 => network.forward(images(&autodiff)),
        blocks => {
            let maps = network.clone().valid().trunk(images(device), blocks).lifted();
            network.classify(network.features_after(maps, blocks))
        }
    };
    let targets = Tensor::<1, Int>::from_ints([0, 1, 2], &autodiff);
    let loss = CrossEntropyLossConfig::new().init(&autodiff).forward(trained, targets);
    let gradients = GradientsParams::from_grads(loss.backward(), network);
    let mut collected = Collected { gradients: Some(gradients), ..Default::default() };
    network.visit(&mut collected);
    (logits, collected.values)
}

fn close(ours: &[f32], theirs: &[f32], limit: f32, what: &str) -> f32 {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(1.0_f32, |top, value| top.max(value.abs()));
    let far = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs() / scale);
    let worst =
        far.fold(0.0_f32, |top, far| if (top + far).is_nan() { f32::NAN } else { top.max(far) });
    assert!(worst < limit, "{what}: {worst}");
    worst
}

#[test]
fn wgpu_gives_the_outputs_and_the_gradients_of_the_cpu() {
    let (cpu, gpu) =
        (open(petnet::Device::Cpu).unwrap(), open(petnet::Device::Wgpu(None)).unwrap());
    for architecture in networks::small(0.0) {
        let graph = architecture.graph(3).unwrap();
        cpu.seed(7);
        let ours = Network::new(&graph, Normalization::default(), &cpu.clone().autodiff());
        let labels = ["a", "b", "c"].map(String::from).into();
        let preprocess = Preprocess { size: SIDE as u32, resize: Resize::Squeeze };
        let checkpoint = ours.checkpoint(ModelInfo::new(graph, labels, preprocess)).unwrap();
        for frozen in [0, 1] {
            let ours = Network::load(&checkpoint, &cpu.clone().autodiff()).unwrap();
            let theirs = Network::load(&checkpoint, &gpu.clone().autodiff()).unwrap();
            let (logits, gradients) = run(&ours, &cpu, frozen);
            let (gpu_logits, gpu_gradients) = run(&theirs, &gpu, frozen);
            let what = format!("{}, {frozen} blocks frozen", architecture.name());
            let forward = close(&gpu_logits, &logits, 1e-4, &what);
            let mut backward = 0.0_f32;
            assert_eq!(gradients.len(), gpu_gradients.len(), "{what}");
            for (ours, theirs) in gradients.iter().zip(&gpu_gradients) {
                // A bias before a batch norm has a gradient of zero, which the CPU's kernels leave out.
                let zeros = vec![0.0; ours.as_ref().or(theirs.as_ref()).map_or(0, Vec::len)];
                let [ours, theirs] = [ours, theirs].map(|given| given.as_ref().unwrap_or(&zeros));
                backward = backward.max(close(theirs, ours, 1e-3, &what));
            }
            println!("{what}: outputs {forward:.1e} apart, gradients {backward:.1e}");
        }
    }
}

const STEPS: usize = 50;
const CLASSES: usize = 3;

/// Each image has stripes of its class, with noise.
fn batch(step: usize, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let images = 2 * CLASSES;
    let pixel = |index: usize| {
        let (image, place) = (index / (3 * SIDE * SIDE), index % (SIDE * SIDE));
        let (x, y, class) = (place % SIDE, place / SIDE, image % CLASSES);
        let stripe = [x, y, x + y][class] / 3 % 2;
        (stripe * 100 + (index * 7919 + step * 104_729) % 97) as f32
    };
    let values = (0..images * 3 * SIDE * SIDE).map(pixel).collect::<Vec<_>>();
    let targets = (0..images as i32).map(|image| image % CLASSES as i32).collect::<Vec<_>>();
    let images = Tensor::from_data(TensorData::new(values, [images, 3, SIDE, SIDE]), device);
    (images, Tensor::from_ints(targets.as_slice(), device))
}

/// The loss of each step, and logits of inference afterwards, which the running statistics of batch norms go into.
fn train(checkpoint: &Checkpoint, device: &Device) -> (Vec<f32>, Vec<f32>) {
    let autodiff = device.clone().autodiff();
    let mut network = Network::load(checkpoint, &autodiff).unwrap();
    let mut optimizer = SgdConfig::new().init();
    let losses = (0..STEPS).map(|step| {
        let (images, targets) = batch(step, &autodiff);
        let logits = network.forward(images);
        let loss = CrossEntropyLossConfig::new().init(&autodiff).forward(logits, targets);
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.02, network.clone(), gradients);
        loss.into_scalar::<f32>()
    });
    let losses = losses.collect();
    (losses, flat(network.valid().forward(batch(STEPS, device).0)))
}

#[test]
fn fifty_steps_on_wgpu_go_as_on_the_cpu() {
    let (cpu, gpu) =
        (open(petnet::Device::Cpu).unwrap(), open(petnet::Device::Wgpu(None)).unwrap());
    for architecture in networks::small(0.0) {
        let graph = architecture.graph(CLASSES).unwrap();
        cpu.seed(7);
        let network = Network::new(&graph, Normalization::default(), &cpu.clone().autodiff());
        let labels = ["a", "b", "c"].map(String::from).into();
        let preprocess = Preprocess { size: SIDE as u32, resize: Resize::Squeeze };
        let checkpoint = network.checkpoint(ModelInfo::new(graph, labels, preprocess)).unwrap();
        let (losses, logits) = train(&checkpoint, &cpu);
        let (gpu_losses, gpu_logits) = train(&checkpoint, &gpu);
        let name = architecture.name();
        println!("{name}: loss {} -> {}", losses[0], losses[STEPS - 1]);
        assert!(losses[STEPS - 1] < losses[0], "{name} learns nothing: {losses:?}");
        let worst = close(&gpu_losses, &losses, 1e-3, &format!("losses of {name}"));
        let after = close(&gpu_logits, &logits, 1e-3, &format!("logits of {name} after training"));
        println!(
            "{name}: losses of {STEPS} steps {worst:.1e} apart, logits afterwards {after:.1e}"
        );
    }
}
