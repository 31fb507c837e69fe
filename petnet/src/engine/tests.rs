#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use burn::tensor::Device;
use proptest::prelude::*;

use super::layer::{Form, Input, Layer, Shape};

use super::*;
use crate::architecture::{
    Architecture, Normalization, PetNetConfig, ResNetConfig, SimpleCnnConfig,
};
use crate::model::Network;
use crate::model::run;
use crate::model::weights;
use crate::weights::Weights;

/// Weights of a network whose norms have seen something.
fn weights(architecture: &Architecture, device: &Device) -> Weights {
    let network = Network::new(architecture, 3, Normalization::default(), device);
    let mut weights = weights::read(&network);
    for (name, weight) in &mut weights {
        let shift =
            if name.ends_with("running_var") || name.ends_with("gamma") { 0.6 } else { -0.4 };
        if name.contains("norm") || name.ends_with("bias") {
            for (place, value) in weight.values.iter_mut().enumerate() {
                *value = (place * 37 % 11) as f32 / 11.0 + shift;
            }
        }
    }
    weights
}

#[test]
fn the_engine_says_what_burn_says() {
    let device = Device::flex();
    let simple = |channels: &[usize], hidden| {
        let channels = channels.to_vec();
        Architecture::SimpleCnn(SimpleCnnConfig { channels, hidden, dropout: 0.0 })
    };
    let petnet = |stem, widths: &[usize], depths: &[usize]| {
        let (widths, depths) = (widths.to_vec(), depths.to_vec());
        Architecture::PetNet(PetNetConfig { stem, widths, depths, dropout: 0.0 })
    };
    let resnet = |widths: &[usize], depths: &[usize]| {
        let (widths, depths) = (widths.to_vec(), depths.to_vec());
        Architecture::ResNet(ResNetConfig { widths, depths, dropout: 0.0 })
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
    for (number, (architecture, side)) in cases.into_iter().enumerate() {
        device.seed(number as u64);
        let weights = weights(&architecture, &device);
        let network = Network::new(&architecture, 3, Normalization::default(), &device);
        let network = weights::write(network, weights.clone()).unwrap();
        let plan = compile(&architecture, 3, Normalization::default(), side, &weights).unwrap();
        for count in [1, 2, 9] {
            let pixels: Vec<u8> = (0..count * side * side * 3)
                .map(|i| ((i * 7919 + i / 13 * 31) % 256) as u8)
                .collect();
            let images = run::to_tensor(pixels.clone(), side, &device);
            let theirs = run::outputs(&network, images).unwrap();
            // Twice: the second pass finds buffers that were used.
            for _ in 0..2 {
                let ours = plan.run(&pixels);
                assert_eq!(ours.len(), count);
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    close(&ours.logits, &theirs.logits);
                    close(&ours.features, &theirs.features);
                }
            }
        }
        let pixels: Vec<u8> = (0..side * side * 3).map(|i| (i * 31 % 251) as u8).collect();
        let image = run::to_tensor(pixels.clone(), side, &device);
        let (_, heat) = network.explain(image);
        let [_, height, width] = heat.dims();
        let (_, size, ours) = plan.explain(&pixels);
        assert_eq!(size, [height, width]);
        close(&ours, &heat.into_data().try_into_vec_as::<f32>().unwrap());
    }
}

fn close(ours: &[f32], theirs: &[f32]) {
    let scale = theirs.iter().fold(1.0_f32, |top, value| top.max(value.abs()));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < 2e-5 * scale, "{ours} is not {theirs}");
    }
}

#[test]
fn a_missing_weight_is_named() {
    let architecture = Architecture::PetNet(PetNetConfig::default());
    let mut weights = weights(&architecture, &Device::flex());
    weights.remove("PetNet.blocks.2.first.norm.beta");
    let error = compile(&architecture, 3, Normalization::default(), 64, &weights).unwrap_err();
    assert!(error.contains("PetNet.blocks.2.first.norm.beta"), "{error}");
}

/// Values between -1 and 1 without a pattern that layers could share.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// What a layer should do, as its definition says it.
struct Twin<'a> {
    form: Form,
    input: Shape,
    /// `[row, column, channel]`, without a border.
    x: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
}

