//! petnet's own network: plain convolutions, which run near the arithmetic's limit on a CPU, and none of
//! many pixels, as two convolutions of stride 2 leave a quarter of each side.

use serde::{Deserialize, Serialize};

use super::NetworkConfig;
use super::resnet::basic_stages;
use crate::graph::{Activation, Builder, Graph, GraphError, Window};

/// Widths and depths of `petnet`: two convolutions of stride 2, stages of residual blocks, the global average, one
/// linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PetNetConfig {
    /// Channels of the first convolution.
    pub stem: usize,
    /// Channels of each stage; every stage but the first halves both sides.
    pub widths: Vec<usize>,
    /// Residual blocks of each stage; a stage of none is left out, but for the first one's width, which is the
    /// stem's.
    pub depths: Vec<usize>,
    /// Share of the pooled features that is dropped in training, from 0 and below 1.
    pub dropout: f64,
}

impl Default for PetNetConfig {
    fn default() -> Self {
        Self { stem: 32, widths: vec![48, 96, 192, 320], depths: vec![0, 1, 1, 1], dropout: 0.0 }
    }
}

impl NetworkConfig for PetNetConfig {
    fn name(&self) -> &str {
        "petnet"
    }

    fn graph(&self, classes: usize) -> Result<Graph, GraphError> {
        let mut net = Builder::new(self.name());
        let mut x = Builder::IMAGE;
        let first = self.widths.first().copied().unwrap_or(self.stem);
        for (index, width) in [self.stem, first].into_iter().enumerate() {
            let name = format!("stem.{index}");
            x = net.conv_norm(&name, x, width, Window::centred(3, 2));
            x = net.activation(x, Activation::Relu);
        }
        let x = basic_stages(&mut net, x, &self.widths, &self.depths);
        let features = net.global_avg_pool(x);
        let features = net.dropout(features, self.dropout);
        net.linear("head", features, classes);
        net.build()
    }
}
