//! The networks: burn modules only. They know no files and no pictures.
//!
//! Input is `[n, 3, size, size]` with values 0 to 255; normalisation is the first layer, so that
//! nothing outside a network can get it wrong. Output is logits `[n, classes]`.

#[cfg(all(test, feature = "train"))]
mod golden;
mod layers;
mod pet_net;
mod pixels;
mod simple_cnn;
pub(crate) mod weights;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use pet_net::{PetNet, PetNetConfig};
pub use simple_cnn::{SimpleCnn, SimpleCnnConfig};

use crate::error::{Error, Result};

/// Mean and standard deviation of a channel's values (0 to 1), in the order R, G, B.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Subtracted first.
    pub mean: [f32; 3],
    /// Divided by then.
    pub std: [f32; 3],
}

impl Default for Normalization {
    /// The figures of ImageNet.
    fn default() -> Self {
        Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

impl Normalization {
    /// `[n, 3, h, w]` of 0 to 255 -> the same shape, about zero mean and unit variance.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let device = images.device();
        let scale = self.std.map(|s| 1.0 / (255.0 * s));
        let shift = [0, 1, 2].map(|c| -self.mean[c] / self.std[c]);
        let scale = Tensor::<1>::from_floats(scale, &device).reshape([1, 3, 1, 1]);
        let shift = Tensor::<1>::from_floats(shift, &device).reshape([1, 3, 1, 1]);
        images * scale + shift
    }
}

/// Which network, and how large; enough to build it without weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// The reference system's four-block network.
    SimpleCnn(SimpleCnnConfig),
    /// The residual network that petnet ships.
    #[serde(rename = "petnet")]
    PetNet(PetNetConfig),
}

impl Architecture {
    /// The names that [`Architecture::named`] knows.
    pub const NAMES: &[&str] = &["petnet", "simple_cnn"];

    /// The default size of a network by name.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is not in [`Architecture::NAMES`].
    pub fn named(name: &str, dropout: f64) -> Result<Self> {
        match name {
            "petnet" => Ok(Self::PetNet(PetNetConfig { dropout, ..Default::default() })),
            "simple_cnn" => Ok(Self::SimpleCnn(SimpleCnnConfig { dropout, ..Default::default() })),
            other => Err(Error::Config(format!(
                "unknown model_name `{other}`, known: {}",
                Self::NAMES.join(", ")
            ))),
        }
    }

    /// The name as settings and checkpoints write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SimpleCnn(_) => "simple_cnn",
            Self::PetNet(_) => "petnet",
        }
    }

    /// # Errors
    /// [`Error::Config`] when it has no layers, or layers of no width.
    pub fn validate(&self) -> Result<()> {
        let (widths, depths) = match self {
            Self::SimpleCnn(config) => (config.channels.clone(), config.channels.clone()),
            Self::PetNet(config) => {
                ([&[config.stem], config.widths.as_slice()].concat(), config.depths.clone())
            }
        };
        let stages = widths.len() - usize::from(matches!(self, Self::PetNet(_)));
        let positive = |sizes: &[usize]| sizes.iter().all(|size| (1..=4096).contains(size));
        if stages == 0 || stages != depths.len() || !positive(&widths) || !positive(&depths) {
            return Err(Error::Config(format!(
                "{} needs as many depths as widths, at least one, each between 1 and 4096",
                self.name()
            )));
        }
        Ok(())
    }

    /// Floating-point operations of one picture of `side` pixels, two for each multiply-add of a
    /// convolution; all else is little beside them.
    pub fn flops(&self, side: usize) -> u64 {
        match self {
            Self::SimpleCnn(config) => config.flops(side),
            Self::PetNet(config) => config.flops(side),
        }
    }

    /// Builds the network with fresh random weights.
    pub fn build(&self, classes: usize, normalization: Normalization, device: &Device) -> Network {
        match self {
            Self::SimpleCnn(config) => {
                Network::SimpleCnn(config.build(classes, normalization, device))
            }
            Self::PetNet(config) => Network::PetNet(config.build(classes, normalization, device)),
        }
    }
}

/// A network of any [`Architecture`].
#[derive(Module, Debug)]
pub enum Network {
    /// See [`SimpleCnn`].
    SimpleCnn(SimpleCnn),
    /// See [`PetNet`].
    PetNet(PetNet),
}

impl Network {
    /// `[n, 3, h, w]` of 0 to 255 -> logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.classify(self.features(images))
    }

    /// `[n, 3, h, w]` of 0 to 255 -> the means of the last maps, `[n, width]`.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        match self {
            Self::SimpleCnn(net) => net.features(images),
            Self::PetNet(net) => net.features(images),
        }
    }

    /// What [`Network::features`] gave -> logits `[n, classes]`.
    pub fn classify(&self, features: Tensor<2>) -> Tensor<2> {
        match self {
            Self::SimpleCnn(net) => net.classify(features),
            Self::PetNet(net) => net.classify(features),
        }
    }

    /// `[1, 3, h, w]` of 0 to 255 -> features `[1, width]` and, for the likeliest class, the heat
    /// map of the last convolution `[1, h', w']`, 0 or more.
    pub fn explain(&self, image: Tensor<4>) -> (Tensor<2>, Tensor<3>) {
        match self {
            Self::SimpleCnn(net) => net.explain(image),
            Self::PetNet(net) => net.explain(image),
        }
    }
}
