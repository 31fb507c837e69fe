//! Against torchvision: the fixture is written by `scripts/golden.py`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use burn::tensor::Device;
use serde::Deserialize;

use super::keys::{assign_weights, convert};
use crate::arch::{Architecture, EfficientNetLiteConfig, Keys, Normalization, ResNetConfig, Stage};
use crate::engine::{Engine, NetworkSpec};
use crate::error::ModelError;
use crate::nn::{Network, run, weights as nn_weights};
use crate::weights::{Weight, Weights};

#[derive(Deserialize)]
struct Fixture {
    shapes: BTreeMap<String, Vec<usize>>,
    logits: Vec<Vec<f32>>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../tests/golden/resnet18.json")).unwrap()
}

/// The numbers that `drawn` of the script gives.
fn drawn(name: &str, shape: &[usize]) -> Weight {
    let seed = name
        .bytes()
        .fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    let (scale, shift) = match shape {
        [outputs, _, k, _] => ((6.0 / (outputs * k * k) as f64).sqrt(), 0.0),
        [_, inputs] => ((3.0 / *inputs as f64).sqrt(), 0.0),
        _ if name.ends_with("running_var") || name.ends_with("weight") => (0.5, 1.0),
        _ => (0.2, 0.0),
    };
    let count = shape.iter().product::<usize>() as u32;
    let values = (0..count).map(|i| {
        let mut x = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        x ^= x >> 16;
        ((f64::from(x) / 2_147_483_648.0 - 1.0) * scale + shift) as f32
    });
    Weight { shape: shape.to_vec(), values: values.collect() }
}

fn resnet18() -> Weights {
    fixture().shapes.iter().map(|(name, shape)| (name.clone(), drawn(name, shape))).collect()
}

#[test]
fn resnet18_gives_torchvisions_logits_within_1e_3_on_the_engine_and_on_burn() {
    let (found, ours) = convert(resnet18()).unwrap();
    assert_eq!(found.architecture, Architecture::new(ResNetConfig::default()));
    let graph = found.architecture.graph(10).unwrap();
    let network = NetworkSpec::new(&graph, 64, &ours);
    assert_logits(network, &fixture().logits, 1e-3);
}

/// Compares the logits of a network on the engine and on burn with given ones, one row per image.
fn assert_logits(spec: NetworkSpec<'_>, expected: &[Vec<f32>], tolerance: f32) {
    let (device, side) = (Device::flex(), spec.side);
    let network = Network::new(spec.graph, spec.normalization, &device);
    let network = nn_weights::write(network, spec.weights).unwrap();
    let count = expected.len() * side * side * 3;
    let pixels: Vec<u8> = (0..count).map(|i| ((i * 7919 + i / 13 * 31) % 256) as u8).collect();
    let images = run::to_tensor(pixels.clone(), side, &device);
    let burn = run::outputs(&network, images).unwrap();
    let engine = Engine::new(spec).unwrap().run(&pixels);
    for ((engine, burn), expected) in engine.iter().zip(&burn).zip(expected) {
        let logits = engine.logits.iter().zip(&burn.logits).zip(expected);
        for ((engine, burn), expected) in logits {
            assert!((burn - expected).abs() < tolerance, "burn: {burn} is not {expected}");
            assert!((engine - expected).abs() < tolerance, "engine: {engine} is not {expected}");
        }
    }
}

/// The first three stages of `resnet18` and a last layer for two classes.
fn improved_cnn() -> Weights {
    let mut weights = resnet18();
    weights.retain(|name, _| !name.starts_with("layer4"));
    weights.insert("fc.weight".into(), drawn("fc.weight", &[2, 256]));
    weights.insert("fc.bias".into(), drawn("fc.bias", &[2]));
    weights
}

#[test]
fn the_first_three_stages_are_improved_cnn_and_what_does_not_fit_is_named() {
    let weights = improved_cnn();
    let (found, _) = convert(weights.clone()).unwrap();
    assert_eq!((found.architecture.name(), found.classes), ("improved_cnn", 2));
    let broken = |change: &dyn Fn(&mut Weights)| {
        let mut weights = weights.clone();
        change(&mut weights);
        convert(weights).map(|_| ()).unwrap_err()
    };
    let error = broken(&|weights| drop(weights.remove("layer2.0.bn1.bias")));
    assert_eq!(error, ModelError::MissingWeight("layer2.0.bn1.bias".into()));
    let error = broken(&|weights| {
        weights.insert("aux.weight".into(), drawn("aux", &[3]));
    });
    assert_eq!(error, ModelError::UnusedWeight("aux.weight".into()));
    let error = broken(&|weights| {
        weights.insert("layer1.0.conv3.weight".into(), drawn("c", &[256, 64, 1, 1]));
    });
    // Bottlenecks are not known.
    assert!(matches!(error, ModelError::UnknownNetwork { .. }), "{error}");
    let error = broken(&|weights| {
        weights.insert("fc.weight".into(), drawn("c", &[2, 512]));
    });
    let (name, found, expected) = ("fc.weight".into(), vec![2, 512], vec![2, 256]);
    assert_eq!(error, ModelError::WeightShape { name, found, expected });
}

