//! The reference system's network, by configuration of channels.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use super::layers::{ConvNorm, Maps, linear};
use crate::architecture::{Normalization, SimpleCnnConfig};
use crate::kernel::Activation;

/// Blocks of [conv 3x3 -> batch norm -> ReLU -> max pool 2], the global average, two linears.
///
/// 422,530 parameters and 1.47 GFLOP at 224 pixels with the default widths and two classes.
#[derive(Module, Debug)]
pub struct SimpleCnn {
    #[module(skip)]
    normalization: Normalization,
    blocks: Vec<ConvNorm>,
    hidden: Linear,
    dropout: Dropout,
    head: Linear,
}

impl SimpleCnnConfig {
    /// Kaiming-normal fan-out convolutions, normal(0, 0.01) linears, zero biases.
    pub(super) fn build(
        &self,
        classes: usize,
        normalization: Normalization,
        device: &Device,
    ) -> SimpleCnn {
        let inputs = std::iter::once(&3).chain(&self.channels);
        let blocks = inputs
            .zip(&self.channels)
            .map(|(&inputs, &outputs)| ConvNorm::new([inputs, outputs], 3, 1, true, device))
            .collect();
        let features = self.channels.last().copied().unwrap_or(3);
        SimpleCnn {
            normalization,
            blocks,
            hidden: linear(features, self.hidden, device),
            dropout: DropoutConfig::new(self.dropout).init(),
            head: linear(self.hidden, classes, device),
        }
    }
}

impl SimpleCnn {
    /// `[n, 3, h, w]` of 0 to 255 -> `[n, 256]`; `h` and `w` at least 2^blocks.
    pub(super) fn features(&self, images: Tensor<4>) -> Tensor<2> {
        self.maps(images).mean()
    }

    pub(super) fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        let x = relu(self.hidden.forward(features)); // [n, 128]
        self.head.forward(self.dropout.forward(x)) // [n, classes]
    }

    /// See [`Network::explain`](super::Network::explain).
    pub(super) fn explain(&self, image: Tensor<4>) -> (Tensor<2>, Tensor<3>) {
        let maps = self.maps(image);
        let features = maps.clone().mean(); // [1, 256]
        let hidden = relu(self.hidden.forward(features.clone())); // [1, 128]
        let maps = maps.planes(); // [1, 256, h', w']
        let logits = self.head.forward(hidden.clone()); // [1, classes]
        let best = logits.argmax(1).reshape([1]); // [1]
        let towards = self.head.weight.val().select(1, best).transpose(); // [1, 128]
        // The gradient of the best logit by the pooled features: ReLU passes what it let through.
        let gradient = towards * hidden.greater_scalar(0).float(); // [1, 128]
        let gradient = gradient.matmul(self.hidden.weight.val().transpose()); // [1, 256]
        let channels = gradient.dims()[1];
        let heat = maps * gradient.reshape([1, channels, 1, 1]); // [1, 256, h', w']
        (features, relu(heat.sum_dim(1).squeeze_dim::<3>(1))) // [1, h', w']
    }

    /// See [`Network::set_momentum`](super::Network::set_momentum).
    #[cfg(feature = "train")]
    pub(super) fn set_momentum(&mut self, momentum: f64) {
        self.blocks.iter_mut().for_each(|conv| conv.set_momentum(momentum));
    }

    /// The last block's output, of sides `h/16` and `w/16`.
    fn maps(&self, images: Tensor<4>) -> Maps {
        let x = Maps::new(self.normalization.forward(images));
        self.blocks.iter().fold(x, |x, block| block.forward(x, None, Activation::ReluPool))
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    #[test]
    fn the_heat_map_is_what_automatic_differentiation_gives() {
        let device = Device::flex().autodiff();
        device.seed(3);
        let config = SimpleCnnConfig { channels: vec![4, 6], hidden: 8, dropout: 0.0 };
        let net = config.build(2, Normalization::default(), &device);
        let values: Vec<f32> = (0..3 * 16 * 12).map(|i| (i * 31 % 251) as f32).collect();
        let data = burn::tensor::TensorData::new(values, [1, 3, 16, 12]);
        let image = Tensor::<4>::from_data(data, &device);
        let maps = net.maps(image.clone()).planes().detach().require_grad(); // [1, 6, 4, 3]
        let pooled = maps.clone().reshape([1, 6, 12]).mean_dim(2).reshape([1, 6]); // [1, 6]
        let logits = net.head.forward(relu(net.hidden.forward(pooled)));
        let gradients = logits.max_dim(1).sum().backward();
        let gradient = maps.grad(&gradients).unwrap(); // [1, 6, 4, 3]
        // Grad-CAM weighs each channel by the mean of its gradient.
        let weights = gradient.sum_dim(2).sum_dim(3); // [1, 6, 1, 1]
        let expected = relu((maps.inner() * weights).sum_dim(1)); // [1, 1, 4, 3]
        let (_, heat) = net.explain(image);
        let numbers = |data: burn::tensor::TensorData| data.try_into_vec_as::<f32>().unwrap();
        let (ours, theirs) = (numbers(heat.inner().into_data()), numbers(expected.into_data()));
        assert!(theirs.iter().any(|value| *value > 0.0), "{theirs:?}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-6, "{ours} is not {theirs}");
        }
    }
}
