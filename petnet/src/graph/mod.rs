//! A network as a graph: nodes in the order in which they run, each an operation on the outputs of
//! earlier ones, with names and shapes. Independent of weights, values and architectures.
//!
//! A [`Graph`] is valid by construction. It begins with the image, ends its feature maps in one global
//! average pool, and what follows the pool is a chain that ends in a linear layer, the logits.

use serde::{Deserialize, Serialize};

mod builder;
mod source_head;
mod validate;

pub use builder::Builder;
pub use source_head::SourceHead;
#[cfg(feature = "train")]
pub(crate) use source_head::with_prefix;
pub(crate) use source_head::{PREFIX as SOURCE_PREFIX, without_prefix};

/// Maximum number of nodes of a graph.
const MAX_NODES: usize = 4096;
/// Maximum number of channels of a feature map, and of features or classes.
const MAX_CHANNELS: usize = 8192;
/// Largest side of a window, in pixels.
const MAX_KERNEL: usize = 11;

/// Padding of a window that reaches over the edge of a feature map; what lies outside is zero for
/// convolutions and ignored by max pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// As many pixels on all four sides, as PyTorch has it.
    Explicit(usize),
    /// As many as it takes for `ceil(side / stride)` outputs; where their number is odd, the larger half comes
    /// after the map (TensorFlow's `SAME`).
    Same,
}

/// A square window that moves over a feature map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its side, in pixels.
    pub kernel: usize,
    /// Pixels from one place to the next.
    pub stride: usize,
    /// Padding at the edges.
    pub padding: Padding,
}

impl Window {
    /// A window with the symmetric padding that keeps `ceil(side / stride)` outputs for odd kernels.
    pub const fn centred(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, padding: Padding::Explicit(kernel / 2) }
    }

    /// A window with TensorFlow's `SAME` padding.
    pub const fn same(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, padding: Padding::Same }
    }

    /// Pixels of padding before and after a side of `len` pixels.
    ///
    /// ```
    /// use petnet::graph::Window;
    ///
    /// assert_eq!(Window::centred(3, 2).padding(160), [1, 1]);
    /// assert_eq!(Window::same(3, 2).padding(160), [0, 1], "one more at the right and the bottom");
    /// assert_eq!(Window::same(5, 1).padding(10), [2, 2]);
    /// ```
    pub fn padding(&self, len: usize) -> [usize; 2] {
        match self.padding {
            Padding::Explicit(pixels) => [pixels; 2],
            Padding::Same => {
                let last = (len.div_ceil(self.stride)).saturating_sub(1) * self.stride;
                let total = (last + self.kernel).saturating_sub(len);
                [total / 2, total - total / 2]
            }
        }
    }

    /// Outputs along a side of `len` pixels; `None` where the window does not fit once.
    pub fn output(&self, len: usize) -> Option<usize> {
        let [before, after] = self.padding(len);
        let places = (before + len + after).checked_sub(self.kernel)?;
        Some(places / self.stride + 1).filter(|_| len > 0)
    }
}

/// A 2D convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conv2d {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Its window.
    #[serde(flatten)]
    pub window: Window,
    /// 1, or for a depthwise convolution the number of channels, which then is that of inputs and outputs alike.
    pub groups: usize,
    /// True for a convolution with a bias.
    pub bias: bool,
}

impl Conv2d {
    /// True where each channel is convolved alone, unless there is only one: its convolution counts as dense.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1
    }

    /// Shape of its weight: `[outputs, inputs / groups, kernel, kernel]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups, self.window.kernel, self.window.kernel]
    }
}

