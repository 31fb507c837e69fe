//! What the networks are built of. Each layer has one set of weights and two ways to compute:
//! burn's own operations, and on the CPU the kernels of [`super::pixels`].

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use super::pixels::{self, Spacing};
use crate::kernel::Activation;

/// Feature maps in the order that suits the device.
#[derive(Debug, Clone)]
pub(super) enum Maps {
    /// `[n, c, h, w]`.
    Planes(Tensor<4>),
    /// `[h, w, n, c]`.
    Pixels(Tensor<4>),
}

impl Maps {
    /// From `[n, c, h, w]`.
    pub(super) fn new(planes: Tensor<4>) -> Self {
        if pixels::supports(&planes.device()) {
            Self::Pixels(planes.permute([2, 3, 0, 1])) // [h, w, n, c]
        } else {
            Self::Planes(planes)
        }
    }

    /// To `[n, c, h, w]`.
    pub(super) fn planes(self) -> Tensor<4> {
        match self {
            Self::Planes(planes) => planes,
            Self::Pixels(pixels) => pixels.permute([2, 3, 0, 1]), // [n, c, h, w]
        }
    }

    /// The mean of each map, `[n, c]`.
    pub(super) fn mean(self) -> Tensor<2> {
        match self {
            Self::Planes(planes) => {
                let [n, c, h, w] = planes.dims();
                planes.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]) // [n, c]
            }
            Self::Pixels(pixels) => {
                let [h, w, n, c] = pixels.dims();
                pixels.reshape([h * w, n, c]).mean_dim(0).reshape([n, c]) // [n, c]
            }
        }
    }
}

/// A convolution, batch normalisation, and what follows them.
#[derive(Module, Debug)]
pub(super) struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvNorm {
    /// Kaiming-normal (fan-out) weights; sides shrink by `stride` and nothing else.
    pub(super) fn new(
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
        bias: bool,
        device: &Device,
    ) -> Self {
        let padding = kernel / 2;
        let mut conv = Conv2dConfig::new([inputs, outputs], [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .with_bias(bias)
            .init(device);
        let fan_out = outputs * kernel * kernel;
        let kaiming = Initializer::Normal { mean: 0.0, std: (2.0 / fan_out as f64).sqrt() };
        conv.weight = kaiming.init([outputs, inputs, kernel, kernel], device);
        conv.bias = bias.then(|| Initializer::Zeros.init([outputs], device));
        Self { conv, norm: BatchNormConfig::new(outputs).init(device) }
    }

    /// Says nothing at first, so that what it is added to passes unchanged
    /// (Goyal et al., "Accurate, large minibatch SGD", 2017).
    pub(super) fn silent(mut self) -> Self {
        self.norm.gamma = self.norm.gamma.map(|gamma| match gamma.is_require_grad() {
            true => gamma.zeros_like().require_grad(),
            false => gamma.zeros_like(),
        });
        self
    }

    /// The shortcut is added before the activation.
    pub(super) fn forward(&self, x: Maps, shortcut: Option<Maps>, activation: Activation) -> Maps {
        match x {
            Maps::Planes(x) => Maps::Planes(self.planes(x, shortcut.map(Maps::planes), activation)),
            Maps::Pixels(x) => {
                let shortcut = shortcut.map(|maps| match maps {
                    Maps::Pixels(pixels) => pixels,
                    Maps::Planes(planes) => planes.permute([2, 3, 0, 1]), // [h, w, n, c]
                });
                Maps::Pixels(self.pixels(x, shortcut, activation))
            }
        }
    }

    fn planes(
        &self,
        x: Tensor<4>,
        shortcut: Option<Tensor<4>>,
        activation: Activation,
    ) -> Tensor<4> {
        let x = self.norm.forward(self.conv.forward(x)); // [n, outputs, h', w']
        let x = match shortcut {
            Some(shortcut) => x + shortcut,
            None => x,
        };
        match activation {
            Activation::Linear => x,
            Activation::Relu => relu(x),
            Activation::ReluPool => {
                MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init().forward(relu(x))
            }
        }
    }

    fn pixels(
        &self,
        x: Tensor<4>,
        shortcut: Option<Tensor<4>>,
        activation: Activation,
    ) -> Tensor<4> {
        let spacing =
            Spacing { stride: self.conv.stride[0], padding: self.conv.kernel_size[0] / 2 };
        let z = pixels::conv(x, self.conv.weight.val(), spacing); // [h', w', n, outputs]
        let norm = &self.norm;
        let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
        // Normalisation takes the mean, and with it any bias of the convolution, out again.
        let bias = self.conv.bias.as_ref().map(|bias| bias.val().detach());
        #[cfg(feature = "train")]
        if z.device().is_autodiff() && norm.training.is_enabled() {
            let normalized = pixels::norm(z, [gamma, beta], norm.epsilon, shortcut, activation);
            let mean = match bias {
                Some(bias) => normalized.mean + bias.inner(),
                None => normalized.mean,
            };
            self.remember(mean, normalized.variance);
            return normalized.maps;
        }
        let mean = match bias {
            Some(bias) => norm.running_mean.value() - bias,
            None => norm.running_mean.value(),
        };
        let statistics = [gamma, beta, mean, norm.running_var.value()];
        pixels::affine(z, statistics, norm.epsilon, shortcut, activation)
    }

    /// Moves the running statistics towards those of a batch.
    #[cfg(feature = "train")]
    fn remember(&self, mean: Tensor<1>, variance: Tensor<1>) {
        let momentum = self.norm.momentum;
        for (running, new) in [(&self.norm.running_mean, mean), (&self.norm.running_var, variance)]
        {
            let old = running.value_sync();
            let new = Tensor::from_inner(new).to_device(&old.device());
            running.update((old * (1.0 - momentum) + new * momentum).detach());
        }
    }
}

#[cfg(all(test, feature = "train"))]
impl ConvNorm {
    /// Gradients of weight, gamma and beta.
    pub(super) fn gradients(&self, gradients: &burn::tensor::Gradients) -> Vec<Vec<f32>> {
        let flat = |data: burn::tensor::TensorData| data.try_into_vec_as::<f32>().unwrap();
        vec![
            flat(self.conv.weight.val().grad(gradients).unwrap().into_data()),
            flat(self.norm.gamma.val().grad(gradients).unwrap().into_data()),
            flat(self.norm.beta.val().grad(gradients).unwrap().into_data()),
        ]
    }

    /// The same weights with running statistics of its own.
    pub(super) fn copied(self) -> Self {
        let weights = super::weights::read(&self);
        super::weights::write(self, weights).unwrap()
    }
}

/// Of a square convolution with an output of `side` pixels; `weights` are inputs times outputs.
pub(super) fn conv_flops(side: usize, kernel: usize, weights: usize) -> u64 {
    2 * (side * side * kernel * kernel * weights) as u64
}

/// Normal(0, 0.01) weights, no bias at first.
pub(super) fn linear(inputs: usize, outputs: usize, device: &Device) -> Linear {
    let mut linear = LinearConfig::new(inputs, outputs).init(device);
    let narrow = Initializer::Normal { mean: 0.0, std: 0.01 };
    linear.weight = narrow.init([inputs, outputs], device);
    linear.bias = Some(Initializer::Zeros.init([outputs], device));
    linear
}
