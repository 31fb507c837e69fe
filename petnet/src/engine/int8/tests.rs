//! Int8 plans compared with f32 plans.

use super::*;
use crate::arch::tests::small;
use crate::engine::{Engine, NetworkSpec, Outputs, Plans, Ranges};
use crate::error::ModelError;
use crate::graph::{Builder, Graph, Window};
use crate::kernel::int8::supported;
use crate::passes;
use crate::weights::{Weight, Weights};

/// Random weights that keep the scale of values from layer to layer.
fn weights(graph: &Graph) -> Weights {
    let mut state = 1_u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let named = graph.nodes().iter().flat_map(passes::parameters);
    let drawn = named.map(|(name, shape)| {
        let count = shape.iter().product::<usize>();
        let depth = if shape.len() == 2 { shape[0] } else { count / shape[0] };
        let size = (6.0 / depth as f32).sqrt();
        let value = |_| match shape.len() {
            1 if name.ends_with("running_var") => 1.0 + 0.5 * next(),
            1 if name.ends_with("norm.weight") => 1.0 + 0.3 * next(),
            1 => 0.3 * next(),
            _ => size * next(),
        };
        let values = (0..count).map(value).collect();
        (name, Weight { values, shape })
    });
    drawn.collect()
}

/// Images with coarse and fine structure.
fn images(side: usize, count: usize) -> Vec<u8> {
    let at = |i: usize| (i / 3 % side, i / 3 / side % side, i % 3, i / (3 * side * side));
    let value = |(x, y, c, n): (usize, usize, usize, usize)| {
        let wave = ((x * (3 + n) + y * 2 + c * 11) as f32 / side as f32 * 4.0).sin();
        127.0 + 90.0 * wave + ((x * 7919 + y * 31 + n * 57 + c) % 37) as f32
    };
    (0..count * side * side * 3).map(|i| value(at(i)) as u8).collect()
}

/// The f32 and the int8 engine of a network, the second with the ranges of the first on some images.
fn engines(graph: &Graph, side: usize, pixels: &[u8]) -> [Engine; 2] {
    let weights = weights(graph);
    let network = NetworkSpec::new(graph, side, &weights);
    let float = Engine::new(network).unwrap();
    let mut ranges = Ranges::new();
    for image in pixels.chunks_exact(side * side * 3) {
        float.observe(image, |node, pixel| {
            let [low, high] = ranges.entry(graph.nodes()[node].name.clone()).or_default();
            pixel.iter().for_each(|value| (*low, *high) = (low.min(*value), high.max(*value)));
        });
    }
    let int8 = Engine::new(NetworkSpec { ranges: Some(&ranges), ..network }).unwrap();
    [float, int8]
}

/// The largest difference of logits, relative to their standard deviation over images and classes.
fn difference(actual: &[Outputs], expected: &[Outputs]) -> f32 {
    let pairs = actual
        .iter()
        .zip(expected)
        .flat_map(|(actual, expected)| actual.logits.iter().zip(&expected.logits));
    let largest = pairs.map(|(actual, expected)| (actual - expected).abs()).fold(0.0, f32::max);
    let all: Vec<f32> =
        expected.iter().flat_map(|outputs| outputs.logits.iter().copied()).collect();
    let mean = all.iter().sum::<f32>() / all.len() as f32;
    let variance = all.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / all.len() as f32;
    largest / variance.sqrt()
}

#[test]
fn an_int8_plan_agrees_with_an_f32_plan() {
    if !supported() {
        return eprintln!("skipped: int8 plans need a CPU with AVX-512 VNNI");
    }
    for architecture in small() {
        let graph = architecture.graph(3).unwrap();
        for side in [33, 48, 64] {
            let pixels = images(side, 9);
            let [float, int8] = engines(&graph, side, &pixels);
            if !matches!(int8.0, Plans::Int8(_)) {
                // A network may have steps without an int8 kernel, but these have one for each.
                let all_int8 = ["simple_cnn", "petnet", "resnet", "efficientnet_lite"];
                assert!(!all_int8.contains(&graph.name()), "{}", graph.name());
                continue;
            }
            let (actual, expected) = (int8.run(&pixels), float.run(&pixels));
            let difference = difference(&actual, &expected);
            // A map's range is about 8 of its standard deviations. Rounded to 255 steps, its values have errors with a
            // standard deviation of 8 / 255 / sqrt(12), 0.9 % of their own; with those of the weights, about 1 %. Errors
            // of steps are independent, and the largest of these few logits is within three standard deviations.
            let steps = passes::fuse(&graph).len();
            let tolerance = 3.0 * 0.01 * (steps as f32).sqrt();
            println!("{} of {side} pixels: {difference:.4} of {tolerance:.4}", graph.name());
            assert!(difference < tolerance, "{} of {side} pixels: {difference}", graph.name());
            // A single image runs on all cores.
            let image = &pixels[..side * side * 3];
            assert_eq!(int8.run(image), actual[..1], "{}", graph.name());
            let (outputs, heat) = int8.explain(image);
            assert_eq!(outputs, actual[0]);
            let (_, expected) = float.explain(image);
            assert_eq!([heat.height, heat.width], [expected.height, expected.width]);
            assert_eq!(int8.profile(image).len(), steps);
        }
    }
}

