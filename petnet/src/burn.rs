//! [burn](https://burn.dev), of the version that petnet stands on, and petnet's networks as its modules:
//! the one door through which burn's types come out. Nothing else of petnet's shows any.
//!
//! A [`Network`] is built by [`Network::new`] or [`Network::load`], takes part in a training of your own, and
//! becomes a model file by [`Network::checkpoint`]. Its input is `[n, 3, size, size]` with values 0 to 255 in the
//! order R, G, B; normalisation is its first layer. Its output is logits, `[n, classes]`.

pub use ::burn::*;

pub use crate::nn::{FeatureMaps, Network};

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::disk::write_atomically;
use crate::error::{Error, ModelError, Result};

/// A device as burn knows it; [`Device::Cpu`](crate::Device::Cpu) is burn-flex.
///
/// # Errors
/// [`Error::Device`] when the backend was not compiled in or finds no adapter.
pub fn open(device: crate::Device) -> Result<tensor::Device> {
    device.open()
}

impl Checkpoint {
    /// Writes the weights as burn's own file, `.bpk`; labels and preprocessing are not in it. What reads it
    /// is `ModuleRecord::load`, and `try_load_record` of a [`Network`] of the same architecture.
    ///
    /// # Errors
    /// [`Error::Device`] without the feature `flex`, [`Error::Checkpoint`] when weights and architecture do
    /// not fit each other, [`Error::Io`] when the file cannot be written.
    pub fn save_burnpack(&self, path: impl AsRef<Path>) -> Result<()> {
        use ::burn::module::Module as _;

        let path = path.as_ref();
        let network = Network::load(self, &open(crate::Device::Cpu)?)?;
        let bytes = network.into_record().into_bytes();
        let bytes =
            bytes.map_err(|e| Error::checkpoint(path, ModelError::Encode(e.to_string())))?;
        write_atomically(path, &bytes)
    }
}
