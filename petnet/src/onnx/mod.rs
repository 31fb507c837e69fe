//! Models as [ONNX](https://onnx.ai) files, for ONNX Runtime and all others that read them.
//!
//! Input `images`: `[n, 3, size, size]` floats of 0 to 255, channels in the order R, G, B: a decoded photo,
//! turned as its EXIF says, and resized with a Lanczos filter as [`Preprocess`](crate::preprocess::Preprocess)
//! of the model has it (the file's metadata says `size` and `resize`). Normalisation is in the graph. Outputs
//! are `logits` and `probabilities`, `[n, classes]` each, in the order of `labels` in the metadata, an array in JSON;
//! [`ModelInfo::temperature`](crate::ModelInfo::temperature) is taken in. What is unsure or strange to the
//! model is not: its threshold is in the metadata.

mod proto;

use prost::Message as _;
use serde_json::json;

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::error::{Error, Result};
use crate::layers::{self, Build, Conv, EPSILON};
use crate::weights::{Weight, Weights};

use proto::{Attribute, Entry, Graph, Model, Node, OperatorSet, Tensor, ValueInfo};

/// The layout's version, and that of the operators: old enough for any reader of the last years.
const IR_VERSION: i64 = 8;
const OPERATORS: i64 = 13;

/// A model as the bytes of an ONNX file.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// let bytes = petnet::onnx::encode(&petnet::Checkpoint::pretrained()?)?;
/// petnet::write_atomically(&std::env::temp_dir().join("cats-vs-dogs.onnx"), &bytes)?;
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
///
/// # Errors
/// [`Error::Checkpoint`] when weights and architecture do not fit each other.
pub fn encode(checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    let info = checkpoint.info();
    let mut graph = Builder::new(info, checkpoint.weights());
    let built = checkpoint
        .sound()
        .and_then(|()| layers::build(&info.architecture, info.labels.len(), &mut graph));
    built.map_err(|reason| Error::checkpoint("<weights>", reason))?;
    let side = info.preprocess.size;
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: "petnet".into(),
        producer_version: info.petnet_version.clone(),
        doc_string: format!(
            "images: [n, 3, {side}, {side}], RGB of 0 to 255; probabilities: [n, {}]",
            info.labels.len()
        ),
        graph: Some(graph.finish(info)),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPERATORS }],
        metadata_props: metadata(info),
    };
    Ok(model.encode_to_vec())
}

fn metadata(info: &ModelInfo) -> Vec<Entry> {
    let resize = serde_json::to_value(info.preprocess.resize).unwrap_or_default();
    let entries = [
        ("labels", json!(info.labels).to_string()),
        ("size", info.preprocess.size.to_string()),
        ("resize", resize.as_str().unwrap_or_default().into()),
        ("threshold", info.threshold.to_string()),
        ("architecture", info.architecture.name().into()),
    ];
    entries.map(|(key, value)| Entry { key: key.into(), value }).into()
}

/// A graph that grows by one layer after the other.
struct Builder<'a> {
    weights: &'a Weights,
    graph: Graph,
    /// The value of each map, by number.
    maps: Vec<String>,
    /// What the head has come to; empty before it.
    head: String,
}

impl<'a> Builder<'a> {
    fn new(info: &ModelInfo, weights: &'a Weights) -> Self {
        let side = info.preprocess.size as i64;
        let images = ValueInfo::floats("images", &[None, Some(3), Some(side), Some(side)]);
        let graph = Graph {
            name: info.architecture.name().into(),
            input: vec![images],
            ..Graph::default()
        };
        let mut builder = Self { weights, graph, maps: Vec::new(), head: String::new() };
        let (mean, std) = (info.normalization.mean, info.normalization.std);
        let scale = std.map(|s| 1.0 / (255.0 * s)).to_vec();
        let shift = [0, 1, 2].map(|c| -mean[c] / std[c]).to_vec();
        for (name, values) in [("normalization.scale", scale), ("normalization.shift", shift)] {
            builder.keep(name, &Weight { shape: vec![1, 3, 1, 1], values });
        }
        let scaled = builder.node("Mul", &["images", "normalization.scale"], vec![], "scaled");
        let picture = builder.node("Add", &[&scaled, "normalization.shift"], vec![], "normalized");
        builder.maps.push(picture);
        builder
    }

    /// Stores a constant under its name.
    fn keep(&mut self, name: &str, weight: &Weight) {
        self.graph.initializer.push(Tensor::floats(name, &weight.shape, &weight.values));
    }

    /// Stores a weight; returns its name.
    fn weight(&mut self, name: String) -> Result<String, String> {
        let weight =
            self.weights.get(&name).ok_or_else(|| format!("weight `{name}` is missing"))?;
        self.keep(&name, weight);
        Ok(name)
    }

    /// Adds an operation; returns the name of its output.
    fn node(
        &mut self,
        kind: &str,
        inputs: &[&str],
        attributes: Vec<Attribute>,
        to: &str,
    ) -> String {
        self.graph.node.push(Node {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![to.into()],
            name: to.into(),
            op_type: kind.into(),
            attribute: attributes,
        });
        to.into()
    }

