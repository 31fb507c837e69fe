#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use burn::tensor::Device;
use proptest::prelude::*;

use super::Engine;
use super::compile::border_width;
use super::dense::{ConvSpec, DenseConv};
use super::depthwise::DepthwiseConv;
use super::shape::{Input, Shape};
use crate::arch::tests::small;
use crate::arch::{Architecture, Normalization, PetNetConfig, ResNetConfig, SimpleCnnConfig};
use crate::error::ModelError;
use crate::graph::{Activation, Builder, Conv2d, Graph, Padding, Window};
use crate::kernel::tests::{assert_close, values};
use crate::nn::{Network, run, weights};
use crate::weights::Weights;

/// Weights of a network whose batch norms have statistics other than the initial ones.
fn weights(graph: &Graph, device: &Device) -> Weights {
    let network = Network::new(graph, Normalization::default(), device);
    let mut weights = weights::read(&network);
    for (name, weight) in &mut weights {
        let norm = name.contains("norm");
        let shift = if name.ends_with("running_var") || (norm && name.ends_with("weight")) {
            0.6
        } else {
            -0.4
        };
        if norm || name.ends_with("bias") {
            for (index, value) in weight.values.iter_mut().enumerate() {
                *value = (index * 37 % 11) as f32 / 11.0 + shift;
            }
        }
    }
    weights
}

fn compiled(graph: &Graph, side: usize, weights: &Weights) -> Result<Engine, ModelError> {
    Engine::new(super::NetworkSpec::new(graph, side, weights))
}

/// A network with operations that no architecture of the table has: steps that begin with no convolution, a depthwise
/// convolution of the image, a map added to itself, residuals with borders, pools of all kinds.
fn unusual() -> Graph {
    let mut net = Builder::new("unusual");
    let image = net.depthwise("image.conv", Builder::IMAGE, Window::same(5, 1));
    let image = net.activation(image, Activation::Relu6);
    let pooled = net.max_pool(Builder::IMAGE, Window::centred(3, 1));
    let x = net.add(image, pooled);
    let x = net.conv_norm("stem", x, 9, Window::same(3, 2));
    let twice = net.add(x, x);
    let norm = net.batch_norm("twice.norm", twice, 1e-3);
    let x = net.activation(norm, Activation::Relu);
    let deep = net.depthwise_norm("deep", x, Window::same(5, 1));
    let wide = net.conv_norm("wide", deep, 9, Window::centred(7, 1));
    let sum = net.add(wide, deep);
    let sum = net.activation(sum, Activation::Relu6);
    let x = net.max_pool(sum, Window::same(2, 2));
    let x = net.conv_norm("last", x, 20, Window::centred(1, 2));
    let x = net.max_pool(x, Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) });
    let features = net.global_avg_pool(x);
    let hidden = net.linear("hidden", features, 7);
    let hidden = net.activation(hidden, Activation::Relu6);
    net.linear("head", hidden, 3);
    net.build().unwrap()
}

/// A chain of sums, whose first map needs a wider border than all others.
fn chained_sums() -> Graph {
    let mut net = Builder::new("chained sums");
    let first = net.conv_norm("stem", Builder::IMAGE, 8, Window::same(3, 2));
    let mut x = first;
    for name in ["second", "third", "fourth"] {
        let inner = net.conv_norm(name, x, 8, Window::centred(3, 1));
        x = net.add(inner, x);
    }
    let wide = net.conv_norm("wide", first, 8, Window::centred(7, 1));
    let x = net.add(wide, x);
    let features = net.global_avg_pool(x);
    net.linear("head", features, 3);
    net.build().unwrap()
}

