//! The layers of each architecture in the order in which they run, for those who build something of
//! them. Knows names and what follows what; no values.

use crate::architecture::{Architecture, ResNetConfig};
use crate::weights::Weights;

/// What a network is built into. Maps are known by number: 0 is the picture, and each layer gives the next.
pub(crate) trait Build {
    /// A convolution with its norm, by the names under `prefix`, and what follows it.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    fn conv(&mut self, prefix: &str, conv: Conv) -> Result<usize, String>;

    /// The largest of the three by three pixels around every second one, of what a ReLU gave.
    fn pool(&mut self, name: &str, from: usize) -> usize;

    /// A layer of the head, by the names under `prefix`; the first one takes the means of the last maps.
    ///
    /// # Errors
    /// Names what is missing or does not fit.
    fn dense(&mut self, prefix: &str, relu: bool) -> Result<(), String>;
}

/// A convolution apart from its weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    /// The map that it reads.
    pub(crate) from: usize,
    /// A map to add before the ReLU.
    pub(crate) shortcut: Option<usize>,
    pub(crate) stride: usize,
    pub(crate) relu: bool,
    /// Whether the largest of each two by two pixels is kept at the end.
    pub(crate) pool: bool,
}

impl Conv {
    fn of(from: usize, stride: usize) -> Self {
        Self { from, shortcut: None, stride, relu: true, pool: false }
    }
}

/// Side of the first convolution's kernel, in pixels.
pub(crate) fn first_kernel(architecture: &Architecture) -> usize {
    match architecture {
        Architecture::SimpleCnn(_) | Architecture::PetNet(_) => 3,
        Architecture::ResNet(_) => 7,
    }
}

/// # Errors
/// What `to` says.
pub(crate) fn build(
    architecture: &Architecture,
    weights: &Weights,
    to: &mut impl Build,
) -> Result<(), String> {
    match architecture {
        Architecture::SimpleCnn(config) => {
            let mut last = 0;
            for block in 0..config.channels.len() {
                let conv = Conv { pool: true, ..Conv::of(last, 1) };
                last = to.conv(&format!("SimpleCnn.blocks.{block}"), conv)?;
            }
            to.dense("SimpleCnn.hidden", true)?;
            to.dense("SimpleCnn.head", false)
        }
        Architecture::PetNet(config) => {
            let first = to.conv("PetNet.stem.0", Conv::of(0, 2))?;
            let stem = to.conv("PetNet.stem.1", Conv::of(first, 2))?;
            residual("PetNet", (&config.depths, stem), weights, to)
        }
        Architecture::ResNet(ResNetConfig { depths, .. }) => {
            let first = to.conv("ResNet.stem.0", Conv::of(0, 2))?;
            let stem = to.pool("ResNet.stem.pool", first);
            residual("ResNet", (depths, stem), weights, to)
        }
    }
}

/// What follows a stem.
fn residual(
    network: &str,
    (depths, mut last): (&[usize], usize),
    weights: &Weights,
    to: &mut impl Build,
) -> Result<(), String> {
    let mut number = 0;
    for (stage, depth) in depths.iter().enumerate() {
        for place in 0..*depth {
            let name = |part: &str| format!("{network}.blocks.{number}.{part}");
            let stride = if stage > 0 && place == 0 { 2 } else { 1 };
            let shortcut = if weights.contains_key(&name("shortcut.conv.weight")) {
                to.conv(&name("shortcut"), Conv { relu: false, ..Conv::of(last, stride) })?
            } else {
                last
            };
            let inner = to.conv(&name("first"), Conv::of(last, stride))?;
            let second = Conv { shortcut: Some(shortcut), ..Conv::of(inner, 1) };
            last = to.conv(&name("second"), second)?;
            number += 1;
        }
    }
    to.dense(&format!("{network}.head"), false)
}
