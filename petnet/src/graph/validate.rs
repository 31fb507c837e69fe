//! Validation of nodes: the rules by which they are a graph.

use std::collections::BTreeSet;

use super::{
    Conv2d, Graph, GraphError, MAX_CHANNELS, MAX_KERNEL, MAX_NODES, Node, NodeError, Op, Padding,
    Window,
};

/// Output of a node.
#[derive(Clone, Copy, PartialEq)]
enum Output {
    /// A feature map of so many channels.
    Map(usize),
    /// So many features.
    Features(usize),
}

impl Graph {
    /// A graph of nodes, with the indices at which its blocks end.
    ///
    /// # Errors
    /// [`GraphError`] for nodes that are no network: see the [module](super).
    pub fn new(name: String, nodes: Vec<Node>, blocks: Vec<usize>) -> Result<Self, GraphError> {
        if nodes.is_empty() || nodes.len() > MAX_NODES {
            return Err(GraphError::Nodes(nodes.len()));
        }
        let mut outputs = Vec::with_capacity(nodes.len());
        let mut names = BTreeSet::new();
        for (index, node) in nodes.iter().enumerate() {
            let failed = |reason| {
                let name = if node.name.is_empty() { index.to_string() } else { node.name.clone() };
                GraphError::Node { node: name, reason }
            };
            if node.name.is_empty() || !names.insert(&node.name) {
                return Err(failed(NodeError::Name));
            }
            let output = output(index, node, &outputs).map_err(failed)?;
            outputs.push(output);
        }
        let pools: Vec<usize> =
            (0..nodes.len()).filter(|index| nodes[*index].op == Op::GlobalAvgPool).collect();
        let [pool] = pools[..] else { return Err(GraphError::Pools(pools.len())) };
        let Some(Op::Linear { outputs: classes, .. }) = nodes.last().map(|node| node.op) else {
            return Err(GraphError::NoLogits);
        };
        let graph = Self { name, nodes, blocks, pool, classes };
        graph.validate_readers()?;
        graph.validate_blocks()?;
        Ok(graph)
    }

    /// Every node but the last is read, features only by the next node.
    fn validate_readers(&self) -> Result<(), GraphError> {
        let readers = self.readers();
        let unread = readers.iter().rev().skip(1).rev().position(|readers| *readers == 0);
        if let Some(index) = unread {
            let node = self.nodes[index].name.clone();
            return Err(GraphError::Node { node, reason: NodeError::Unused });
        }
        let chain = self.nodes.iter().enumerate().skip(self.pool + 1);
        for (index, node) in chain {
            if node.inputs != [index - 1] {
                let reason = NodeError::Place;
                return Err(GraphError::Node { node: node.name.clone(), reason });
            }
        }
        Ok(())
    }

    /// A block ends where one feature map alone is handed on.
    fn validate_blocks(&self) -> Result<(), GraphError> {
        let mut last = 1;
        for &end in &self.blocks {
            let alone = |node: &Node| node.inputs.iter().all(|from| from + 1 >= end);
            if end <= last || end > self.pool || !self.nodes[end..].iter().all(alone) {
                return Err(GraphError::Block(end));
            }
            last = end;
        }
        Ok(())
    }
}

/// Output of a node, once its inputs are known to fit it.
fn output(index: usize, node: &Node, outputs: &[Output]) -> Result<Output, NodeError> {
    let expected = match node.op {
        Op::Image => 0,
        Op::Add => 2,
        _ => 1,
    };
    if node.inputs.len() != expected {
        return Err(NodeError::Arity { found: node.inputs.len(), expected });
    }
    if let Some(from) = node.inputs.iter().find(|from| **from >= index) {
        return Err(NodeError::Order(*from));
    }
    let input = node.inputs.first().map(|from| outputs[*from]);
    match (node.op, input) {
        (Op::Image, None) if index == 0 => Ok(Output::Map(3)),
        (Op::Conv2d(conv), Some(Output::Map(channels))) => {
            validate_conv(&conv)?;
            validate_channels(channels, conv.inputs)?;
            Ok(Output::Map(conv.outputs))
        }
        (Op::BatchNorm { channels, epsilon }, Some(Output::Map(found))) => {
            if !(epsilon > 0.0 && epsilon < 1.0) {
                return Err(out_of_range("epsilon", f64::from(epsilon), "above 0 and below 1"));
            }
            validate_channels(found, channels)?;
            Ok(Output::Map(channels))
        }
        (Op::Activation { .. }, Some(any)) => Ok(any),
        (Op::Add, Some(Output::Map(channels))) => match outputs[node.inputs[1]] {
            Output::Map(found) => {
                validate_channels(found, channels).map(|()| Output::Map(channels))
            }
            Output::Features(_) => Err(NodeError::Place),
        },
        (Op::MaxPool(window), Some(Output::Map(channels))) => {
            validate_window(window)?;
            Ok(Output::Map(channels))
        }
        (Op::GlobalAvgPool, Some(Output::Map(channels))) => Ok(Output::Features(channels)),
        (Op::Dropout { rate }, Some(Output::Features(features))) => {
            if !(0.0..1.0).contains(&rate) {
                return Err(out_of_range("dropout", rate, "at least 0 and below 1"));
            }
            Ok(Output::Features(features))
        }
        (Op::Linear { inputs, outputs, .. }, Some(Output::Features(found))) => {
            validate_width("outputs", outputs)?;
            validate_channels(found, inputs)?;
            Ok(Output::Features(outputs))
        }
        _ => Err(NodeError::Place),
    }
}

fn out_of_range(what: &'static str, value: impl ToString, range: &'static str) -> NodeError {
    NodeError::Range { what, value: value.to_string(), range }
}

fn validate_channels(found: usize, expected: usize) -> Result<(), NodeError> {
    if found == expected { Ok(()) } else { Err(NodeError::Channels { found, expected }) }
}

fn validate_width(what: &'static str, value: usize) -> Result<(), NodeError> {
    if (1..=MAX_CHANNELS).contains(&value) {
        return Ok(());
    }
    Err(out_of_range(what, value, "between 1 and 8192"))
}

fn validate_conv(conv: &Conv2d) -> Result<(), NodeError> {
    validate_width("inputs", conv.inputs)?;
    validate_width("outputs", conv.outputs)?;
    if conv.groups != 1 && [conv.inputs, conv.outputs] != [conv.groups; 2] {
        let range = "1, or the number of inputs and outputs";
        return Err(out_of_range("groups", conv.groups, range));
    }
    validate_window(conv.window)
}

fn validate_window(window: Window) -> Result<(), NodeError> {
    let Window { kernel, stride, padding } = window;
    for (what, value) in [("kernel", kernel), ("stride", stride)] {
        if !(1..=MAX_KERNEL).contains(&value) {
            return Err(out_of_range(what, value, "between 1 and 11"));
        }
    }
    match padding {
        Padding::Explicit(pixels) if pixels >= kernel => {
            Err(out_of_range("padding", pixels, "less than the kernel"))
        }
        Padding::Explicit(_) | Padding::Same => Ok(()),
    }
}
