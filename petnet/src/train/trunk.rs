//! Frozen layers in training. On the CPU they run on the inference engine, in bytes where the weights that training
//! starts from have ranges for it; on other devices on burn. No gradient leads into them.

use burn::tensor::Device;

use super::engines::Engines;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, Network as Compiled};
use crate::error::{Error, Result};
use crate::nn::run::to_tensor;
use crate::nn::{FeatureMaps, Network};
use crate::quantization::Quantization;

/// The layers before those that are trained.
pub(super) enum Trunk {
    /// None: everything is trained.
    Empty,
    /// Blocks on burn, of the network that is trained.
    Burn { blocks: usize },
    /// Blocks on the engine.
    Engine { blocks: usize, start: Box<Checkpoint>, engines: Engines },
}

impl Trunk {
    /// The first `blocks` blocks of a model.
    pub(super) fn new(blocks: usize, start: Checkpoint, on_cpu: bool) -> Self {
        match (blocks, on_cpu) {
            (0, _) => Self::Empty,
            (_, true) => {
                Self::Engine { blocks, start: Box::new(start), engines: Engines::default() }
            }
            (_, false) => Self::Burn { blocks },
        }
    }

    /// Compiles for images of `side` pixels.
    pub(super) fn prepare(&mut self, side: usize) -> Result<()> {
        let Self::Engine { blocks, start, engines } = self else { return Ok(()) };
        engines.prepare(side, || {
            let info = start.info();
            let (graph, normalization) = (&info.graph, info.normalization);
            let weights = start.weights();
            let network = Compiled { graph, source: None, normalization, side, weights };
            let ranges = info.quantization.as_ref().map(|Quantization { ranges }| ranges);
            let engine = Engine::trunk(network, *blocks, ranges);
            engine.map_err(|reason| Error::checkpoint("<trunk>", reason))
        })
    }

    /// Number of frozen blocks.
    pub(super) fn blocks(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Burn { blocks } | Self::Engine { blocks, .. } => *blocks,
        }
    }

    /// `[n, side, side, 3]` bytes -> the last maps of the frozen blocks, on a device that follows no gradients. Blocks
    /// on burn are those of `network`.
    pub(super) fn maps(
        &self,
        network: &Network,
        (images, side): (Vec<u8>, usize),
        device: &Device,
    ) -> FeatureMaps {
        let Self::Engine { engines, .. } = self else {
            return network.trunk(to_tensor(images, side, device), self.blocks());
        };
        let count = images.len() / (side * side * 3);
        let maps = engines.at(side).map(|engine| engine.maps(&images));
        let ([height, width], values) = maps.unwrap_or_default();
        let channels = values.len() / (height * width * count).max(1);
        Network::given(values, [height, width, count, channels], device)
    }
}
