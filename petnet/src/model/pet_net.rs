//! petnet's own network: a plain residual network that leaves high resolution at once.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::Normalization;
use super::layers::{ConvNorm, Maps, linear};
use crate::kernel::Activation;

/// Widths and depths of a [`PetNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PetNetConfig {
    /// Channels of the first convolution.
    pub stem: usize,
    /// Channels of each stage; every stage but the first halves both sides.
    pub widths: Vec<usize>,
    /// Residual blocks of each stage.
    pub depths: Vec<usize>,
    /// Share of the pooled features that is dropped in training, 0 to 1.
    pub dropout: f64,
}

impl Default for PetNetConfig {
    fn default() -> Self {
        Self { stem: 32, widths: vec![48, 96, 192, 320], depths: vec![1, 1, 1, 1], dropout: 0.0 }
    }
}

/// Two convolutions of stride 2, stages of residual blocks of two 3x3 convolutions each
/// (He et al., "Deep residual learning", 2015), the global average, one linear layer.
///
/// Only plain convolutions: on a CPU they run near the arithmetic's limit, which depthwise ones do
/// not. A quarter of each side is left after the stem, so no layer has many pixels.
#[derive(Module, Debug)]
pub struct PetNet {
    #[module(skip)]
    normalization: Normalization,
    stem: Vec<ConvNorm>,
    blocks: Vec<Residual>,
    dropout: Dropout,
    head: Linear,
}

/// `relu(second(first(x)) + shortcut(x))`.
#[derive(Module, Debug)]
struct Residual {
    first: ConvNorm,
    second: ConvNorm,
    /// Where shapes differ; else `x` itself.
    shortcut: Option<ConvNorm>,
}

impl PetNetConfig {
    /// Builds the network: Kaiming-normal convolutions; each block starts as its shortcut.
    pub fn build(&self, classes: usize, normalization: Normalization, device: &Device) -> PetNet {
        let first = self.widths.first().copied().unwrap_or(self.stem);
        let mut blocks = Vec::new();
        let mut inputs = first;
        for (stage, (&width, &depth)) in self.widths.iter().zip(&self.depths).enumerate() {
            for place in 0..depth {
                let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                blocks.push(Residual::new([inputs, width], stride, device));
                inputs = width;
            }
        }
        PetNet {
            normalization,
            stem: vec![
                ConvNorm::new([3, self.stem], 3, 2, false, device),
                ConvNorm::new([self.stem, first], 3, 2, false, device),
            ],
            blocks,
            dropout: DropoutConfig::new(self.dropout).init(),
            head: linear(inputs, classes, device),
        }
    }
}

impl PetNet {
    /// `[n, 3, h, w]` of 0 to 255 -> logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.features(images).mean(); // [n, width]
        self.head.forward(self.dropout.forward(x)) // [n, classes]
    }

    /// See [`Network::explain`](super::Network::explain).
    pub(super) fn explain(&self, image: Tensor<4>) -> (Tensor<2>, Tensor<3>) {
        let maps = self.features(image);
        let logits = self.head.forward(maps.clone().mean()); // [1, classes]
        let maps = maps.planes(); // [1, width, h', w']
        let best = logits.clone().argmax(1).reshape([1]); // [1]
        let towards = self.head.weight.val().select(1, best); // [width, 1]
        let width = maps.dims()[1];
        let heat = maps * towards.reshape([1, width, 1, 1]); // [1, width, h', w']
        (logits, relu(heat.sum_dim(1).squeeze_dim::<3>(1))) // [1, h', w']
    }

    fn features(&self, images: Tensor<4>) -> Maps {
        let x = Maps::new(self.normalization.forward(images));
        let x = self.stem.iter().fold(x, |x, conv| conv.forward(x, None, Activation::Relu));
        self.blocks.iter().fold(x, |x, block| block.forward(x))
    }
}

impl Residual {
    fn new([inputs, outputs]: [usize; 2], stride: usize, device: &Device) -> Self {
        let changes = inputs != outputs || stride != 1;
        Self {
            first: ConvNorm::new([inputs, outputs], 3, stride, false, device),
            second: ConvNorm::new([outputs, outputs], 3, 1, false, device).silent(),
            shortcut: changes
                .then(|| ConvNorm::new([inputs, outputs], 1, stride, false, device)),
        }
    }

    fn forward(&self, x: Maps) -> Maps {
        let inner = self.first.forward(x.clone(), None, Activation::Relu);
        let shortcut = match &self.shortcut {
            Some(conv) => conv.forward(x, None, Activation::Linear),
            None => x,
        };
        self.second.forward(inner, Some(shortcut), Activation::Relu)
    }
}
