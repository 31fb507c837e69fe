//! Residual networks of basic blocks (He et al., "Deep residual learning", 2015), as torchvision has them.

use serde::{Deserialize, Serialize};

use super::NetworkConfig;
#[cfg(feature = "pytorch")]
use super::{Architecture, Keys, RecognisedNetwork};
use crate::graph::{Activation, Builder, Graph, GraphError, Window};

/// Widths and depths of a residual network as torchvision builds it: a 7x7 convolution and a max pool of stride 2
/// each, stages of basic blocks, the global average, one linear layer. The default is `resnet18`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels of each stage, the first one's of the stem too; every stage but the first halves both sides.
    pub widths: Vec<usize>,
    /// Residual blocks of each stage.
    pub depths: Vec<usize>,
    /// Share of the pooled features that is dropped in training, from 0 and below 1.
    pub dropout: f64,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self { widths: vec![64, 128, 256, 512], depths: vec![2; 4], dropout: 0.0 }
    }
}

impl ResNetConfig {
    /// `improved_cnn`: the first three stages of `resnet18`, 2.8 million parameters.
    pub fn improved() -> Self {
        Self { widths: vec![64, 128, 256], depths: vec![2; 3], dropout: 0.0 }
    }

    fn has_shape_of(&self, other: &Self) -> bool {
        self.widths == other.widths && self.depths == other.depths
    }
}

impl NetworkConfig for ResNetConfig {
    fn name(&self) -> &str {
        if self.has_shape_of(&Self::default()) {
            "resnet18"
        } else if self.has_shape_of(&Self::improved()) {
            "improved_cnn"
        } else {
            "resnet"
        }
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        let mut net = Builder::new(self.name());
        let width = self.widths.first().copied().unwrap_or(0);
        let x = net.conv_norm("stem.0", Builder::IMAGE, width, Window::centred(7, 2));
        let x = net.activation(x, Activation::Relu);
        let x = net.max_pool(x, Window::centred(3, 2));
        let x = basic_stages(&mut net, x, &self.widths, &self.depths);
        let features = net.global_avg_pool(x);
        let features = net.dropout(features, self.dropout);
        net.linear("head", features, classes);
        net.build()
    }
}

/// Stages of basic blocks, `relu(second(first(x)) + shortcut(x))`; every stage but the first halves both sides.
pub(super) fn basic_stages(
    net: &mut Builder,
    mut x: usize,
    widths: &[usize],
    depths: &[usize],
) -> usize {
    let mut number = 0;
    for (stage, (&width, &depth)) in widths.iter().zip(depths).enumerate() {
        for index in 0..depth {
            let name = |part: &str| format!("blocks.{number}.{part}");
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let shortcut = if net.channels(x) != width || stride != 1 {
                net.conv_norm(&name("shortcut"), x, width, Window::centred(1, stride))
            } else {
                x
            };
            let window = Window::centred(3, stride);
            let inner = net.conv_norm(&name("first"), x, width, window);
            let inner = net.activation(inner, Activation::Relu);
            let window = Window::centred(3, 1);
            // Its norm starts at a scale of 1: starting it at 0 (Goyal et al., 2017) cost four points in short runs.
            let outer = net.conv_norm(&name("second"), inner, width, window);
            let sum = net.add(outer, shortcut);
            x = net.activation(sum, Activation::Relu);
            net.end_block();
            number += 1;
        }
    }
    x
}

/// torchvision's names: `conv1`, `bn1`, `layerS.B.conv1`, `layerS.B.downsample.0`, `fc`.
#[cfg(feature = "pytorch")]
pub(super) fn recognise(keys: &Keys<'_>) -> Option<RecognisedNetwork> {
    if !keys.has("layer1.0.conv1") || keys.has("layer1.0.conv3") {
        return None;
    }
    let mut modules = keys.conv_norm("stem.0", "conv1", "bn1");
    let (mut widths, mut depths, mut number) = (Vec::new(), Vec::new(), 0);
    while let Some(width) = keys.outputs(&format!("layer{}.0.conv1", depths.len() + 1)) {
        let (stage, mut depth) = (depths.len() + 1, 0);
        while keys.has(&format!("layer{stage}.{depth}.conv1")) {
            let from = |part: &str| format!("layer{stage}.{depth}.{part}");
            let to = |part: &str| format!("blocks.{number}.{part}");
            modules.extend(keys.conv_norm(&to("first"), &from("conv1"), &from("bn1")));
            modules.extend(keys.conv_norm(&to("second"), &from("conv2"), &from("bn2")));
            for name in ["downsample", "shortcut"] {
                let [conv, norm] = [0, 1].map(|index| from(&format!("{name}.{index}")));
                if keys.has(&conv) {
                    modules.extend(keys.conv_norm(&to("shortcut"), &conv, &norm));
                }
            }
            (depth, number) = (depth + 1, number + 1);
        }
        widths.push(width);
        depths.push(depth);
    }
    let head = keys.linears().pop()?;
    let classes = keys.outputs(&head)?;
    modules.push(("head".into(), head));
    let config = ResNetConfig { widths, depths, dropout: 0.0 };
    Some(RecognisedNetwork { architecture: Architecture::new(config), classes, modules })
}