#[test]
fn the_engine_agrees_with_burn() {
    let device = Device::flex();
    let simple = |channels: &[usize], hidden| {
        let channels = channels.to_vec();
        Architecture::new(SimpleCnnConfig { channels, hidden, dropout: 0.0 })
    };
    let petnet = |stem, widths: &[usize], depths: &[usize]| {
        let (widths, depths) = (widths.to_vec(), depths.to_vec());
        Architecture::new(PetNetConfig { stem, widths, depths, dropout: 0.0 })
    };
    let resnet = |widths: &[usize], depths: &[usize]| {
        let (widths, depths) = (widths.to_vec(), depths.to_vec());
        Architecture::new(ResNetConfig { widths, depths, dropout: 0.0 })
    };
    let cases = [
        (resnet(&[8, 12], &[1, 2]), 32),
        (resnet(&[5, 16, 20], &[2, 1, 1]), 45),
        (resnet(&[16, 24], &[1, 1]), 7),
        (simple(&[5, 16, 33], 7), 24),
        (simple(&[32, 64], 128), 21),
        (petnet(6, &[10, 20, 50], &[1, 2, 1]), 32),
        (petnet(32, &[48, 96], &[2, 1]), 45),
        (petnet(7, &[16], &[1]), 9),
        (simple(&[16, 40, 24], 9), 72),
        (petnet(16, &[32, 50], &[1, 1]), 80),
    ];
    let sides =
        [33, 48, 64].into_iter().flat_map(|side| small().into_iter().map(move |a| (a, side)));
    let graphs = cases.into_iter().chain(sides).map(|(a, side)| (a.graph(3).unwrap(), side));
    let unusual = [(unusual(), 15), (unusual(), 32), (chained_sums(), 24)];
    for (number, (graph, side)) in graphs.chain(unusual).enumerate() {
        device.seed(number as u64);
        let weights = weights(&graph, &device);
        let network = Network::new(&graph, Normalization::default(), &device);
        let network = weights::write(network, &weights).unwrap();
        let plan = compiled(&graph, side, &weights).unwrap();
        for count in [1, 2, 9] {
            let pixels: Vec<u8> = (0..count * side * side * 3)
                .map(|i| ((i * 7919 + i / 13 * 31) % 256) as u8)
                .collect();
            let images = run::to_tensor(pixels.clone(), side, &device);
            let expected = run::outputs(&network, images).unwrap();
            // Twice: the second pass reuses the memory of the first.
            for _ in 0..2 {
                let actual = plan.run(&pixels);
                assert_eq!(actual.len(), count);
                for (actual, expected) in actual.iter().zip(&expected) {
                    assert_close(&actual.logits, &expected.logits, graph.name());
                    assert_close(&actual.features, &expected.features, graph.name());
                }
            }
        }
        let pixels: Vec<u8> = (0..side * side * 3).map(|i| (i * 31 % 251) as u8).collect();
        let image = run::to_tensor(pixels.clone(), side, &device);
        let (_, expected) = run::explain(&run::Networks::alone(network), image).unwrap();
        let (_, actual) = plan.explain(&pixels);
        assert_eq!([actual.height, actual.width], [expected.height, expected.width]);
        assert_close(&actual.values, &expected.values, graph.name());
    }
}

#[test]
fn a_missing_weight_is_named() {
    let graph = Architecture::named("petnet").unwrap().graph(3).unwrap();
    let mut weights = weights(&graph, &Device::flex());
    let name = "blocks.2.first.norm.bias";
    weights.remove(name);
    let error = compiled(&graph, 64, &weights).unwrap_err();
    assert_eq!(error, ModelError::MissingWeight(name.into()));
}

/// A convolution by its definition.
struct Definition<'a> {
    spec: ConvSpec,
    input: Shape,
    /// `[row, column, channel]`, without a border.
    x: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
}

impl Definition<'_> {
    fn at(&self, y: usize, x: usize, output: usize) -> f64 {
        let Conv2d { inputs, window, groups, .. } = self.spec.conv;
        let Window { kernel, stride, .. } = window;
        let Shape { height, width, .. } = self.input;
        let [above, left] = [height, width].map(|len| window.padding(len)[0]);
        let group = inputs / groups;
        let first = if groups == 1 { 0 } else { output };
        let mut sum = f64::from(self.bias[output]);
        for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
            let row = (y * stride + ky).checked_sub(above).filter(|row| *row < height);
            let column = (x * stride + kx).checked_sub(left).filter(|column| *column < width);
            let Some((row, column)) = row.zip(column) else { continue };
            let pixel = (row * width + column) * inputs + first;
            for input in 0..group {
                let weight = self.weights[((output * group + input) * kernel + ky) * kernel + kx];
                sum += f64::from(self.x[pixel + input]) * f64::from(weight);
            }
        }
        sum
    }

    /// A value of the output, with max pool, residual and activation.
    fn with_epilogue(&self, [y, x, output]: [usize; 3], residual: f32) -> f64 {
        let sum = if self.spec.fused_max_pool {
            let pixels = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let pooled = pixels.map(|(dy, dx)| self.at(2 * y + dy, 2 * x + dx, output));
            pooled.into_iter().fold(f64::NEG_INFINITY, f64::max)
        } else {
            self.at(y, x, output) + f64::from(residual)
        };
        let bounds =
            self.spec.activation.map_or([f32::NEG_INFINITY, f32::INFINITY], Activation::bounds);
        sum.clamp(f64::from(bounds[0]), f64::from(bounds[1]))
    }
}

