#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use burn::module::Module as _;
use burn::tensor::{Device, Tensor, TensorData};

use super::maps::{ConvLayer, apply_epilogue};
use super::*;
use crate::arch::Architecture;
use crate::arch::tests::small;
use crate::graph::{Activation, Padding, Window};
use crate::kernel::tests::{assert_close, values};

fn noise<const D: usize>(shape: [usize; D], seed: u32, device: &Device) -> Tensor<D> {
    let values = values(shape.iter().product(), seed);
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec_as::<f32>().unwrap()
}

struct Layer {
    config: graph::Conv2d,
    conv: Conv2d,
    norm: BatchNorm,
}

impl Layer {
    fn new(config: graph::Conv2d, device: &Device) -> Self {
        let norm = BatchNormConfig::new(config.outputs).init(device);
        Self { config, conv: conv(&config, device), norm }
    }

    fn forward(
        &self,
        x: FeatureMaps,
        residual: Option<FeatureMaps>,
        epilogue: NormEpilogue,
    ) -> FeatureMaps {
        let conv = ConvLayer { config: self.config, layer: &self.conv, mixed: false };
        let (x, bias) = conv.forward(x);
        apply_epilogue(x, bias, Some(&self.norm), residual, epilogue)
    }
}

/// Output, and gradients of the input, the residual and all weights, flat.
fn run(
    layer: &Layer,
    [x, residual, gradient]: [Tensor<4>; 3],
    epilogue: NormEpilogue,
    (fast, with_residual): (bool, bool),
) -> Vec<Vec<f32>> {
    let (x, residual) = (x.require_grad(), residual.require_grad());
    let maps = |maps: &Tensor<4>| match fast {
        true => FeatureMaps::new(maps.clone()),
        false => FeatureMaps::new_nchw(maps.clone()),
    };
    let added = with_residual.then(|| maps(&residual));
    let out = layer.forward(maps(&x), added, epilogue).nchw();
    let [n, c, h, w] = out.dims();
    let gradient = gradient.slice([0..n, 0..c, 0..h, 0..w]);
    let grads = (out.clone() * gradient).sum().backward();
    let mut all = vec![flat(out.inner()), flat(x.grad(&grads).unwrap())];
    if with_residual {
        all.push(flat(residual.grad(&grads).unwrap()));
    }
    all.push(flat(layer.conv.weight.val().grad(&grads).unwrap()));
    all.push(flat(layer.norm.gamma.val().grad(&grads).unwrap()));
    all.push(flat(layer.norm.beta.val().grad(&grads).unwrap()));
    all
}

fn close(ours: &[Vec<f32>], theirs: &[Vec<f32>], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (part, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert_close(ours, theirs, &format!("{what} part {part}"));
    }
}

