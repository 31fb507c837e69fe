//! A graph as one burn module, for training and for inference on GPUs. Independent of architectures,
//! files and images.
//!
//! Input is `[n, 3, size, size]` with values 0 to 255; normalisation is the first layer, so that callers pass pixels as
//! they are. Output is logits `[n, classes]`.

#[cfg(feature = "flex")]
mod cpu;
#[cfg(all(test, feature = "train"))]
mod golden;
mod maps;
mod ops;
pub(crate) mod run;
#[cfg(all(test, feature = "train"))]
mod tests;
pub(crate) mod weights;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, DropoutConfig, Initializer, Linear, LinearConfig};
#[cfg(feature = "train")]
use burn::tensor::TensorData;
use burn::tensor::{Device, Tensor};

pub use maps::FeatureMaps;

use crate::arch::Normalization;
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::error::{Error, Result};
use crate::graph::{self, Graph, Init, Op};
use crate::kernel::NormEpilogue;
use crate::passes::{self, FusedStep, MainOp};

impl Normalization {
    /// `[n, 3, h, w]` of 0 to 255 -> the same shape, about zero mean and unit variance.
    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let device = images.device();
        let tensor = |values| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
        let [scale, shift] = self.affine().map(tensor);
        images * scale + shift
    }
}

/// Any network, as a burn module.
///
/// ```
/// use petnet::arch::{Architecture, Normalization};
/// use petnet::burn::{Network, open, tensor::Tensor};
///
/// let device = open(petnet::Device::Cpu)?;
/// let graph = Architecture::named("resnet18")?.graph(5)?;
/// let network = Network::new(&graph, Normalization::default(), &device);
/// let logits = network.forward(Tensor::zeros([1, 3, 32, 32], &device));
/// assert_eq!(logits.dims(), [1, 5]);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct Network {
    #[module(skip)]
    graph: Graph,
    /// The steps up to the global average pool.
    #[module(skip)]
    steps: Vec<FusedStep>,
    #[module(skip)]
    normalization: Normalization,
    /// True where convolutions compute in 16-bit floats on a device with automatic differentiation.
    #[module(skip)]
    mixed: bool,
    /// For each node, the index among the layers of its kind.
    #[module(skip)]
    layer_indices: Vec<usize>,
    convs: Vec<Conv2d>,
    norms: Vec<BatchNorm>,
    linears: Vec<Linear>,
}

impl Network {
    /// With fresh random weights: Kaiming-normal (fan-out) convolutions (He et al., 2015) with zero biases, linear layers
    /// by their [`Init`].
    pub fn new(graph: &Graph, normalization: Normalization, device: &Device) -> Self {
        let (mut convs, mut norms, mut linears) = (Vec::new(), Vec::new(), Vec::new());
        let layer_indices = graph.nodes().iter().map(|node| match node.op {
            Op::Conv2d(config) => {
                convs.push(conv(&config, device));
                convs.len() - 1
            }
            Op::BatchNorm { channels, epsilon } => {
                let config = BatchNormConfig::new(channels).with_epsilon(f64::from(epsilon));
                norms.push(config.init(device));
                norms.len() - 1
            }
            Op::Linear { inputs, outputs, init } => {
                linears.push(linear([inputs, outputs], init, device));
                linears.len() - 1
            }
            _ => 0,
        });
        let layer_indices = layer_indices.collect();
        let steps = passes::fuse(graph);
        let graph = graph.clone();
        Self { graph, steps, normalization, mixed: false, layer_indices, convs, norms, linears }
    }

