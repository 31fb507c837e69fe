#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::arch::{Architecture, SimpleCnnConfig};
use crate::preprocess::Resize;
use crate::weights::Weight;

fn small(channels: Vec<usize>) -> Graph {
    let config = SimpleCnnConfig { channels, hidden: 4, dropout: 0.0 };
    Architecture::new(config).graph(2).unwrap()
}

/// A model of a network, whose values are `value` of numbers from 0 to 100.
pub(crate) fn patterned(graph: Graph, size: u32, value: impl Fn(f32) -> f32) -> Checkpoint {
    let preprocess = Preprocess { size, resize: Resize::Squeeze };
    let info = ModelInfo::new(graph, vec!["cat".into(), "dog".into()], preprocess);
    let named = info.graph.nodes().iter().flat_map(passes::parameters);
    let weights = named.map(|(name, shape)| {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| value((i * 37 % 101) as f32)).collect();
        (name, Weight { shape, values })
    });
    let weights = weights.collect();
    Checkpoint::new(info, weights).unwrap()
}

fn checkpoint() -> Checkpoint {
    patterned(small(vec![4, 8]), 16, |value| value / 40.0 - 1.1)
}

#[test]
fn what_is_saved_is_loaded() {
    let saved = checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    saved.save(&path, Precision::F32).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), saved);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
}

/// Bytes of the weights in a model file, which follow a header of a length that the first eight bytes give.
fn weight_bytes(file: &[u8]) -> usize {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    file.len() - 8 - header as usize
}

#[test]
fn half_precision_is_half_the_size_and_close() {
    let saved = checkpoint();
    let bytes = saved.to_bytes(Precision::F16).unwrap();
    let sizes = saved.weights.values().map(|weight| match weight.shape.len() {
        1 => 4 * weight.values.len(),
        _ => 2 * weight.values.len(),
    });
    assert_eq!(weight_bytes(&bytes), sizes.sum::<usize>());
    let loaded = Checkpoint::from_bytes(&bytes).unwrap();
    for (name, weight) in &saved.weights {
        for (a, b) in weight.values.iter().zip(&loaded.weights[name].values) {
            assert!((a - b).abs() <= a.abs() / 1024.0 + 1e-6, "{name}: {a} {b}");
        }
    }
}

#[test]
fn bytes_are_a_quarter_of_the_size_and_within_half_a_step() {
    let saved = checkpoint();
    let bytes = saved.to_bytes(Precision::Int8).unwrap();
    let sizes = saved.weights.values().map(|weight| match weight.shape.len() {
        1 => 2 * weight.values.len(),
        // A byte a value, and a scale of four bytes for each channel.
        _ => {
            let last = crate::storage::channels(&weight.shape).of(weight.values.len() - 1);
            weight.values.len() + 4 * (last + 1)
        }
    });
    assert_eq!(weight_bytes(&bytes), sizes.sum::<usize>());
    let loaded = Checkpoint::from_bytes(&bytes).unwrap();
    assert!(loaded.weights.keys().eq(saved.weights.keys()));
    for (name, weight) in &saved.weights {
        let channel = crate::storage::channels(&weight.shape);
        let largest = |of: usize| {
            let all = weight.values.iter().enumerate().filter(|(at, _)| channel.of(*at) == of);
            all.fold(0.0_f32, |top, (_, value)| top.max(value.abs()))
        };
        for (place, value) in weight.values.iter().enumerate() {
            // Biases and norms have eleven bits, all others steps of their channel.
            let most = match weight.shape.len() {
                1 => value.abs() / 2048.0,
                _ => largest(channel.of(place)) / 127.0 * 0.501,
            };
            let error = (value - loaded.weights[name].values[place]).abs();
            assert!(error <= most, "{name}: {value} is off by {error}");
        }
    }
}

#[test]
fn two_files_of_one_model_are_the_same_bytes() {
    let bytes = checkpoint().to_bytes(Precision::F16).unwrap();
    for _ in 0..16 {
        assert!(checkpoint().to_bytes(Precision::F16).unwrap() == bytes);
    }
}

