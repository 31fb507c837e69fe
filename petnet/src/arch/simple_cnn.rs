//! SimpleCNN, the network of the Python reference implementation.

use serde::{Deserialize, Serialize};

use super::NetworkConfig;
#[cfg(feature = "pytorch")]
use super::{Architecture, Keys, RecognisedNetwork};
use crate::graph::{Activation, Builder, Conv2d, Graph, GraphError, Init, Op, Padding, Window};

/// Widths of `simple_cnn`: blocks of [conv 3x3 -> batch norm -> ReLU -> max pool 2], the global average, two linear
/// layers. 422,530 parameters and 1.47 GFLOP at 224 pixels with the default widths and two classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimpleCnnConfig {
    /// Channels of each block; every block halves both sides of the image.
    pub channels: Vec<usize>,
    /// Width of the layer before the logits.
    pub hidden: usize,
    /// Share of that layer that is dropped in training, from 0 and below 1.
    pub dropout: f64,
}

impl Default for SimpleCnnConfig {
    fn default() -> Self {
        Self { channels: vec![32, 64, 128, 256], hidden: 128, dropout: 0.5 }
    }
}

impl NetworkConfig for SimpleCnnConfig {
    fn name(&self) -> &str {
        "simple_cnn"
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        let mut net = Builder::new(self.name());
        let mut x = Builder::IMAGE;
        for (block, &outputs) in self.channels.iter().enumerate() {
            let (inputs, window) = (net.channels(x), Window::centred(3, 1));
            let conv = Conv2d { inputs, outputs, window, groups: 1, bias: true };
            x = net.node(format!("blocks.{block}.conv"), Op::Conv2d(conv), &[x]);
            x = net.batch_norm(format!("blocks.{block}.norm"), x, Builder::EPSILON);
            x = net.activation(x, Activation::Relu);
            x = net.max_pool(x, Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) });
            net.end_block();
        }
        let features = net.global_avg_pool(x);
        let narrow = |inputs, outputs| Op::Linear { inputs, outputs, init: Init::Narrow };
        let inputs = net.channels(features);
        let hidden = net.node("hidden", narrow(inputs, self.hidden), &[features]);
        let hidden = net.activation(hidden, Activation::Relu);
        let hidden = net.dropout(hidden, self.dropout);
        net.node("head", narrow(self.hidden, classes), &[hidden]);
        net.build()
    }
}

/// Convolutions with a norm each, in the order of their names, and two linear layers: names are free.
#[cfg(feature = "pytorch")]
pub(super) fn recognise(keys: &Keys<'_>) -> Option<RecognisedNetwork> {
    let (convs, norms) = (keys.convs(), keys.norms());
    let [hidden, head] = <[String; 2]>::try_from(keys.linears()).ok()?;
    if convs.is_empty() || convs.len() != norms.len() {
        return None;
    }
    let (mut modules, mut channels) = (Vec::new(), Vec::new());
    for (block, (conv, norm)) in convs.iter().zip(&norms).enumerate() {
        channels.push(keys.outputs(conv)?);
        modules.extend(keys.conv_norm(&format!("blocks.{block}"), conv, norm));
    }
    let (width, classes) = (keys.outputs(&hidden)?, keys.outputs(&head)?);
    modules.extend([("hidden".into(), hidden), ("head".into(), head)]);
    let config = SimpleCnnConfig { channels, hidden: width, dropout: 0.5 };
    Some(RecognisedNetwork { architecture: Architecture::new(config), classes, modules })
}
