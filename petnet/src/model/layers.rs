//! What the networks are built of. Each layer has one set of weights and two ways to compute:
//! burn's own operations, and on the CPU the kernels of [`super::pixels`].

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

#[cfg(feature = "flex")]
use super::pixels::{self, Spacing};
use crate::kernel::Activation;

/// Feature maps in the order that suits the device.
#[derive(Debug, Clone)]
pub(super) enum Maps {
    /// `[n, c, h, w]`.
    Planes(Tensor<4>),
    /// `[h, w, n, c]`.
    #[cfg(feature = "flex")]
    Pixels(Tensor<4>),
}

impl Maps {
    /// From `[n, c, h, w]`.
    pub(super) fn new(planes: Tensor<4>) -> Self {
        #[cfg(feature = "flex")]
        if pixels::supports(&planes.device()) {
            return Self::Pixels(planes.permute([2, 3, 0, 1])); // [h, w, n, c]
        }
        Self::Planes(planes)
    }

    /// To `[n, c, h, w]`.
    pub(super) fn planes(self) -> Tensor<4> {
        match self {
            Self::Planes(planes) => planes,
            #[cfg(feature = "flex")]
            Self::Pixels(pixels) => pixels.permute([2, 3, 0, 1]), // [n, c, h, w]
        }
    }

    /// The largest of the three by three pixels around every second one; sides are halved, rounded up.
    pub(super) fn pooled(self) -> Self {
        match self {
            Self::Planes(planes) => {
                let around = MaxPool2dConfig::new([3, 3])
                    .with_strides([2, 2])
                    .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
                Self::Planes(around.init().forward(planes)) // [n, c, h / 2, w / 2]
            }
            #[cfg(feature = "flex")]
            Self::Pixels(pixels) => Self::Pixels(pixels::largest(pixels)), // [h / 2, w / 2, n, c]
        }
    }