/// A function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Activation {
    /// Smallest and largest value that it gives.
    pub fn bounds(self) -> [f32; 2] {
        match self {
            Self::Relu => [0.0, f32::INFINITY],
            Self::Relu6 => [0.0, 6.0],
        }
    }
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Op {
    /// The normalised image, three channels: the first node, and no other.
    Image,
    /// See [`Conv2d`].
    Conv2d(Conv2d),
    /// Batch normalisation by running statistics, or in training by the batch's own.
    BatchNorm {
        /// Channels of its feature map.
        channels: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// See [`Activation`].
    Activation {
        /// The function.
        function: Activation,
    },
    /// The sum of two feature maps of one shape.
    Add,
    /// The largest value in each window.
    MaxPool(Window),
    /// The mean of each channel: `[channels, h, w]` to `[channels]`.
    GlobalAvgPool,
    /// Drops features in training; only after the global average pool.
    Dropout {
        /// Share that is dropped, from 0 and below 1.
        rate: f64,
    },
    /// A linear layer with a bias; only after the global average pool.
    Linear {
        /// Input features.
        inputs: usize,
        /// Output features.
        outputs: usize,
        /// Random initialisation of its weights.
        #[serde(default, skip_serializing_if = "Init::is_default")]
        init: Init,
    },
}

impl Op {
    /// Channels or features of the output, by those of the first input.
    pub(crate) fn output_channels(&self, input: usize) -> usize {
        match *self {
            Self::Image => 3,
            Self::Conv2d(conv) => conv.outputs,
            Self::Linear { outputs, .. } => outputs,
            _ => input,
        }
    }
}

/// Random initialisation of a linear layer's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Uniform within one over the square root of the inputs, as PyTorch draws them.
    #[default]
    Uniform,
    /// Normal with a standard deviation of 0.01, biases zero.
    Narrow,
}

impl Init {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An operation, its name, and where its inputs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its weights' names begin with it: `NAME.weight`, `NAME.bias`, `NAME.running_mean`, `NAME.running_var`.
    pub name: String,
    /// Its operation.
    #[serde(flatten)]
    pub op: Op,
    /// Indices of the nodes whose outputs it reads, all of them earlier.
    #[serde(rename = "from", default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<usize>,
}

/// A valid network: see the [module](self).
///
/// ```
/// use petnet::graph::{Activation, Builder, Window};
///
/// let mut net = Builder::new("mobile");
/// let stem = net.conv_norm("stem", Builder::IMAGE, 16, Window::same(3, 2));
/// let stem = net.activation(stem, Activation::Relu6);
/// let x = net.depthwise_norm("block", stem, Window::same(3, 1));
/// let x = net.add(x, stem);
/// net.end_block();
/// let features = net.global_avg_pool(x);
/// net.linear("classes", features, 2);
/// let graph = net.build()?;
/// assert_eq!(graph.classes(), 2);
/// assert_eq!(graph.sides(64)?.last(), Some(&[1, 1]));
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Description")]
pub struct Graph {
    name: String,
    nodes: Vec<Node>,
    blocks: Vec<usize>,
    /// Index of the global average pool.
    #[serde(skip)]
    pool: usize,
    #[serde(skip)]
    classes: usize,
}

/// A graph as it is written, not yet validated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    nodes: Vec<Node>,
    #[serde(default)]
    blocks: Vec<usize>,
}

impl TryFrom<Description> for Graph {
    type Error = GraphError;

    fn try_from(Description { name, nodes, blocks }: Description) -> Result<Self, GraphError> {
        Self::new(name, nodes, blocks)
    }
}

/// The reason for which nodes are not a valid network, or an image does not fit one.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// A node cannot be where it is; `reason` says why.
    #[error("node `{node}`: {reason}")]
    Node {
        /// The node's name, or its number where it has none.
        node: String,
        /// The reason.
        reason: NodeError,
    },
    /// A graph has more nodes than any network here, or none.
    #[error("a network has 1 to {MAX_NODES} nodes, this one has {0}")]
    Nodes(usize),
    /// A network needs exactly one global average pool.
    #[error("a network has one global average pool, this one has {0}")]
    Pools(usize),
    /// The last node must be a linear layer.
    #[error("the last node must be a linear layer")]
    NoLogits,
    /// Blocks must end before the pool, one after the other, and hand on one feature map alone.
    #[error("no block can end at node {0}")]
    Block(usize),
    /// An image is smaller than the network needs.
    #[error("an image of {side} pixels leaves nothing at node `{node}`")]
    Side {
        /// Side of the image.
        side: usize,
        /// Name of the node.
        node: String,
    },
    /// The feature maps of a sum have unequal sides.
    #[error("an image of {side} pixels leaves unequal sides to add at node `{node}`")]
    UnequalSides {
        /// Side of the image.
        side: usize,
        /// Name of the node.
        node: String,
    },
}