#[test]
fn any_cut_and_any_altered_byte_is_refused() {
    let bytes = checkpoint().to_bytes(Precision::F32).unwrap();
    for length in (0..bytes.len()).step_by(41) {
        assert!(Checkpoint::from_bytes(&bytes[..length]).is_err(), "cut to {length}");
    }
    for place in (0..bytes.len()).step_by(37) {
        let mut altered = bytes.clone();
        altered[place] ^= 4;
        assert!(Checkpoint::from_bytes(&altered).is_err(), "altered at {place}");
    }
}

#[test]
fn a_description_that_cannot_be_built_is_refused() {
    let refused = |change: &dyn Fn(&mut ModelInfo), reason: &str| {
        let mut wrong = checkpoint();
        change(&mut wrong.info);
        let error = Checkpoint::from_bytes(&wrong.to_bytes(Precision::F32).unwrap());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    };
    refused(&|info| info.preprocess.size = 1, "image_size is 1");
    refused(&|info| info.preprocess.size = 1 << 20, "image_size is 1048576");
    refused(&|info| info.labels = vec!["cat".into(); 2], "class names must be unique");
    refused(&|info| info.labels[0] = "x".repeat(257), "of at most 256 bytes");
    refused(&|info| info.labels.truncate(1), "has 2 classes, 1 are named");
    refused(&|info| info.labels.push("fish".into()), "has 2 classes, 3 are named");
    refused(&|info| info.task = Task::multi_label(1), "thresholds must be one per class");
    let beyond = vec![0.5, 1.5];
    let beyond = Task::MultiLabel { thresholds: beyond };
    refused(&|info| info.task = beyond.clone(), "thresholds must be one per class");
    let reference = serde_json::json!({ "brightness": { "edges": [1.0, 2.0], "counts": [] } });
    let reference: Reference = serde_json::from_value(reference).unwrap();
    refused(&|info| info.reference = Some(reference.clone()), "one count more than edges");
    for std in [0.0, -1.0, f32::from_bits(1)] {
        refused(&|info| info.normalization.std[1] = std, "must be finite, and std above 0");
    }
    let too_large = |info: &mut ModelInfo| info.normalization.mean[2] = f32::MAX;
    refused(&too_large, "must be finite, and std above 0");
    refused(&|info| info.temperature = 0.0, "temperature is 0");
    refused(&|info| info.graph = small(vec![4, 8, 8, 8, 8]), "image_size is 16");
    refused(&|info| info.graph = small(vec![4, 4096]), "blocks.1.conv.weight");
    refused(&|info| info.graph = small(vec![4]), "`hidden.weight` has shape [8, 4]");
    refused(&|info| info.format = 1, "in layout 1");
    #[cfg(feature = "train")]
    {
        let (task, temperature) = (Task::SingleLabel, f32::NAN);
        let confidence = Confidence { task, temperature, threshold: 0.5 };
        assert!(checkpoint().with_calibration(confidence, None, None).is_err());
    }
}

#[test]
fn a_graph_that_is_no_network_is_refused() {
    let bytes = checkpoint().to_bytes(Precision::F32).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let text = header.metadata().as_ref().unwrap()[INFO_KEY].clone();
    for (from, to) in [
        (r#""groups":1"#, r#""groups":2"#),
        (r#""kernel":3"#, r#""kernel":0"#),
        (r#""stride":1"#, r#""stride":0"#),
        (r#""outputs":8"#, r#""outputs":99999999999"#),
        (r#""from":[1]"#, r#""from":[7]"#),
        (r#""from":[1]"#, r#""from":[1,1]"#),
        (r#""op":"global_avg_pool""#, r#""op":"add""#),
        (r#""op":"batch_norm""#, r#""op":"linear""#),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        let error = parse_info(&text.replacen(from, to, 1)).expect_err(to);
        assert!(matches!(error, ModelError::Description(_)), "{to}: {error}");
    }
    assert!(parse_info(&text).is_ok());
}
