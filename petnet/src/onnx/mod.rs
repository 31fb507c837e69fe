//! Models as [ONNX](https://onnx.ai) files, for ONNX Runtime and all others that read them.
//!
//! Input `images`: `[n, 3, size, size]` floats of 0 to 255, channels in the order R, G, B: a decoded image,
//! turned as its EXIF says, and resized with a Lanczos filter as [`Preprocess`](crate::preprocess::Preprocess)
//! of the model has it (the file's metadata says `size` and `resize`). Normalisation is in the graph. Outputs
//! are `logits` and `probabilities`, `[n, classes]` each, in the order of `labels` in the metadata, an array in JSON.
//! Probabilities are the softmax of the logits divided by [`ModelInfo::temperature`](crate::ModelInfo::temperature), or
//! of a multi-label model their sigmoids; `thresholds` in the metadata is then an array of the least probability of each
//! class. The decision that an answer is unsure is not in the graph: its threshold is in the metadata.

mod proto;

use std::path::Path;

use prost::Message as _;
use serde_json::json;

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::disk::write_atomically;
use crate::error::{Error, ModelError, Result};
use crate::graph::{self, Activation, Op, Window};
use crate::passes;
use crate::task::Task;
use crate::weights::{Weight, Weights};

use proto::{Attribute, Graph, Model, Node, OperatorSetId, StringStringEntry, Tensor, ValueInfo};

/// The layout's version, and that of the operators: old enough for any reader of the last years.
const IR_VERSION: i64 = 8;
const OPSET_VERSION: i64 = 13;

impl Checkpoint {
    /// Writes the model as an ONNX file, atomically.
    ///
    /// # Errors
    /// Those of [`encode`]; [`Error::Io`] when the file cannot be written.
    pub fn save_onnx(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &encode(self)?)
    }
}

/// A model as the bytes of an ONNX file.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// let bytes = petnet::onnx::encode(&petnet::Checkpoint::pretrained()?)?;
/// println!("{} bytes", bytes.len());
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
///
/// # Errors
/// None for a checkpoint, whose weights are those of its graph; [`Error::Checkpoint`] otherwise.
pub fn encode(checkpoint: &Checkpoint) -> Result<Vec<u8>> {
    let info = checkpoint.info();
    let graph = OnnxBuilder::new(info, checkpoint.weights()).finish(info);
    let graph = graph.map_err(|reason| Error::checkpoint("<weights>", reason))?;
    let side = info.preprocess.size;
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: "petnet".into(),
        producer_version: info.petnet_version.clone(),
        doc_string: format!(
            "images: [n, 3, {side}, {side}], RGB of 0 to 255; probabilities: [n, {}]",
            info.labels.len()
        ),
        graph: Some(graph),
        opset_import: vec![OperatorSetId { domain: String::new(), version: OPSET_VERSION }],
        metadata_props: metadata(info),
    };
    Ok(model.encode_to_vec())
}

fn metadata(info: &ModelInfo) -> Vec<StringStringEntry> {
    let resize = serde_json::to_value(info.preprocess.resize).unwrap_or_default();
    let entries = [
        ("labels", json!(info.labels).to_string()),
        ("size", info.preprocess.size.to_string()),
        ("resize", resize.as_str().unwrap_or_default().into()),
        ("threshold", info.threshold.to_string()),
        ("architecture", info.graph.name().into()),
    ];
    let mut entries: Vec<StringStringEntry> =
        entries.map(|(key, value)| StringStringEntry { key: key.into(), value }).into();
    if let Task::MultiLabel { thresholds } = &info.task {
        let value = json!(thresholds).to_string();
        entries.push(StringStringEntry { key: "thresholds".into(), value });
    }
    entries
}

/// An ONNX graph that grows node by node.
///
/// No two of its values may have one name. A node's value is named `NODE.output`, and a weight `NODE.PART` as in the model
/// file, where no part is called `output`; the other names end in neither.
struct OnnxBuilder<'a> {
    weights: &'a Weights,
    graph: Graph,
    /// The name of each node's value.
    values: Vec<String>,
}

