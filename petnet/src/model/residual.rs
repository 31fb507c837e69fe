//! Plain residual networks: petnet's own, which leaves high resolution at once, and torchvision's.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use super::layers::{ConvNorm, Maps};
use crate::architecture::{Normalization, PetNetConfig, ResNetConfig};
use crate::kernel::Activation;

/// A stem that leaves a quarter of each side, stages of residual blocks of two 3x3 convolutions each
/// (He et al., "Deep residual learning", 2015), the global average, one linear layer.
///
/// `petnet`'s stem is two convolutions of stride 2: only plain ones, which run near the arithmetic's
/// limit on a CPU, as depthwise ones do not, and no layer has many pixels. That of `resnet18` is a 7x7
/// convolution and a pooling.
#[derive(Module, Debug)]
pub struct ResidualNet {
    #[module(skip)]
    normalization: Normalization,
    stem: Vec<ConvNorm>,
    /// Whether a pooling of stride 2 ends the stem.
    #[module(skip)]
    pooled: bool,
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
    /// Kaiming-normal convolutions. Blocks speak from the start: with the last norm of each at zero
    /// (Goyal et al., 2017), short trainings lost four points.
    pub(super) fn build(
        &self,
        classes: usize,
        normalization: Normalization,
        device: &Device,
    ) -> ResidualNet {
        let first = self.widths.first().copied().unwrap_or(self.stem);
        let stem = vec![
            ConvNorm::new([3, self.stem], 3, 2, false, device),
            ConvNorm::new([self.stem, first], 3, 2, false, device),
        ];
        let stages = Stages { first, widths: &self.widths, depths: &self.depths };
        stages.after(stem, self.dropout, (classes, normalization), device)
    }
}

impl ResNetConfig {
    /// Kaiming-normal convolutions, as torchvision's.
    pub(super) fn build(
        &self,
        classes: usize,
        normalization: Normalization,
        device: &Device,
    ) -> ResidualNet {
        let first = self.widths.first().copied().unwrap_or(1);
        let stem = vec![ConvNorm::new([3, first], 7, 2, false, device)];
        let stages = Stages { first, widths: &self.widths, depths: &self.depths };
        let net = stages.after(stem, self.dropout, (classes, normalization), device);
        ResidualNet { pooled: true, ..net }
    }
}

/// What follows a stem of `first` channels.
struct Stages<'a> {
    first: usize,
    widths: &'a [usize],
    depths: &'a [usize],
}

impl Stages<'_> {
    fn after(
        self,
        stem: Vec<ConvNorm>,
        dropout: f64,
        (classes, normalization): (usize, Normalization),
        device: &Device,
    ) -> ResidualNet {
        let (mut blocks, mut inputs) = (Vec::new(), self.first);
        for (stage, (&width, &depth)) in self.widths.iter().zip(self.depths).enumerate() {
            for place in 0..depth {
                let stride = if stage > 0 && place == 0 { 2 } else { 1 };
                blocks.push(Residual::new([inputs, width], stride, device));
                inputs = width;
            }
        }
        ResidualNet {
            normalization,
            stem,
            pooled: false,
            blocks,
            dropout: DropoutConfig::new(dropout).init(),
            head: LinearConfig::new(inputs, classes).init(device),
        }
    }
}

impl ResidualNet {
    /// `[n, 3, h, w]` of 0 to 255 -> `[n, width]`.
    pub(super) fn features(&self, images: Tensor<4>) -> Tensor<2> {
        self.maps(images).mean()
    }

    pub(super) fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        self.head.forward(self.dropout.forward(features)) // [n, classes]
    }

    /// See [`Network::explain`](super::Network::explain).
    pub(super) fn explain(&self, image: Tensor<4>) -> (Tensor<2>, Tensor<3>) {
        let maps = self.maps(image);
        let features = maps.clone().mean(); // [1, width]
        let logits = self.head.forward(features.clone()); // [1, classes]
        let maps = maps.planes(); // [1, width, h', w']
        let best = logits.argmax(1).reshape([1]); // [1]
        let towards = self.head.weight.val().select(1, best); // [width, 1]
        let width = maps.dims()[1];
        let heat = maps * towards.reshape([1, width, 1, 1]); // [1, width, h', w']
        (features, relu(heat.sum_dim(1).squeeze_dim::<3>(1))) // [1, h', w']
    }

    /// See [`Network::set_momentum`](super::Network::set_momentum).
    #[cfg(feature = "train")]
    pub(super) fn set_momentum(&mut self, momentum: f64) {
        let blocks = self.blocks.iter_mut();
        let convs =
            blocks.flat_map(|b| [&mut b.first, &mut b.second].into_iter().chain(&mut b.shortcut));
        self.stem.iter_mut().chain(convs).for_each(|conv| conv.set_momentum(momentum));
    }

    fn maps(&self, images: Tensor<4>) -> Maps {
        let x = Maps::new(self.normalization.forward(images));
        let x = self.stem.iter().fold(x, |x, conv| conv.forward(x, None, Activation::Relu));
        let x = if self.pooled { x.pooled() } else { x };
        self.blocks.iter().fold(x, |x, block| block.forward(x))
    }
}

impl Residual {
    fn new([inputs, outputs]: [usize; 2], stride: usize, device: &Device) -> Self {
        let changes = inputs != outputs || stride != 1;
        Self {
            first: ConvNorm::new([inputs, outputs], 3, stride, false, device),
            second: ConvNorm::new([outputs, outputs], 3, 1, false, device),
            shortcut: changes.then(|| ConvNorm::new([inputs, outputs], 1, stride, false, device)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;

    #[test]
    fn resnet18_has_torchvisions_parameters_and_operations() {
        let config = ResNetConfig::default();
        let net = config.build(1000, Normalization::default(), &Device::flex());
        assert_eq!(net.num_params(), 11_689_512 + 2 * 4800, "running statistics included");
        assert_eq!(Architecture::ResNet(config).flops(224), 3_627_122_688);
    }

    #[test]
    fn parameters_and_operations_are_those_of_the_drawing() {
        let device = Device::flex();
        let config = PetNetConfig { stem: 4, widths: vec![6, 8], depths: vec![1, 1], dropout: 0.0 };
        let net = config.build(2, Normalization::default(), &device);
        let weights: usize = 27 * 4 + 36 * 6 + 2 * 54 * 6 + (54 + 72) * 8 + 48 + 16;
        let norms = 2 * (4 + 6 + 6 + 6 + 8 + 8 + 8);
        assert_eq!(net.num_params(), weights + norms + norms + 2);
        let places = [(16, 27 * 4), (8, 36 * 6 + 2 * 54 * 6), (4, (54 + 72) * 8 + 48)];
        let products: usize = places.iter().map(|(side, weights)| side * side * weights).sum();
        assert_eq!(Architecture::PetNet(config).flops(32), 2 * products as u64);
        let images = Tensor::<4>::zeros([2, 3, 32, 24], &device);
        assert_eq!(net.classify(net.features(images.clone())).dims(), [2, 2]);
        let (features, heat) = net.explain(images.narrow(0, 0, 1));
        assert_eq!((features.dims(), heat.dims()), ([1, 8], [1, 4, 3]));
    }
}
