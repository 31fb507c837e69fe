//! A graph, node by node.

use super::{Activation, Conv2d, Graph, GraphError, Init, Node, Op, Window};

/// Collects nodes; [`Builder::build`] validates them together. Nodes are known by number, in the order in which
/// they were added; the image is [`Builder::IMAGE`].
#[derive(Debug)]
pub struct Builder {
    name: String,
    nodes: Vec<Node>,
    /// Of each node's output.
    channels: Vec<usize>,
    blocks: Vec<usize>,
}

impl Builder {
    /// The image's number.
    pub const IMAGE: usize = 0;
    /// Epsilon of [`Builder::conv_norm`] and [`Builder::depthwise_norm`]: PyTorch's default.
    pub const EPSILON: f32 = 1e-5;

    /// A network of that name, of an image so far.
    pub fn new(name: impl Into<String>) -> Self {
        let image = Node { name: "image".into(), op: Op::Image, inputs: Vec::new() };
        Self { name: name.into(), nodes: vec![image], channels: vec![3], blocks: Vec::new() }
    }

    /// Channels of a node's output, or its features.
    pub fn channels(&self, node: usize) -> usize {
        self.channels.get(node).copied().unwrap_or_default()
    }

    /// Adds any operation; returns the node's number.
    pub fn node(&mut self, name: impl Into<String>, op: Op, inputs: &[usize]) -> usize {
        let input = inputs.first().map_or(0, |from| self.channels(*from));
        self.channels.push(op.output_channels(input));
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec() });
        self.nodes.len() - 1
    }

    /// A convolution without a bias.
    pub fn conv2d(
        &mut self,
        name: impl Into<String>,
        from: usize,
        outputs: usize,
        window: Window,
    ) -> usize {
        let inputs = self.channels(from);
        let conv = Conv2d { inputs, outputs, window, groups: 1, bias: false };
        self.node(name, Op::Conv2d(conv), &[from])
    }

    /// A depthwise convolution without a bias.
    pub fn depthwise(&mut self, name: impl Into<String>, from: usize, window: Window) -> usize {
        let channels = self.channels(from);
        let (inputs, outputs, groups) = (channels, channels, channels);
        let conv = Conv2d { inputs, outputs, window, groups, bias: false };
        self.node(name, Op::Conv2d(conv), &[from])
    }

    /// A batch norm with an epsilon of its own.
    pub fn batch_norm(&mut self, name: impl Into<String>, from: usize, epsilon: f32) -> usize {
        let channels = self.channels(from);
        self.node(name, Op::BatchNorm { channels, epsilon }, &[from])
    }

    /// A convolution `NAME.conv` without a bias, and its batch norm `NAME.norm`.
    pub fn conv_norm(&mut self, name: &str, from: usize, outputs: usize, window: Window) -> usize {
        let conv = self.conv2d(format!("{name}.conv"), from, outputs, window);
        self.batch_norm(format!("{name}.norm"), conv, Self::EPSILON)
    }

    /// A depthwise convolution `NAME.conv` without a bias, and its batch norm `NAME.norm`.
    pub fn depthwise_norm(&mut self, name: &str, from: usize, window: Window) -> usize {
        let conv = self.depthwise(format!("{name}.conv"), from, window);
        self.batch_norm(format!("{name}.norm"), conv, Self::EPSILON)
    }

    /// An activation; named after what it follows.
    pub fn activation(&mut self, from: usize, function: Activation) -> usize {
        let name = match function {
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
        };
        self.node(self.derived_name(from, name), Op::Activation { function }, &[from])
    }

    /// The sum of two feature maps; named after the first.
    pub fn add(&mut self, a: usize, b: usize) -> usize {
        self.node(self.derived_name(a, "add"), Op::Add, &[a, b])
    }

    /// A max pool; named after what it follows.
    pub fn max_pool(&mut self, from: usize, window: Window) -> usize {
        self.node(self.derived_name(from, "pool"), Op::MaxPool(window), &[from])
    }

    /// The mean of each channel.
    pub fn global_avg_pool(&mut self, from: usize) -> usize {
        self.node("features", Op::GlobalAvgPool, &[from])
    }

    /// Dropout of features; named after what it follows.
    pub fn dropout(&mut self, from: usize, rate: f64) -> usize {
        self.node(self.derived_name(from, "dropout"), Op::Dropout { rate }, &[from])
    }

    /// A linear layer with a bias.
    pub fn linear(&mut self, name: impl Into<String>, from: usize, outputs: usize) -> usize {
        let (inputs, init) = (self.channels(from), Init::Uniform);
        self.node(name, Op::Linear { inputs, outputs, init }, &[from])
    }

    /// Ends a block that training may freeze, behind the last node.
    pub fn end_block(&mut self) {
        self.blocks.push(self.nodes.len());
    }

    /// The finished graph.
    ///
    /// # Errors
    /// [`GraphError`] for nodes that are no network.
    pub fn build(self) -> Result<Graph, GraphError> {
        Graph::new(self.name, self.nodes, self.blocks)
    }

    /// `NODE.SUFFIX`, after the layer that a chain of norm, sum and activation belongs to.
    fn derived_name(&self, node: usize, suffix: &str) -> String {
        let name = self.nodes.get(node).map_or("", |node| node.name.as_str());
        let layer = [".norm", ".conv", ".add"].iter().find_map(|part| name.strip_suffix(part));
        format!("{}.{suffix}", layer.unwrap_or(name))
    }
}