/// Offset of a value of a map with a border.
fn offset(shape: Shape, [y, x, channel]: [usize; 3]) -> usize {
    (y + shape.border) * shape.row_len()
        + shape.inner_columns().start
        + x * shape.channels
        + channel
}

fn indices(Shape { height, width, channels, .. }: Shape) -> impl Iterator<Item = [usize; 3]> {
    (0..height * width * channels).map(move |i| {
        let (pixel, channel) = (i / channels, i % channels);
        [pixel / width, pixel % width, channel]
    })
}

/// A convolution, the shapes of its maps, whether it runs on all threads, and a seed.
fn specs() -> impl Strategy<Value = (ConvSpec, [Shape; 2], bool, u32)> {
    let sides = (2..28_usize, 2..28_usize, 1..40_usize, 1..50_usize);
    let kinds = (1..8_usize, 1..4_usize, 0..3_usize, any::<bool>(), any::<bool>(), any::<bool>());
    (sides, kinds, 0..3_usize, any::<bool>(), any::<u32>()).prop_filter_map(
        "the window fits",
        |((height, width, inputs, outputs), kinds, border, parallel, seed)| {
            let (kernel, stride, activation, pool, same, depthwise) = kinds;
            let padding =
                if same { Padding::Same } else { Padding::Explicit(seed as usize % kernel) };
            let window = Window { kernel, stride, padding };
            let (outputs, groups) = if depthwise { (inputs, inputs) } else { (outputs, 1) };
            let conv = Conv2d { inputs, outputs, window, groups, bias: false };
            let pool = pool && groups == 1;
            let activation = [None, Some(Activation::Relu), Some(Activation::Relu6)][activation];
            let divisor = if pool { 2 } else { 1 };
            let size = [window.output(height)? / divisor, window.output(width)? / divisor];
            let needs = border_width(window, height).max(border_width(window, width));
            let own = if groups == 1 { needs } else { 0 };
            let input = Shape { height, width, channels: inputs, border: own + border / 2 };
            let output = Shape { height: size[0], width: size[1], channels: outputs, border };
            let spec = ConvSpec { conv, activation, fused_max_pool: pool };
            (size[0] * size[1] > 0).then_some((spec, [input, output], parallel, seed))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_convolution_equals_its_definition((spec, shapes, parallel, seed) in specs()) {
        let Conv2d { inputs, outputs, window, groups, .. } = spec.conv;
        let [input, shape] = shapes;
        let group = inputs / groups;
        let x = values(input.height * input.width * inputs, seed);
        let weights = values(outputs * group * window.kernel * window.kernel, seed ^ 1);
        let bias = values(outputs, seed ^ 2);
        let mut map = vec![0.0; input.len()];
        indices(input).zip(&x).for_each(|(at, value)| map[offset(input, at)] = *value);
        let residual = (!spec.fused_max_pool && seed % 2 == 0).then(|| values(shape.len(), seed ^ 3));
        // The border must not be written.
        let mut out = vec![7.0; shape.len()];
        let read = Input { values: &map, shape: input, parallel };
        if !spec.conv.is_depthwise() {
            let conv = DenseConv::new(spec, &weights, bias.clone(), shapes);
            conv.run(read, residual.as_deref(), &mut out);
        } else {
            let conv = DepthwiseConv::new(window, spec.activation, &weights, bias.clone(), shapes);
            conv.run(read, residual.as_deref(), &mut out);
        }
        let definition = Definition { spec, input, x: &x, weights: &weights, bias: &bias };
        let scale = 1.0 + (group * window.kernel * window.kernel) as f64;
        for at in indices(shape) {
            let index = offset(shape, at);
            let added = residual.as_ref().map_or(0.0, |map| map[index]);
            let (actual, expected) = (f64::from(out[index]), definition.with_epilogue(at, added));
            prop_assert!((actual - expected).abs() < 1e-6 * scale, "{actual} is not {expected} at {at:?}");
            out[index] = 7.0;
        }
        prop_assert!(out.iter().all(|value| *value == 7.0), "the border was written to");
    }
}

/// Repeats the tests in processes that use narrower vectors than the machine has.
#[test]
fn narrower_vectors_do_the_same() {
    if std::env::var_os("PETNET_TEST_VECTORS").is_some() {
        return;
    }
    let narrower = ["scalar", "avx2"];
    for vectors in &narrower[..if cfg!(target_arch = "x86_64") { 2 } else { 1 }] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env("PETNET_TEST_VECTORS", vectors)
            .args(["engine::", "kernel::", "nn::tests::"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{vectors}: {text}");
        assert!(text.contains("its_definition ... ok"), "{vectors}: {text}");
    }
}