    /// The mean of each map, `[n, c]`.
    pub(super) fn mean(self) -> Tensor<2> {
        match self {
            Self::Planes(planes) => {
                let [n, c, h, w] = planes.dims();
                planes.reshape([n, c, h * w]).mean_dim(2).reshape([n, c]) // [n, c]
            }
            #[cfg(feature = "flex")]
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

    /// How much a batch moves the running statistics, 0 to 1.
    #[cfg(feature = "train")]
    pub(super) fn set_momentum(&mut self, momentum: f64) {
        self.norm.momentum = momentum;
    }

    /// The shortcut is added before the activation.
    pub(super) fn forward(&self, x: Maps, shortcut: Option<Maps>, activation: Activation) -> Maps {
        match x {
            Maps::Planes(x) => Maps::Planes(self.planes(x, shortcut.map(Maps::planes), activation)),
            #[cfg(feature = "flex")]
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

    #[cfg(feature = "flex")]
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

/// Normal(0, 0.01) weights, no bias at first.
pub(super) fn linear(inputs: usize, outputs: usize, device: &Device) -> Linear {
    let mut linear = LinearConfig::new(inputs, outputs).init(device);
    let narrow = Initializer::Normal { mean: 0.0, std: 0.01 };
    linear.weight = narrow.init([inputs, outputs], device);
    linear.bias = Some(Initializer::Zeros.init([outputs], device));
    linear
}

#[cfg(all(test, feature = "train"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use burn::tensor::TensorData;

    use super::*;
    use crate::model::weights;

    fn noise<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let mut state = seed;
        let values = (0..shape.iter().product())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect::<Vec<f32>>();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn flat<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec_as::<f32>().unwrap()
    }

    /// Output, and gradients of the input, the shortcut and all weights, flat.
    fn run(
        layer: &ConvNorm,
        [x, shortcut, slope]: [Tensor<4>; 3],
        activation: Activation,
        (fast, with_shortcut): (bool, bool),
    ) -> Vec<Vec<f32>> {
        let (x, shortcut) = (x.require_grad(), shortcut.require_grad());
        let maps = |planes: &Tensor<4>| match fast {
            true => Maps::Pixels(planes.clone().permute([2, 3, 0, 1])),
            false => Maps::Planes(planes.clone()),
        };
        let added = with_shortcut.then(|| maps(&shortcut));
        let out = layer.forward(maps(&x), added, activation).planes();
        let [n, c, h, w] = out.dims();
        let slope = slope.slice([0..n, 0..c, 0..h, 0..w]);
        let grads = (out.clone() * slope).sum().backward();
        let mut all = vec![flat(out.inner()), flat(x.grad(&grads).unwrap())];
        if with_shortcut {
            all.push(flat(shortcut.grad(&grads).unwrap()));
        }
        all.push(flat(layer.conv.weight.val().grad(&grads).unwrap()));
        all.push(flat(layer.norm.gamma.val().grad(&grads).unwrap()));
        all.push(flat(layer.norm.beta.val().grad(&grads).unwrap()));
        all
    }

    #[test]
    fn the_kernels_give_what_burns_own_operations_give_and_their_gradients() {
        let device = Device::flex().autodiff();
        // height, width, photos, inputs, outputs, kernel, stride
        let cases = [
            (9_usize, 7_usize, 3, 3, 5, 3, 1_usize),
            (8, 8, 2, 3, 16, 3, 2),
            (7, 6, 9, 12, 50, 3, 1),
            (6, 6, 17, 20, 33, 3, 2),
            (5, 8, 8, 16, 24, 1, 2),
            (4, 4, 1, 9, 17, 3, 1),
            (2, 2, 6, 8, 49, 3, 1),
            (9, 12, 5, 3, 17, 7, 2),
        ];
        for (case, (h, w, n, inputs, outputs, kernel, stride)) in cases.into_iter().enumerate() {
            device.seed(case as u64);
            let layer = ConvNorm::new([inputs, outputs], kernel, stride, case % 2 == 0, &device);
            let seed = case as u64 * 3;
            let (oh, ow) = (h.div_ceil(stride), w.div_ceil(stride));
            let tensors = [
                noise([n, inputs, h, w], seed + 1, &device),
                noise([n, outputs, oh, ow], seed + 2, &device),
                noise([n, outputs, oh, ow], seed + 3, &device),
            ];
            for (activation, shortcut) in [
                (Activation::Linear, false),
                (Activation::Relu, false),
                (Activation::Relu, true),
                (Activation::ReluPool, false),
            ] {
                let ours = run(&layer, tensors.clone(), activation, (true, shortcut));
                let theirs = run(&layer, tensors.clone(), activation, (false, shortcut));
                assert_eq!(ours.len(), theirs.len());
                for (part, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                    assert_eq!(ours.len(), theirs.len(), "case {case} {activation:?} part {part}");
                    let scale = theirs.iter().fold(1.0_f32, |top, value| top.max(value.abs()));
                    for (ours, theirs) in ours.iter().zip(theirs) {
                        let close = (ours - theirs).abs() < 2e-5 * scale;
                        assert!(close, "case {case} {activation:?} part {part}: {ours} {theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn pooling_gives_what_burns_own_gives_and_its_gradient() {
        let device = Device::flex().autodiff();
        for (case, (n, c, h, w)) in
            [(1, 1, 1, 1), (2, 3, 7, 8), (3, 17, 8, 9), (5, 8, 16, 5)].into_iter().enumerate()
        {
            let x = noise([n, c, h, w], case as u64, &device);
            let slope = noise([n, c, h.div_ceil(2), w.div_ceil(2)], case as u64 + 9, &device);
            let [ours, theirs] = [true, false].map(|fast| {
                let x = x.clone().require_grad();
                let maps = if fast { Maps::new(x.clone()) } else { Maps::Planes(x.clone()) };
                assert_eq!(matches!(maps, Maps::Pixels(_)), fast);
                let out = maps.pooled().planes();
                let gradients = (out.clone() * slope.clone()).sum().backward();
                [flat(out.clone().inner()), flat(x.grad(&gradients).unwrap()), {
                    let plain =
                        if fast { Maps::new(x.clone().inner()) } else { Maps::Planes(x.inner()) };
                    flat(plain.pooled().planes())
                }]
            });
            assert_eq!(ours, theirs, "case {case}");
        }
    }

    #[test]
    fn running_statistics_and_inference_agree_with_burns() {
        let device = Device::flex().autodiff();
        device.seed(5);
        let x = noise([6, 4, 8, 8], 7, &device);
        let planes = ConvNorm::new([4, 10], 3, 1, true, &device);
        let pixels = ConvNorm::new([4, 10], 3, 1, true, &device);
        let pixels = weights::write(pixels, weights::read(&planes)).unwrap();
        for _ in 0..3 {
            planes.forward(Maps::Planes(x.clone()), None, Activation::Relu);
            pixels.forward(Maps::new(x.clone()), None, Activation::Relu);
        }
        let x = x.inner();
        let [planes, pixels] = [planes, pixels].map(|layer| burn::module::Module::valid(&layer));
        let theirs = planes.forward(Maps::Planes(x.clone()), None, Activation::ReluPool).planes();
        let ours = pixels.forward(Maps::new(x), None, Activation::ReluPool).planes();
        let distance = (ours - theirs).abs().max().into_scalar::<f32>();
        assert!(distance < 1e-5, "{distance}");
    }
}
