//! Re-estimated batch-norm statistics at the end (Wu and Johnson, "Rethinking batch in batch norm", 2021): those of
//! the last few batches, drawn from crops at a smaller size, are not those of whole photos.

use burn::module::Module;
use burn::tensor::Device;

use crate::error::Result;
use crate::loader::Loader;
use crate::nn::Network;
use crate::nn::run::to_tensor;

/// The network with each norm at the mean of its statistics over some batches. It lives on `device`,
/// which could follow gradients, and is trained no more.
pub(super) fn precise_bn(
    network: Network,
    loader: &Loader,
    batches: usize,
    device: &Device,
) -> Result<Network> {
    // Passes that no gradient ends would stay in memory, each whole.
    let mut network = network.no_grad();
    // Inference, whose statistics these are, has 32 bits.
    network.set_mixed_precision(false);
    for (seen, batch) in loader.epoch(0, 0).take(batches).enumerate() {
        network.set_momentum(1.0 / (seen + 1) as f64);
        network.features(to_tensor(batch?.images, loader.size(), device));
    }
    Ok(network)
}