/// A network whose parts do not fit together must be refused before anything is built of it.
#[test]
fn shapes_that_do_not_meet_are_refused() {
    let sound = |change: &dyn Fn(&mut Weights)| {
        let mut weights = resnet18();
        change(&mut weights);
        convert(weights).map(|_| ())
    };
    assert_eq!(sound(&|_| ()), Ok(()));
    let conv = |weights: &mut Weights, conv: &str, norm: &str, shape: [usize; 4]| {
        weights.insert(format!("{conv}.weight"), drawn("c", &shape));
        for part in ["weight", "bias", "running_mean", "running_var"] {
            weights.insert(format!("{norm}.{part}"), drawn("n", &shape[..1]));
        }
    };
    let wide = |w: &mut Weights| conv(w, "layer1.0.conv2", "layer1.0.bn2", [512, 64, 3, 3]);
    let narrow =
        |w: &mut Weights| conv(w, "layer2.0.downsample.0", "layer2.0.downsample.1", [8, 64, 1, 1]);
    let extra =
        |w: &mut Weights| conv(w, "layer1.0.downsample.0", "layer1.0.downsample.1", [64, 64, 1, 1]);
    let missing = |w: &mut Weights| w.retain(|name, _| !name.contains("layer2.0.downsample"));
    let empty = |w: &mut Weights| {
        w.insert("fc.weight".into(), drawn("f", &[0, 512]));
        w.insert("fc.bias".into(), drawn("f", &[0]));
    };
    type Change<'a> = &'a dyn Fn(&mut Weights);
    let changes = [("wide", &wide as Change<'_>), ("narrow", &narrow), ("extra", &extra)];
    let others = [("missing", &missing as Change<'_>), ("empty", &empty)];
    for (name, change) in changes.into_iter().chain(others) {
        let error = sound(change).expect_err(name);
        let fits = match error {
            ModelError::WeightShape { .. } => name == "wide" || name == "narrow",
            ModelError::MissingWeight(_) => name == "missing",
            ModelError::UnusedWeight(_) => name == "extra",
            ModelError::Description(_) => name == "empty",
            _ => false,
        };
        assert!(fits, "{name}: {error}");
    }
}

/// Under any keys, behind any prefix that all weights share, beside an optimiser's state and as doubles.
#[test]
fn weights_are_found_at_any_depth() {
    for prefix in ["state_dict.model.net.", "net.", "weights.", "module._orig_mod."] {
        let prefixed = |(name, weight): (String, Weight)| (format!("{prefix}{name}"), weight);
        let weights: Weights = improved_cnn().into_iter().map(prefixed).collect();
        let (found, taken) = convert(weights.clone()).unwrap();
        assert_eq!((found.architecture.name(), taken.len()), ("improved_cnn", 77), "{prefix}");
        let mut beside = weights;
        beside.insert("loss.weight".into(), drawn("l", &[2]));
        let (found, _) = convert(beside).unwrap();
        assert_eq!(found.architecture.name(), "improved_cnn", "{prefix}");
    }
    // Names of simple_cnn are free, also beside a loss's weights.
    let layers = [("0", vec![4, 3, 3, 3]), ("5", vec![6, 4]), ("7", vec![2, 6])];
    let mut simple = Weights::from([("state_dict.criterion.weight".into(), drawn("c", &[2]))]);
    for (layer, shape) in layers {
        let name = format!("state_dict.model.net.{layer}");
        simple.insert(format!("{name}.bias"), drawn("b", &shape[..1]));
        simple.insert(format!("{name}.weight"), drawn("w", &shape));
    }
    for part in ["weight", "bias", "running_mean", "running_var"] {
        simple.insert(format!("state_dict.model.net.1.{part}"), drawn(part, &[4]));
    }
    let (found, _) = convert(simple).unwrap();
    assert_eq!((found.architecture.name(), found.classes), ("simple_cnn", 2));
    let error = convert(Weights::from([("encoder.a.weight".into(), drawn("a", &[3, 3]))]));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("encoder.a.weight"), "{error}");
}

/// Depthwise kernels of 3 and 5 pixels, TensorFlow's padding at strides 1 and 2, even and odd sides, a residual, and
/// batch norms with an epsilon of their own: random weights in the module structure of the PyPI packages.
#[test]
fn efficientnet_lite_gives_the_packages_logits_on_the_engine_and_on_burn() {
    let fixture = include_str!("../../tests/golden/efficientnet_lite.json");
    let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(fixture["shapes"].clone()).unwrap();
    let given: Weights =
        shapes.iter().map(|(name, shape)| (name.clone(), drawn(name, shape))).collect();
    let stage = |repeats, kernel, stride, expansion, channels| Stage {
        repeats,
        kernel,
        stride,
        expansion,
        channels,
    };
    let stages = vec![stage(1, 3, 1, 1, 8), stage(2, 5, 2, 3, 12), stage(1, 3, 2, 2, 16)];
    let config = EfficientNetLiteConfig { stem: 8, stages, head: 24, dropout: 0.0 };
    let (found, weights) = assign_weights(config.found(&Keys(&given)).unwrap(), given).unwrap();
    let graph = found.architecture.graph(5).unwrap();
    // Normalised with a standard deviation of 4 in place of 128, values reach the bound of ReLU6.
    let wide = Normalization { std: [4.0 / 255.0; 3], ..Normalization::SYMMETRIC };
    let cases = [
        ("logits_32", 32, Normalization::SYMMETRIC),
        ("logits_33", 33, Normalization::SYMMETRIC),
        ("logits_32_std_4", 32, wide),
    ];
    for (name, side, normalization) in cases {
        let theirs: Vec<Vec<f32>> = serde_json::from_value(fixture[name].clone()).unwrap();
        let network = NetworkSpec { normalization, ..NetworkSpec::new(&graph, side, &weights) };
        assert_logits(network, &theirs, 1e-5);
    }
}