impl<'a> OnnxBuilder<'a> {
    fn new(info: &ModelInfo, weights: &'a Weights) -> Self {
        let side = info.preprocess.size as i64;
        let images = ValueInfo::floats("images", &[None, Some(3), Some(side), Some(side)]);
        let graph =
            Graph { name: info.graph.name().into(), input: vec![images], ..Graph::default() };
        let mut builder = Self { weights, graph, values: Vec::new() };
        let [scale, shift] = info.normalization.affine().map(Vec::from);
        for (name, values) in [("normalization.scale", scale), ("normalization.shift", shift)] {
            builder.add_initializer(name, &Weight { shape: vec![1, 3, 1, 1], values });
        }
        for (name, bound) in [("zero", 0.0), ("six", 6.0)] {
            let relu6 =
                |node: &graph::Node| node.op == Op::Activation { function: Activation::Relu6 };
            if info.graph.nodes().iter().any(relu6) {
                builder.add_initializer(name, &Weight { shape: Vec::new(), values: vec![bound] });
            }
        }
        builder
    }

    /// Stores a constant under its name.
    fn add_initializer(&mut self, name: &str, weight: &Weight) {
        self.graph.initializer.push(Tensor::floats(name, &weight.shape, &weight.values));
    }

    /// Stores a weight; returns its name.
    fn weight(&mut self, name: String) -> Result<String, ModelError> {
        match self.weights.get(&name) {
            Some(weight) => self.add_initializer(&name, weight),
            None => return Err(ModelError::MissingWeight(name)),
        }
        Ok(name)
    }

    /// Adds an operation; returns the name of its output.
    fn add_node(
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

    fn finish(mut self, info: &ModelInfo) -> Result<Graph, ModelError> {
        let sides = info.graph.sides(info.preprocess.size as usize)?;
        for node in info.graph.nodes() {
            let side = node.inputs.first().map_or([0; 2], |from| sides[*from]);
            let value = self.convert(node, side)?;
            self.values.push(value);
        }
        let classes = Some(info.labels.len() as i64);
        let temperature = Weight { shape: vec![1], values: vec![info.temperature] };
        self.add_initializer("temperature", &temperature);
        let last = self.values.last().cloned().unwrap_or_default();
        let logits = self.add_node("Identity", &[&last], vec![], "logits");
        let tempered = &[logits.as_str(), "temperature"];
        let tempered = self.add_node("Div", tempered, vec![], "tempered_logits");
        let (kind, attributes) = match info.task {
            Task::SingleLabel => ("Softmax", vec![Attribute::int("axis", 1)]),
            Task::MultiLabel { .. } => ("Sigmoid", vec![]),
        };
        self.add_node(kind, &[&tempered], attributes, "probabilities");
        self.graph.output = ["logits", "probabilities"]
            .map(|name| ValueInfo::floats(name, &[None, classes]))
            .into();
        Ok(self.graph)
    }

    /// Adds a node whose input has the given sides; returns the name of its value.
    fn convert(&mut self, node: &graph::Node, side: [usize; 2]) -> Result<String, ModelError> {
        let mut inputs: Vec<String> =
            node.inputs.iter().map(|from| self.values[*from].clone()).collect();
        for (name, _) in passes::parameters(node) {
            inputs.push(self.weight(name)?);
        }
        let output = format!("{}.output", node.name);
        let (kind, attributes) = match node.op {
            Op::Image => {
                let scale = &["images", "normalization.scale"];
                inputs.push(self.add_node("Mul", scale, vec![], "scaled"));
                inputs.push("normalization.shift".into());
                ("Add", vec![])
            }
            Op::Conv2d(conv) => {
                let mut attributes = window(conv.window, side);
                attributes.push(Attribute::int("group", conv.groups as i64));
                ("Conv", attributes)
            }
            Op::BatchNorm { epsilon, .. } => {
                ("BatchNormalization", vec![Attribute::float("epsilon", epsilon)])
            }
            Op::Activation { function: Activation::Relu } => ("Relu", vec![]),
            Op::Activation { function: Activation::Relu6 } => {
                inputs.extend(["zero".into(), "six".into()]);
                ("Clip", vec![])
            }
            Op::Add => ("Add", vec![]),
            Op::MaxPool(pool) => ("MaxPool", window(pool, side)),
            Op::GlobalAvgPool => {
                inputs[0] = self.add_node("GlobalAveragePool", &[&inputs[0]], vec![], "means");
                ("Flatten", vec![])
            }
            // Nothing is dropped in inference.
            Op::Dropout { .. } => return Ok(inputs.swap_remove(0)),
            Op::Linear { .. } => ("Gemm", vec![]),
        };
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        Ok(self.add_node(kind, &inputs, attributes, &output))
    }
}

/// Attributes of a window that moves over maps of the given sides.
fn window(window: Window, [height, width]: [usize; 2]) -> Vec<Attribute> {
    let [top, bottom] = window.padding(height);
    let [left, right] = window.padding(width);
    vec![
        Attribute::ints("kernel_shape", &[window.kernel; 2]),
        Attribute::ints("strides", &[window.stride; 2]),
        Attribute::ints("pads", &[top, left, bottom, right]),
    ]
}

#[cfg(all(test, feature = "pretrained"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::collections::HashSet;