    /// With a checkpoint's weights.
    ///
    /// # Errors
    /// None for a checkpoint, whose weights are those of its graph; [`Error::Checkpoint`] otherwise.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        let ModelInfo { graph, normalization, .. } = checkpoint.info();
        let network = Self::new(graph, *normalization, device);
        let own = graph.nodes().iter().flat_map(passes::parameters);
        let weights = own.filter_map(|(name, _)| {
            let weight = checkpoint.weights().get(&name)?.clone();
            Some((name, weight))
        });
        weights::write(network, &weights.collect())
            .map_err(|reason| Error::checkpoint("<weights>", reason))
    }

    /// A copy of the weights, on no device.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where the description is of another graph, or not valid.
    pub fn checkpoint(&self, info: ModelInfo) -> Result<Checkpoint> {
        Checkpoint::new(info, weights::read(self))
            .map_err(|reason| Error::checkpoint("<network>", reason))
    }

    /// The graph that it runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// `[n, 3, h, w]` of 0 to 255 -> logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.classify(self.features(images))
    }

    /// `[n, 3, h, w]` of 0 to 255 -> global average pooling of the last feature maps, `[n, channels]`.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        self.maps(images).mean()
    }

    /// The output of [`Network::features`] -> logits `[n, classes]`.
    pub fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        let nodes = self.graph.nodes().iter().enumerate().skip(self.graph.global_pool() + 1);
        nodes.fold(features, |x, (index, node)| match node.op {
            Op::Linear { .. } => self.linears[self.layer_indices[index]].forward(x), // [n, outputs]
            Op::Activation { function } => ops::activate(x, function),
            Op::Dropout { rate } => DropoutConfig::new(rate).init().forward(x),
            // A valid head has no other operation.
            _ => x,
        })
    }

    /// `[n, 3, h, w]` of 0 to 255 -> the last feature maps.
    pub(crate) fn maps(&self, images: Tensor<4>) -> FeatureMaps {
        self.run(0, FeatureMaps::new(self.normalization.forward(images)), self.graph.global_pool())
    }

    /// `[n, 3, h, w]` of 0 to 255 -> the feature maps after the first `blocks` blocks, for [`Network::features_after`].
    pub fn trunk(&self, images: Tensor<4>, blocks: usize) -> FeatureMaps {
        let images = FeatureMaps::new(self.normalization.forward(images));
        self.run(0, images, self.end_of_blocks(blocks) + 1)
    }

    /// The output of [`Network::trunk`] with the same number of blocks -> global average pooling of the last feature maps, `[n, channels]`.
    pub fn features_after(&self, maps: FeatureMaps, blocks: usize) -> Tensor<2> {
        self.run(self.end_of_blocks(blocks), maps, self.graph.global_pool()).mean()
    }

    /// Feature maps from values that the engine computed, `[h, w, n, c]`.
    #[cfg(feature = "train")]
    pub(crate) fn maps_of_engine(
        values: Vec<f32>,
        shape: [usize; 4],
        device: &Device,
    ) -> FeatureMaps {
        let maps = Tensor::<4>::from_data(TensorData::new(values, shape), device);
        FeatureMaps::new(maps.permute([2, 3, 0, 1])) // [n, c, h, w]
    }

    /// Index of the last node of the first `blocks` blocks, of all where there are fewer; 0, the image, for none.
    fn end_of_blocks(&self, blocks: usize) -> usize {
        self.graph.blocks().iter().take(blocks).next_back().map_or(0, |end| end - 1)
    }

    /// Runs the steps of the nodes after `from`, whose feature maps are `given`, and before `to`.
    fn run(&self, from: usize, given: FeatureMaps, to: usize) -> FeatureMaps {
        let mut last = given;
        let steps = self.steps.iter().filter(|step| step.output > from && step.output < to);
        let steps: Vec<&FusedStep> = steps.collect();
        // Only maps that a later step reads are kept: inference needs no others.
        let mut kept: Vec<(usize, FeatureMaps)> = vec![(from, last.clone())];
        for (index, step) in steps.iter().enumerate() {
            let get = |node: usize| {
                let (_, maps) =
                    kept.iter().find(|(at, _)| *at == node).expect("a block reads its own maps");
                maps.clone()
            };
            let (input, residual) = (get(step.input), step.epilogue.residual.map(get));
            last = self.step(step, input, residual);
            let reads = |later: &&FusedStep, node| {
                later.input == node || later.epilogue.residual == Some(node)
            };
            kept.retain(|(node, _)| steps[index + 1..].iter().any(|later| reads(later, *node)));
            kept.push((step.output, last.clone()));
        }
        last
    }

    fn step(&self, step: &FusedStep, x: FeatureMaps, residual: Option<FeatureMaps>) -> FeatureMaps {
        let passes::FusedOps { norm, activation, pool, .. } = step.epilogue;
        let norm = norm.map(|node| &self.norms[self.layer_indices[node]]);
        let epilogue = NormEpilogue { activation, pool };
        let (x, bias) = match step.main {
            MainOp::Conv(config) => {
                let layer = &self.convs[self.layer_indices[step.node]];
                maps::ConvLayer { config, layer, mixed: self.mixed }.forward(x)
            }
            MainOp::MaxPool(window) => return x.max_pool(window),
            MainOp::Identity => (x, None),
        };
        maps::apply_epilogue(x, bias, norm, residual, epilogue)
    }

    /// Paths, in burn's notation, of the parameters without weight decay: biases and batch norms.
    #[cfg(feature = "train")]
    pub(crate) fn without_weight_decay(&self) -> Vec<String> {
        let layers = self.layer_indices.iter().zip(self.graph.nodes());
        let paths = layers.flat_map(|(index, node)| match node.op {
            Op::Conv2d(_) => vec![format!("convs.{index}.bias")],
            Op::BatchNorm { .. } => {
                vec![format!("norms.{index}.gamma"), format!("norms.{index}.beta")]
            }
            Op::Linear { .. } => vec![format!("linears.{index}.bias")],
            _ => Vec::new(),
        });
        paths.collect()
    }

    /// Makes convolutions, except grouped ones, compute in 16-bit floats on a device with automatic differentiation; all other
    /// operations, and all weights, have 32 bits.
    #[cfg(feature = "train")]
    pub(crate) fn set_mixed_precision(&mut self, mixed: bool) {
        self.mixed = mixed;
    }

    /// Momentum of the running batch-norm statistics: the weight of a new batch, 0 to 1.
    #[cfg(feature = "train")]
    pub(crate) fn set_momentum(&mut self, momentum: f64) {
        self.norms.iter_mut().for_each(|norm| norm.momentum = momentum);
    }
}

/// Kaiming-normal weights by fan-out; a depthwise kernel feeds one channel.
fn conv(config: &graph::Conv2d, device: &Device) -> Conv2d {
    let graph::Conv2d { inputs, outputs, window, groups, bias } = *config;
    let mut conv = Conv2dConfig::new([inputs, outputs], [window.kernel; 2])
        .with_stride([window.stride; 2])
        .with_groups(groups)
        .with_bias(bias)
        .init(device);
    let fan_out = outputs / groups * window.kernel * window.kernel;
    let kaiming = Initializer::Normal { mean: 0.0, std: (2.0 / fan_out as f64).sqrt() };
    conv.weight = kaiming.init(config.weight_shape(), device);
    conv.bias = bias.then(|| Initializer::Zeros.init([outputs], device));
    conv
}

fn linear([inputs, outputs]: [usize; 2], init: Init, device: &Device) -> Linear {
    let mut linear = LinearConfig::new(inputs, outputs).init(device);
    match init {
        Init::Uniform => {}
        Init::Narrow => {
            let narrow = Initializer::Normal { mean: 0.0, std: 0.01 };
            linear.weight = narrow.init([inputs, outputs], device);
            linear.bias = Some(Initializer::Zeros.init([outputs], device));
        }
    }
    linear
}