/// Reason for which a node was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NodeError {
    /// Another node has the same name, or it has none.
    #[error("its name is empty or taken")]
    Name,
    /// It reads another number of inputs than its operation takes.
    #[error("it reads {found} inputs, its operation takes {expected}")]
    Arity {
        /// Inputs that it has.
        found: usize,
        /// Inputs that it needs.
        expected: usize,
    },
    /// It reads a node that does not come before it.
    #[error("it reads node {0}, which does not come before it")]
    Order(usize),
    /// It expects other channels than its input has.
    #[error("it takes {expected} channels, its input has {found}")]
    Channels {
        /// Channels of its input.
        found: usize,
        /// Channels that it takes.
        expected: usize,
    },
    /// A size, a rate or an epsilon is out of range.
    #[error("{what} is {value}, must be {range}")]
    Range {
        /// Name of the number.
        what: &'static str,
        /// Its value.
        value: String,
        /// The valid values.
        range: &'static str,
    },
    /// Feature maps and features do not mix, and the image is no node but the first.
    #[error("its operation cannot stand there")]
    Place,
    /// Nothing reads it.
    #[error("nothing reads it")]
    Unused,
    /// A source head's trunk is not the model's.
    #[error("it is shared by the source head, and differs")]
    NotShared,
}

impl Graph {
    /// The network's name, e.g. `petnet`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes, in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// For each block that training may freeze, the index of the first node behind it.
    pub fn blocks(&self) -> &[usize] {
        &self.blocks
    }

    /// Index of the global average pool: nodes before it compute feature maps, nodes after it features.
    pub fn global_pool(&self) -> usize {
        self.pool
    }

    /// The nodes after the global average pool, each reading the one before it.
    pub fn head(&self) -> &[Node] {
        &self.nodes[self.pool + 1..]
    }

    /// Number of logits.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The same network with a last layer for another number of classes.
    ///
    /// # Errors
    /// [`GraphError`] for no classes, or more than any network here has.
    pub fn with_classes(&self, classes: usize) -> Result<Self, GraphError> {
        let Self { name, mut nodes, blocks, .. } = self.clone();
        if let Some(Node { op: Op::Linear { outputs, .. }, .. }) = nodes.last_mut() {
            *outputs = classes;
        }
        Self::new(name, nodes, blocks)
    }

    /// Height and width of each node's output for a square image of `side` pixels; features count as one pixel.
    ///
    /// # Errors
    /// [`GraphError::Side`] where a window does not fit its feature map, [`GraphError::UnequalSides`] where the feature
    /// maps of a sum have unequal sides.
    pub fn sides(&self, side: usize) -> Result<Vec<[usize; 2]>, GraphError> {
        let mut sides: Vec<[usize; 2]> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let input = node.inputs.first().map_or([side; 2], |from| sides[*from]);
            let small = || GraphError::Side { side, node: node.name.clone() };
            let fit = |window: Window, len| window.output(len).ok_or_else(small);
            sides.push(match node.op {
                Op::Image | Op::BatchNorm { .. } | Op::Activation { .. } | Op::Dropout { .. } => {
                    input
                }
                Op::Conv2d(Conv2d { window, .. }) | Op::MaxPool(window) => {
                    [fit(window, input[0])?, fit(window, input[1])?]
                }
                Op::Add if node.inputs.iter().any(|from| sides[*from] != input) => {
                    return Err(GraphError::UnequalSides { side, node: node.name.clone() });
                }
                Op::Add => input,
                Op::GlobalAvgPool | Op::Linear { .. } => [1, 1],
            });
        }
        Ok(sides)
    }

    /// Smallest side of an image, in pixels, that leaves a pixel at every node and equal sides at every sum.
    pub fn min_side(&self) -> usize {
        /// The largest side that is tried, in pixels: larger than images that networks take.
        const MAX_SIDE: usize = 8192;
        (1..=MAX_SIDE).find(|side| self.sides(*side).is_ok()).unwrap_or(MAX_SIDE)
    }

    /// For each node, how many others read it.
    pub(crate) fn readers(&self) -> Vec<usize> {
        let mut readers = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|from| readers[*from] += 1);
        readers
    }
}