    use super::*;
    use crate::checkpoint::tests::patterned;
    use crate::graph::Builder;

    /// Names of the constants and of all values of a graph; fails where a name is given twice, or read before it is made.
    fn names(graph: &Graph) -> [HashSet<&str>; 2] {
        let constants: HashSet<&str> = graph.initializer.iter().map(Tensor::name).collect();
        assert_eq!(constants.len(), graph.initializer.len(), "two constants of one name");
        let mut values = constants.clone();
        assert!(values.insert("images"));
        for node in &graph.node {
            for input in &node.input {
                assert!(values.contains(input.as_str()), "{} reads {input}", node.name);
            }
            for output in &node.output {
                assert!(values.insert(output), "{output} twice");
            }
        }
        [constants, values]
    }

    #[test]
    fn nodes_may_have_the_names_of_the_files_other_values() {
        let mut net = Builder::new("names");
        let window = Window::centred(3, 2);
        let relu6 = Op::Activation { function: Activation::Relu6 };
        let mut last = net.conv2d("images", Builder::IMAGE, 4, window);
        for name in ["zero", "six", "scaled", "normalization.scale", "normalization.shift"] {
            last = net.node(name, relu6, &[last]);
        }
        last = net.conv2d("images.weight", last, 4, window);
        last = net.conv2d("images.output", last, 4, window);
        last = net.node("means", Op::GlobalAvgPool, &[last]);
        for name in ["temperature", "tempered_logits", "probabilities", "logits"] {
            last = net.linear(name, last, 2);
        }
        let checkpoint = patterned(net.build().unwrap(), 32, |value| value / 100.0);
        let model = Model::decode(encode(&checkpoint).unwrap().as_slice()).unwrap();
        names(&model.graph.unwrap());
    }

    /// `scripts/formats-test.sh` compares the numbers with ONNX Runtime's.
    #[test]
    fn every_value_is_made_before_it_is_read_and_every_weight_is_used() {
        let checkpoint = Checkpoint::pretrained().unwrap();
        let bytes = encode(&checkpoint).unwrap();
        let model = Model::decode(bytes.as_slice()).unwrap();
        let graph = model.graph.unwrap();
        let [constants, values] = names(&graph);
        let read: HashSet<&str> =
            graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
        assert!(constants.is_subset(&read), "{:?}", constants.difference(&read));
        assert!(["logits", "probabilities"].iter().all(|name| values.contains(name)));
        // The file holds the network alone, no source head.
        let stored = checkpoint.weights().keys().map(String::as_str);
        let stored: HashSet<&str> = stored.filter(|name| !name.starts_with("source.")).collect();
        assert!(stored.is_subset(&constants), "{:?}", stored.difference(&constants));
        let labels = model.metadata_props.iter().find(|entry| entry.key == "labels").unwrap();
        assert_eq!(labels.value, r#"["cat","dog"]"#);
    }
}