impl Twin<'_> {
    fn at(&self, y: usize, x: usize, output: usize) -> f64 {
        let Form { inputs, kernel, stride, .. } = self.form;
        let mut sum = f64::from(self.bias[output]);
        for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
            let row = (y * stride + ky).checked_sub(kernel / 2);
            let column = (x * stride + kx).checked_sub(kernel / 2);
            let Some((row, column)) = row.zip(column) else { continue };
            if row >= self.input.height || column >= self.input.width {
                continue;
            }
            let pixel = (row * self.input.width + column) * inputs;
            for input in 0..inputs {
                let weight = self.weights[((output * inputs + input) * kernel + ky) * kernel + kx];
                sum += f64::from(self.x[pixel + input]) * f64::from(weight);
            }
        }
        sum
    }

    /// With the largest of two by two, the shortcut and ReLU.
    fn finished(&self, [y, x, output]: [usize; 3], shortcut: f32) -> f64 {
        let sum = if self.form.pool {
            let places = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let pooled = places.map(|(dy, dx)| self.at(2 * y + dy, 2 * x + dx, output));
            pooled.into_iter().fold(f64::NEG_INFINITY, f64::max)
        } else {
            self.at(y, x, output) + f64::from(shortcut)
        };
        if self.form.relu { sum.max(0.0) } else { sum }
    }
}

/// Where a value of a bordered map lies.
fn place(shape: Shape, [y, x, channel]: [usize; 3]) -> usize {
    (y + shape.border) * shape.row() + shape.inside().start + x * shape.channels + channel
}

fn indices(Shape { height, width, channels, .. }: Shape) -> impl Iterator<Item = [usize; 3]> {
    (0..height * width * channels).map(move |i| {
        let (pixel, channel) = (i / channels, i % channels);
        [pixel / width, pixel % width, channel]
    })
}

fn forms() -> impl Strategy<Value = (Form, Shape, bool, u32)> {
    let sides = (2..28_usize, 2..28_usize, 1..40_usize, 1..50_usize);
    let kernels = prop_oneof![Just(1), Just(3), Just(7)];
    let kinds = (kernels, 1..3_usize, any::<bool>(), any::<bool>(), any::<bool>());
    (sides, kinds, any::<u32>()).prop_map(|(sides, kinds, seed)| {
        let (height, width, inputs, outputs) = sides;
        let (kernel, stride, relu, pool, shared) = kinds;
        let border = (kernel / 2).max(1);
        let pool = pool && stride == 1;
        let form = Form { inputs, outputs, kernel, stride, relu, pool };
        (form, Shape { height, width, channels: inputs, border }, shared, seed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_layer_does_what_its_definition_says((form, input, shared, seed) in forms()) {
        let Form { inputs, outputs, kernel, .. } = form;
        let x = values(input.height * input.width * inputs, seed);
        let weights = values(outputs * inputs * kernel * kernel, seed ^ 1);
        let bias = values(outputs, seed ^ 2);
        let layer = Layer::new(form, &weights, bias.clone(), input);
        let mut map = vec![0.0; input.len()];
        indices(input).zip(&x).for_each(|(at, value)| map[place(input, at)] = *value);
        let shape = layer.shape(input);
        let shortcut = (!form.pool && seed % 2 == 0).then(|| values(shape.len(), seed ^ 3));
        // Whatever is not the inside must stay as it is.
        let mut out = vec![7.0; shape.len()];
        layer.run(Input { values: &map, shape: input, shared }, shortcut.as_deref(), &mut out);
        let twin = Twin { form, input, x: &x, weights: &weights, bias: &bias };
        let scale = 1.0 + (inputs * kernel * kernel) as f64;
        for at in indices(shape) {
            let place = place(shape, at);
            let added = shortcut.as_ref().map_or(0.0, |map| map[place]);
            let (ours, theirs) = (f64::from(out[place]), twin.finished(at, added));
            prop_assert!((ours - theirs).abs() < 1e-6 * scale, "{ours} is not {theirs} at {at:?}");
            out[place] = 7.0;
        }
        prop_assert!(out.iter().all(|value| *value == 7.0), "the border was written to");
    }
}

/// The same tests over again, in processes that take narrower vectors than the machine has.
#[test]
fn narrower_vectors_do_the_same() {
    if std::env::var_os("PETNET_TEST_VECTORS").is_some() {
        return;
    }
    for vectors in ["avx2", "none"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env("PETNET_TEST_VECTORS", vectors)
            .args(["engine::", "model::layers::"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{vectors}: {text}");
        assert!(text.contains("definition_says ... ok"), "{vectors}: {text}");
    }
}
