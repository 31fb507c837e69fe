//! Which network, and how large: plain settings, enough to build it, to count its operations and
//! to find its weights. Knows no tensors.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layers;

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

/// Which network, and how large; enough to build it without weights.
///
/// ```
/// use petnet::architecture::{Architecture, PetNetConfig};
///
/// let small = Architecture::PetNet(PetNetConfig {
///     stem: 16,
///     widths: vec![16, 32],
///     depths: vec![1, 1],
///     dropout: 0.1,
/// });
/// small.validate()?;
/// assert!(small.flops(160) < Architecture::named("resnet18", 0.0)?.flops(160));
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// The reference system's four-block network.
    SimpleCnn(SimpleCnnConfig),
    /// The residual network that petnet ships.
    #[serde(rename = "petnet")]
    PetNet(PetNetConfig),
    /// torchvision's residual network of basic blocks, and the reference system's shorter one.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
}

impl Architecture {
    /// The names that [`Architecture::named`] knows.
    pub const NAMES: &[&str] = &["petnet", "simple_cnn", "improved_cnn", "resnet18"];

    /// The default size of a network by name.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is not in [`Architecture::NAMES`].
    pub fn named(name: &str, dropout: f64) -> Result<Self> {
        match name {
            "petnet" => Ok(Self::PetNet(PetNetConfig { dropout, ..Default::default() })),
            "simple_cnn" => Ok(Self::SimpleCnn(SimpleCnnConfig { dropout, ..Default::default() })),
            "improved_cnn" => {
                Ok(Self::ResNet(ResNetConfig { dropout, ..ResNetConfig::improved() }))
            }
            "resnet18" => Ok(Self::ResNet(ResNetConfig { dropout, ..Default::default() })),
            other => Err(Error::Config(format!(
                "unknown model_name `{other}`, known: {}",
                Self::NAMES.join(", ")
            ))),
        }
    }

    /// The name as settings write it: one of [`Architecture::NAMES`], or `resnet` for one of other widths.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SimpleCnn(_) => "simple_cnn",
            Self::PetNet(_) => "petnet",
            Self::ResNet(config) => config.name(),
        }
    }

    #[cfg(feature = "pytorch")]
    pub(crate) fn set_dropout(&mut self, share: f64) {
        match self {
            Self::SimpleCnn(config) => config.dropout = share,
            Self::PetNet(config) => config.dropout = share,
            Self::ResNet(config) => config.dropout = share,
        }
    }

    /// # Errors
    /// [`Error::Config`] when it has no layers, layers of no width or beyond 4096, or a dropout out of range.
    pub fn validate(&self) -> Result<()> {
        let fits = |sizes: &[usize]| {
            !sizes.is_empty() && sizes.iter().all(|size| (1..=4096).contains(size))
        };
        let stages = |widths: &[usize], depths: &[usize]| {
            fits(widths) && widths.len() == depths.len() && depths.iter().all(|d| *d <= 64)
        };
        let sound = match self {
            Self::SimpleCnn(config) => fits(&config.channels) && fits(&[config.hidden]),
            Self::PetNet(config) => fits(&[config.stem]) && stages(&config.widths, &config.depths),
            Self::ResNet(config) => stages(&config.widths, &config.depths),
        };
        if !sound {
            return Err(Error::Config(format!(
                "{} needs at least one width, as many depths (0 to 64), and widths of 1 to 4096",
                self.name()
            )));
        }
        let dropout = match self {
            Self::SimpleCnn(config) => config.dropout,
            Self::PetNet(config) => config.dropout,
            Self::ResNet(config) => config.dropout,
        };
        if !(0.0..1.0).contains(&dropout) {
            let range = "must be at least 0 and below 1";
            return Err(Error::Config(format!("dropout_rate is {dropout}, {range}")));
        }
        Ok(())
    }

    /// Smallest side of the input, in pixels, that leaves a map after the last layer.
    pub fn min_size(&self) -> u32 {
        match self {
            // Each block halves the side, rounded down.
            Self::SimpleCnn(config) => {
                1u32.checked_shl(config.channels.len() as u32).unwrap_or(u32::MAX)
            }
            Self::PetNet(_) | Self::ResNet(_) => 1,
        }
    }

    /// Floating-point operations of one picture of `side` pixels, two for each multiply-add of a
    /// convolution; all else is little beside them.
    pub fn flops(&self, side: usize) -> u64 {
        layers::flops(self, side)
    }
}

/// Widths of `simple_cnn`: blocks of [conv 3x3 -> batch norm -> ReLU -> max pool 2], the global
/// average, two linear layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimpleCnnConfig {
    /// Channels of each block; every block halves both sides of the picture.
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

/// Widths and depths of `petnet`: two convolutions of stride 2, stages of residual blocks, the
/// global average, one linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PetNetConfig {
    /// Channels of the first convolution.
    pub stem: usize,
    /// Channels of each stage; every stage but the first halves both sides.
    pub widths: Vec<usize>,
    /// Residual blocks of each stage; a stage of none is left out, but for the first one's width,
    /// which is the stem's.
    pub depths: Vec<usize>,
    /// Share of the pooled features that is dropped in training, from 0 and below 1.
    pub dropout: f64,
}

impl Default for PetNetConfig {
    fn default() -> Self {
        Self { stem: 32, widths: vec![48, 96, 192, 320], depths: vec![0, 1, 1, 1], dropout: 0.0 }
    }
}

/// Widths and depths of a residual network as torchvision builds it (He et al., "Deep residual
/// learning", 2015): a 7x7 convolution and a pooling of stride 2 each, stages of basic blocks, the
/// global average, one linear layer. The default is `resnet18`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels of each stage, the first one's of the stem too; every stage but the first halves
    /// both sides.
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

    fn name(&self) -> &'static str {
        let same = |other: &Self| self.widths == other.widths && self.depths == other.depths;
        if same(&Self::default()) {
            "resnet18"
        } else if same(&Self::improved()) {
            "improved_cnn"
        } else {
            "resnet"
        }
    }
}