#[test]
fn a_network_without_int8_kernels_runs_in_f32() {
    let net = |norm: bool| {
        let mut net = Builder::new("sum");
        let x = net.conv_norm("stem", Builder::IMAGE, 8, Window::same(3, 2));
        let x = net.add(x, x);
        let x = if norm { net.batch_norm("sum.norm", x, 1e-3) } else { x };
        let features = net.global_avg_pool(x);
        net.linear("head", features, 2);
        net.build().unwrap()
    };
    let pixels = images(32, 2);
    for norm in [false, true] {
        let graph = net(norm);
        let [float, int8] = engines(&graph, 32, &pixels);
        assert!(matches!(int8.0, Plans::F32(_)), "a sum follows no convolution");
        assert_eq!(float.run(&pixels), int8.run(&pixels));
    }
    // Values that are far outside of a range would overflow 32 bits when they are rounded.
    let graph = small()[1].graph(2).unwrap();
    let weights = weights(&graph);
    let network = NetworkSpec::new(&graph, 32, &weights);
    let names =
        passes::fuse(&graph).into_iter().map(|step| graph.nodes()[step.output].name.clone());
    let ranges: Ranges = names.map(|name| (name, [0.0, 1e-30])).collect();
    let quantized = |ranges| Engine::new(NetworkSpec { ranges: Some(ranges), ..network });
    assert!(matches!(quantized(&ranges).unwrap().0, Plans::F32(_)));
    let missing = quantized(&Ranges::new());
    if supported() {
        assert!(matches!(missing, Err(ModelError::MissingRange(_))));
    }
}

#[test]
fn a_range_ends_at_the_bounds_of_its_activation() {
    let relu = QuantParams::new([-3.0, 51.0], Some(Activation::Relu));
    assert_eq!(relu, QuantParams { scale: 0.2, zero_point: 0 });
    assert_eq!(
        QuantParams::new([0.0, 9.0], Some(Activation::Relu6)),
        QuantParams { scale: 6.0 / 255.0, zero_point: 0 }
    );
    assert_eq!(QuantParams::new([-51.0, 204.0], None), QuantParams { scale: 1.0, zero_point: 51 });
    let zero_point = QuantParams::new([1.0, 51.0], None).zero_point;
    assert_eq!(zero_point, 0, "zero is always represented exactly");
    assert_eq!(QuantParams::new([0.0, 0.0], None), QuantParams { scale: 1.0, zero_point: 0 });
}

/// `docs/formats.md` gives the logits of the bundled model for a pattern, for readers in other languages to check theirs by.
#[cfg(feature = "pretrained")]
#[test]
fn the_format_page_has_the_logits_of_the_bundled_model() {
    let checkpoint = crate::Checkpoint::pretrained().unwrap();
    let network = checkpoint.network();
    let side = network.side;
    let value = |i: usize| (7 * (i / 3 % side) + 5 * (i / 3 / side) + 80 * (i % 3)) % 256;
    let pixels: Vec<u8> = (0..side * side * 3).map(|i| value(i) as u8).collect();
    let page = include_str!("../../../../docs/formats.md");
    for (arithmetic, ranges) in [("floats", None), ("int8", network.ranges)] {
        if ranges.is_some() && !supported() {
            continue;
        }
        let outputs = Engine::new(NetworkSpec { ranges, ..network }).unwrap().run(&pixels);
        let marker = format!("logits in {arithmetic}: `");
        let (_, rest) = page.split_once(&marker).unwrap_or_else(|| panic!("{marker}"));
        let listed = rest.split(['`', ',']).take(2).map(|number| number.trim().parse().unwrap());
        let listed: Vec<f32> = listed.collect();
        let near = |(computed, listed): (&f32, &f32)| (computed - listed).abs() < 2e-3;
        let logits = &outputs[0].logits;
        assert!(logits.iter().zip(&listed).all(near), "{logits:?} {listed:?}");
    }
}