    fn finish(mut self, info: &ModelInfo) -> Graph {
        let classes = Some(info.labels.len() as i64);
        let temperature = Weight { shape: vec![1], values: vec![info.temperature] };
        self.keep("temperature", &temperature);
        let logits = self.node("Identity", &[&self.head.clone()], vec![], "logits");
        let cooled = self.node("Div", &[&logits, "temperature"], vec![], "cooled");
        self.node("Softmax", &[&cooled], vec![Attribute::int("axis", 1)], "probabilities");
        self.graph.output = ["logits", "probabilities"]
            .map(|name| ValueInfo::floats(name, &[None, classes]))
            .into();
        self.graph
    }
}

/// Attributes of a window that moves over a map.
fn window(kernel: usize, stride: usize, padding: usize) -> Vec<Attribute> {
    vec![
        Attribute::ints("kernel_shape", &[kernel; 2]),
        Attribute::ints("strides", &[stride; 2]),
        Attribute::ints("pads", &[padding; 4]),
    ]
}

impl Build for Builder<'_> {
    fn conv(&mut self, prefix: &str, conv: Conv) -> Result<usize, String> {
        let weight = self.weight(format!("{prefix}.conv.weight"))?;
        let mut inputs = vec![self.maps[conv.from].clone(), weight];
        if conv.bias {
            inputs.push(self.weight(format!("{prefix}.conv.bias"))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let window = window(conv.kernel, conv.stride, conv.kernel / 2);
        let map = self.node("Conv", &inputs, window, &format!("{prefix}.conv"));
        let mut inputs = vec![map];
        for part in ["gamma", "beta", "running_mean", "running_var"] {
            inputs.push(self.weight(format!("{prefix}.norm.{part}"))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let epsilon = vec![Attribute::float("epsilon", EPSILON)];
        let mut map = self.node("BatchNormalization", &inputs, epsilon, &format!("{prefix}.norm"));
        if let Some(shortcut) = conv.shortcut {
            let other = self.maps[shortcut].clone();
            map = self.node("Add", &[&map, &other], vec![], &format!("{prefix}.sum"));
        }
        if conv.relu {
            map = self.node("Relu", &[&map], vec![], &format!("{prefix}.relu"));
        }
        if conv.pool {
            let window = self::window(2, 2, 0);
            map = self.node("MaxPool", &[&map], window, &format!("{prefix}.pool"));
        }
        self.maps.push(map);
        Ok(self.maps.len() - 1)
    }

    fn pool(&mut self, name: &str, from: usize) -> usize {
        let map = self.maps[from].clone();
        let map = self.node("MaxPool", &[&map], window(3, 2, 1), name);
        self.maps.push(map);
        self.maps.len() - 1
    }

    fn dense(&mut self, prefix: &str, _: [usize; 2], relu: bool) -> Result<(), String> {
        if self.head.is_empty() {
            let last = self.maps.last().cloned().unwrap_or_default();
            let means = self.node("GlobalAveragePool", &[&last], vec![], "means");
            self.head = self.node("Flatten", &[&means], vec![], "features");
        }
        let weight = self.weight(format!("{prefix}.weight"))?;
        let bias = self.weight(format!("{prefix}.bias"))?;
        let features = self.head.clone();
        self.head =
            self.node("Gemm", &[&features, &weight, &bias], vec![], &format!("{prefix}.gemm"));
        if relu {
            let sums = self.head.clone();
            self.head = self.node("Relu", &[&sums], vec![], &format!("{prefix}.relu"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::collections::HashSet;

    use super::*;

    /// What ONNX Runtime says of the numbers, `scripts/formats-test.sh` compares.
    #[test]
    #[cfg(feature = "pretrained")]
    fn every_value_is_made_before_it_is_read_and_every_weight_is_used() {
        let checkpoint = Checkpoint::pretrained().unwrap();
        let bytes = encode(&checkpoint).unwrap();
        let model = Model::decode(bytes.as_slice()).unwrap();
        let graph = model.graph.unwrap();
        let constants: HashSet<&str> = graph.initializer.iter().map(Tensor::name).collect();
        let mut made = constants.clone();
        made.insert("images");
        let mut read = HashSet::new();
        for node in &graph.node {
            for input in &node.input {
                assert!(made.contains(input.as_str()), "{} reads {input}", node.name);
                read.insert(input.as_str());
            }
            made.extend(node.output.iter().map(String::as_str));
        }
        assert!(constants.is_subset(&read), "{:?}", constants.difference(&read));
        assert!(["logits", "probabilities"].iter().all(|name| made.contains(name)));
        let stored: HashSet<&str> = checkpoint.weights().keys().map(String::as_str).collect();
        assert!(stored.is_subset(&constants), "{:?}", stored.difference(&constants));
        let labels = model.metadata_props.iter().find(|entry| entry.key == "labels").unwrap();
        assert_eq!(labels.value, r#"["cat","dog"]"#);
    }
}