#[test]
fn the_kernels_give_what_burns_own_operations_give_and_their_gradients() {
    let device = Device::flex().autodiff();
    let (centred, same) = (Window::centred, Window::same);
    let unpadded = Window { kernel: 3, stride: 2, padding: Padding::Explicit(0) };
    // height, width, images, inputs, outputs, window, depthwise
    let cases = [
        (9_usize, 7_usize, 3, 3, 5, centred(3, 1), false),
        (8, 8, 2, 3, 16, centred(3, 2), false),
        (7, 6, 9, 12, 50, centred(3, 1), false),
        (6, 6, 17, 20, 33, same(3, 2), false),
        (5, 8, 8, 16, 24, centred(1, 2), false),
        (4, 5, 3, 9, 17, unpadded, false),
        (2, 2, 6, 8, 49, centred(3, 1), false),
        (9, 12, 5, 3, 17, centred(7, 2), false),
        (9, 7, 3, 6, 6, same(3, 1), true),
        (8, 11, 2, 33, 33, same(3, 2), true),
        (12, 9, 3, 20, 20, same(5, 1), true),
        (11, 12, 4, 70, 70, same(5, 2), true),
        (5, 5, 2, 16, 16, centred(5, 1), true),
        (7, 5, 2, 9, 9, centred(3, 3), true),
        (8, 8, 2, 8, 8, unpadded, true),
    ];
    for (case, (h, w, n, inputs, outputs, window, depthwise)) in cases.into_iter().enumerate() {
        device.seed(case as u64);
        let groups = if depthwise { inputs } else { 1 };
        let config = graph::Conv2d { inputs, outputs, window, groups, bias: case % 2 == 0 };
        let layer = Layer::new(config, &device);
        let seed = case as u32 * 3;
        let (oh, ow) = (window.output(h).unwrap(), window.output(w).unwrap());
        let tensors = [
            noise([n, inputs, h, w], seed + 1, &device),
            noise([n, outputs, oh, ow], seed + 2, &device),
            noise([n, outputs, oh, ow], seed + 3, &device),
        ];
        let relu = Some(Activation::Relu);
        for (activation, pool, residual) in [
            (None, false, false),
            (relu, false, false),
            (relu, false, true),
            (Some(Activation::Relu6), false, true),
            (Some(Activation::Relu6), false, false),
            (relu, true, false),
        ] {
            let epilogue = NormEpilogue { activation, pool: pool && oh > 1 && ow > 1 };
            let ours = run(&layer, tensors.clone(), epilogue, (true, residual));
            let theirs = run(&layer, tensors.clone(), epilogue, (false, residual));
            close(&ours, &theirs, &format!("case {case} {epilogue:?}"));
        }
    }
}

#[test]
fn max_pools_give_what_burns_own_give_and_their_gradients() {
    let device = Device::flex().autodiff();
    let windows =
        [Window::centred(3, 2), Window::same(3, 2), Window::same(2, 2), Window::centred(3, 1)];
    for (case, (n, c, h, w)) in
        [(1, 1, 2, 2), (2, 3, 7, 8), (3, 17, 8, 9), (5, 8, 16, 5)].into_iter().enumerate()
    {
        for window in windows {
            let x = noise([n, c, h, w], case as u32, &device);
            let sides = [window.output(h).unwrap(), window.output(w).unwrap()];
            let gradient = noise([n, c, sides[0], sides[1]], case as u32 + 9, &device);
            let [ours, theirs] = [true, false].map(|fast| {
                let x = x.clone().require_grad();
                let maps = |x| if fast { FeatureMaps::new(x) } else { FeatureMaps::new_nchw(x) };
                let out = maps(x.clone()).max_pool(window).nchw();
                let gradients = (out.clone() * gradient.clone()).sum().backward();
                let plain = flat(maps(x.clone().inner()).max_pool(window).nchw());
                [flat(out.inner()), flat(x.grad(&gradients).unwrap()), plain]
            });
            assert_eq!(ours, theirs, "case {case} {window:?}");
        }
    }
}

#[test]
fn running_statistics_and_inference_agree_with_burns() {
    let device = Device::flex().autodiff();
    device.seed(5);
    let x = noise([6, 4, 8, 8], 7, &device);
    let config = graph::Conv2d {
        inputs: 4,
        outputs: 10,
        window: Window::centred(3, 1),
        groups: 1,
        bias: true,
    };
    let first = Layer::new(config, &device);
    let mut second = Layer::new(config, &device);
    (second.conv, second.config) = (first.conv.clone(), first.config);
    let epilogue = NormEpilogue { activation: Some(Activation::Relu), pool: false };
    for _ in 0..3 {
        first.forward(FeatureMaps::new_nchw(x.clone()), None, epilogue);
        second.forward(FeatureMaps::new(x.clone()), None, epilogue);
    }
    let x = x.inner();
    let epilogue = NormEpilogue { pool: true, ..epilogue };
    let [first, second] = [first, second].map(|layer| Layer {
        config,
        conv: layer.conv.valid(),
        norm: layer.norm.valid(),
    });
    let theirs = first.forward(FeatureMaps::new_nchw(x.clone()), None, epilogue).nchw();
    let ours = second.forward(FeatureMaps::new(x), None, epilogue).nchw();
    let distance = (ours - theirs).abs().max().into_scalar::<f32>();
    assert!(distance < 1e-5, "{distance}");
}

