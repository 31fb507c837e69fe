//! A classifier's network behind one interface: the engine on CPUs, or burn on any device.

use std::time::Duration;

use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::device::Device;
use crate::engine::{Engine, Heat, Outputs};
use crate::error::{Error, Result};
#[cfg(feature = "burn")]
use crate::nn::run::{self, Networks};

/// A network that is ready to run.
#[derive(Debug)]
pub(crate) enum Runner {
    Engine(Engine),
    #[cfg(feature = "burn")]
    Burn {
        networks: Box<Networks>,
        device: burn::tensor::Device,
        /// Height and width of images, in pixels.
        side: usize,
    },
}

impl Runner {
    pub(crate) fn new(checkpoint: Checkpoint, device: Device) -> Result<(ModelInfo, Self)> {
        match device {
            Device::Cpu => Self::on_engine(checkpoint),
            Device::Auto if cfg!(feature = "wgpu") => {
                let gpu = Self::on_burn(checkpoint.clone(), Device::Wgpu(None));
                gpu.or_else(|error| {
                    tracing::info!(%error, "on the CPU");
                    Self::on_engine(checkpoint)
                })
            }
            Device::Auto => Self::on_engine(checkpoint),
            other => Self::on_burn(checkpoint, other),
        }
    }

    fn on_engine(checkpoint: Checkpoint) -> Result<(ModelInfo, Self)> {
        let engine = Engine::new(checkpoint.network());
        let engine = engine.map_err(|reason| Error::checkpoint("<weights>", reason))?;
        Ok((checkpoint.into_info(), Self::Engine(engine)))
    }

    #[cfg(feature = "burn")]
    fn on_burn(checkpoint: Checkpoint, device: Device) -> Result<(ModelInfo, Self)> {
        let device = device.open()?;
        let networks = Networks::load(&checkpoint, &device)?;
        let info = checkpoint.into_info();
        let side = info.preprocess.size as usize;
        Ok((info, Self::Burn { networks: Box::new(networks), device, side }))
    }

    #[cfg(not(feature = "burn"))]
    fn on_burn(_: Checkpoint, device: Device) -> Result<(ModelInfo, Self)> {
        Err(Error::Device(format!(
            "`{device}` was not compiled in: build with `--features {}`, or use `cpu`",
            device.feature()
        )))
    }

    /// `pixels` are `[count, side, side, 3]`.
    pub(crate) fn run(&self, pixels: Vec<u8>) -> Result<Vec<Outputs>> {
        match self {
            Self::Engine(engine) => Ok(engine.run(&pixels)),
            #[cfg(feature = "burn")]
            Self::Burn { networks, device, side } => {
                networks.outputs(run::to_tensor(pixels, *side, device))
            }
        }
    }

    /// Name, floating-point operations and time of each step of the engine; empty for burn.
    pub(crate) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        match self {
            Self::Engine(engine) => engine.profile(pixels),
            #[cfg(feature = "burn")]
            Self::Burn { .. } => Vec::new(),
        }
    }

    /// Outputs and Grad-CAM heat map of one image.
    pub(crate) fn explain(&self, pixels: Vec<u8>) -> Result<(Outputs, Heat)> {
        match self {
            Self::Engine(engine) => Ok(engine.explain(&pixels)),
            #[cfg(feature = "burn")]
            Self::Burn { networks, device, side } => {
                run::explain(networks, run::to_tensor(pixels, *side, device))
            }
        }
    }
}
