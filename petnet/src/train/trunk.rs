//! The trunk in training: the frozen layers before those that are trained. On the CPU they run on the inference engine, in int8 where the initial weights
//! are quantised; on other devices they run on burn. They have no gradients.

use burn::tensor::Device;

use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, NetworkSpec};
use crate::error::{Error, Result};
use crate::nn::run::to_tensor;
use crate::nn::{FeatureMaps, Network};

/// The layers before those that are trained.
pub(super) enum FrozenTrunk {
    /// Blocks of the network in training, on burn; none where all layers are trained.
    Burn { blocks: usize },
    /// Blocks on the engine, compiled for each image size of the training, by its side in pixels.
    Engine { blocks: usize, model: Box<Checkpoint>, engines: Vec<(usize, Engine)> },
}

impl FrozenTrunk {
    /// The first `blocks` blocks of a model.
    pub(super) fn new(blocks: usize, model: Checkpoint, on_cpu: bool) -> Self {
        match on_cpu && blocks > 0 {
            true => Self::Engine { blocks, model: Box::new(model), engines: Vec::new() },
            false => Self::Burn { blocks },
        }
    }

    /// Compiles an engine for images of `side` pixels, unless there is one.
    pub(super) fn prepare(&mut self, side: usize) -> Result<()> {
        let Self::Engine { blocks, model, engines } = self else { return Ok(()) };
        if engine_for(engines, side).is_some() {
            return Ok(());
        }
        let network = NetworkSpec { side, ..model.network() };
        let engine = Engine::trunk(network, *blocks);
        engines.push((side, engine.map_err(|reason| Error::checkpoint("<trunk>", reason))?));
        Ok(())
    }

    /// Number of frozen blocks.
    pub(super) fn blocks(&self) -> usize {
        match self {
            Self::Burn { blocks } | Self::Engine { blocks, .. } => *blocks,
        }
    }

    /// `[n, side, side, 3]` bytes -> the last feature maps of the frozen blocks, on a device without autodiff. Blocks on
    /// burn are those of `network`.
    pub(super) fn maps(
        &self,
        network: &Network,
        images: Vec<u8>,
        side: usize,
        device: &Device,
    ) -> FeatureMaps {
        let Self::Engine { engines, .. } = self else {
            return network.trunk(to_tensor(images, side, device), self.blocks());
        };
        let count = images.len() / (side * side * 3);
        let engine = engine_for(engines, side).expect("`prepare` has compiled this size");
        let ([height, width], values) = engine.maps(&images);
        let channels = values.len() / (height * width * count).max(1);
        Network::maps_of_engine(values, [height, width, count, channels], device)
    }
}

fn engine_for(engines: &[(usize, Engine)], side: usize) -> Option<&Engine> {
    engines.iter().find(|(compiled_side, _)| *compiled_side == side).map(|(_, engine)| engine)
}