#[test]
fn running_statistics_do_not_depend_on_the_thread_of_a_step() {
    let device = Device::flex();
    let window = Window::centred(3, 1);
    let config = graph::Conv2d { inputs: 3, outputs: 4, window, groups: 1, bias: false };
    let first = Layer::new(config, &device.clone().autodiff());
    let statistics = |fast: bool, other_threads: bool| {
        let mut layer = Layer::new(config, &device.clone().autodiff());
        layer.conv = first.conv.clone();
        for step in 0..3 {
            let x = noise([2, 3, 8, 8], step, &device.clone().autodiff());
            let x = if fast { FeatureMaps::new(x) } else { FeatureMaps::new_nchw(x) };
            let pass = || layer.forward(x, None, NormEpilogue { activation: None, pool: false });
            match other_threads && step % 2 == 1 {
                true => std::thread::scope(|scope| scope.spawn(pass).join().unwrap()),
                false => pass(),
            };
        }
        [&layer.norm.running_mean, &layer.norm.running_var].map(|running| flat(running.value()))
    };
    for fast in [false, true] {
        assert_eq!(statistics(fast, true), statistics(fast, false), "fast: {fast}");
    }
}

/// Compares heat maps; returns true where any value is above 0.
fn heat_agrees(architecture: &Architecture, device: &Device) -> bool {
    let without_dropout = architecture.with("dropout", 0.0);
    let graph = without_dropout.as_ref().unwrap_or(architecture).graph(3).unwrap();
    let net = Network::new(&graph, Normalization::default(), device);
    let values: Vec<f32> = (0..3 * 40 * 40).map(|i| (i * 31 % 251) as f32).collect();
    let image = Tensor::<4>::from_data(TensorData::new(values, [1, 3, 40, 40]), device);
    // Inference: the norms' running statistics.
    let plain = net.valid();
    let maps = plain.maps(image.clone().inner()).nchw(); // [1, c, h, w]
    let tracked = Tensor::<4>::from_inner(maps.clone()).require_grad();
    let [_, c, h, w] = tracked.dims();
    let pooled = tracked.clone().reshape([1, c, h * w]).mean_dim(2).reshape([1, c]);
    let logits = net.clone().no_grad().classify(pooled);
    let gradients = logits.max_dim(1).sum().backward();
    let gradient = tracked.grad(&gradients).unwrap(); // [1, c, h, w]
    // Grad-CAM weighs each channel by the mean of its gradient.
    let weights = gradient.sum_dim(2).sum_dim(3); // [1, c, 1, 1]
    let expected = burn::tensor::activation::relu((maps * weights).sum_dim(1));
    let (_, heat) = run::explain(&run::Networks::alone(plain), image.inner()).unwrap();
    assert_eq!([heat.height, heat.width], [h, w]);
    let theirs = flat(expected);
    let hot = theirs.iter().any(|value| *value > 0.0);
    assert_close(&heat.values, &theirs, architecture.name());
    hot
}

/// Of every architecture: the weighted sum of the last feature maps by the gradient of the likeliest logit.
#[test]
fn the_heat_map_is_what_automatic_differentiation_gives() {
    let device = Device::flex().autodiff();
    for architecture in small() {
        // Other tests draw from the same generator: which of some networks have a heat is not known.
        let hot = (0..16).filter(|_| heat_agrees(&architecture, &device)).count();
        assert!(hot > 0, "{architecture:?}");
    }
}

/// Blocks run alone give what the whole gives.
#[test]
fn a_trunk_and_what_follows_it_are_the_whole() {
    let device = Device::flex();
    for architecture in small() {
        let graph = architecture.graph(3).unwrap();
        let net = Network::new(&graph, Normalization::default(), &device);
        let images = noise([2, 3, 40, 40], 4, &device) * 100.0 + 120.0;
        let whole = flat(net.features(images.clone()));
        for blocks in 0..=graph.blocks().len() {
            let trunk = net.trunk(images.clone(), blocks);
            let parts = flat(net.features_after(trunk, blocks));
            assert_eq!(parts, whole, "{} {blocks}", architecture.name());
        }
    }
}
