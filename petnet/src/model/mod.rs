//! The networks: burn modules only. They know no files and no pictures.
//!
//! Input is `[n, 3, size, size]` with values 0 to 255; normalisation is the first layer, so that
//! nothing outside a network can get it wrong. Output is logits `[n, classes]`.

#[cfg(all(test, feature = "train"))]
mod golden;
mod layers;
#[cfg(feature = "flex")]
mod pixels;
mod residual;
pub(crate) mod run;
mod simple_cnn;
pub(crate) mod weights;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

pub use residual::ResidualNet;
pub use simple_cnn::SimpleCnn;

use crate::architecture::{Architecture, Normalization};
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::error::{Error, Result};

impl Normalization {
    /// `[n, 3, h, w]` of 0 to 255 -> the same shape, about zero mean and unit variance.
    fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let device = images.device();
        let scale = self.std.map(|s| 1.0 / (255.0 * s));
        let shift = [0, 1, 2].map(|c| -self.mean[c] / self.std[c]);
        let scale = Tensor::<1>::from_floats(scale, &device).reshape([1, 3, 1, 1]);
        let shift = Tensor::<1>::from_floats(shift, &device).reshape([1, 3, 1, 1]);
        images * scale + shift
    }
}

/// A network of any [`Architecture`], as a burn module.
///
/// ```
/// use petnet::architecture::{Architecture, Normalization};
/// use petnet::burn::{Network, open, tensor::Tensor};
///
/// let device = open(petnet::Device::Cpu)?;
/// let network = Network::new(&Architecture::named("resnet18", 0.0)?, 5, Normalization::default(), &device);
/// let logits = network.forward(Tensor::zeros([1, 3, 32, 32], &device));
/// assert_eq!(logits.dims(), [1, 5]);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Module, Debug)]
pub enum Network {
    /// See [`SimpleCnn`].
    SimpleCnn(SimpleCnn),
    /// See [`ResidualNet`].
    PetNet(ResidualNet),
    /// See [`ResidualNet`].
    ResNet(ResidualNet),
}

impl Network {
    /// With fresh random weights.
    pub fn new(
        architecture: &Architecture,
        classes: usize,
        normalization: Normalization,
        device: &Device,
    ) -> Self {
        match architecture {
            Architecture::SimpleCnn(config) => {
                Self::SimpleCnn(config.build(classes, normalization, device))
            }
            Architecture::PetNet(config) => {
                Self::PetNet(config.build(classes, normalization, device))
            }
            Architecture::ResNet(config) => {
                Self::ResNet(config.build(classes, normalization, device))
            }
        }
    }

    /// With a checkpoint's weights.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when weights and architecture do not fit each other.
    pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        checkpoint.sound().map_err(|reason| Error::checkpoint("<model>", reason))?;
        let ModelInfo { architecture, labels, normalization, .. } = checkpoint.info();
        let network = Self::new(architecture, labels.len(), *normalization, device);
        weights::write(network, checkpoint.weights().clone())
            .map_err(|reason| Error::checkpoint("<weights>", reason))
    }

    /// A copy of the weights, on no device.
    pub fn checkpoint(&self, info: ModelInfo) -> Checkpoint {
        Checkpoint::new(info, weights::read(self))
    }

    /// `[n, 3, h, w]` of 0 to 255 -> logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.classify(self.features(images))
    }

    /// `[n, 3, h, w]` of 0 to 255 -> the means of the last maps, `[n, width]`.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        match self {
            Self::SimpleCnn(net) => net.features(images),
            Self::PetNet(net) | Self::ResNet(net) => net.features(images),
        }
    }

    /// What [`Network::features`] gave -> logits `[n, classes]`.
    pub fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        match self {
            Self::SimpleCnn(net) => net.classify(features),
            Self::PetNet(net) | Self::ResNet(net) => net.classify(features),
        }
    }

    /// `[1, 3, h, w]` of 0 to 255 -> features `[1, width]` and, for the likeliest class, the heat
    /// map of the last convolution `[1, h', w']`, 0 or more.
    pub fn explain(&self, image: Tensor<4>) -> (Tensor<2>, Tensor<3>) {
        match self {
            Self::SimpleCnn(net) => net.explain(image),
            Self::PetNet(net) | Self::ResNet(net) => net.explain(image),
        }
    }

    /// How much a batch in training moves the norms' running statistics, 0 to 1.
    #[cfg(feature = "train")]
    pub(crate) fn set_momentum(&mut self, momentum: f64) {
        match self {
            Self::SimpleCnn(net) => net.set_momentum(momentum),
            Self::PetNet(net) | Self::ResNet(net) => net.set_momentum(momentum),
        }
    }
}
