//! Re-estimated batch-norm statistics (Wu and Johnson, "Rethinking 'batch' in BatchNorm", 2021). The running statistics
//! come from the last few batches of random crops, often at a smaller size; inference sees whole images.

use burn::module::Module;
use burn::tensor::Device;

use crate::error::Result;
use crate::loader::Loader;
use crate::nn::Network;
use crate::nn::run::to_tensor;

/// The network with the statistics of each batch norm set to their mean over some batches. It is on `device`, an autodiff
/// device, and is not trained any more.
pub(super) fn precise_bn(
    network: Network,
    loader: &Loader,
    batches: usize,
    device: &Device,
) -> Result<Network> {
    // Without this, the autodiff graph of every pass would stay in memory, as no backward pass frees it.
    let mut network = network.no_grad();
    // Inference runs in 32 bits.
    network.set_mixed_precision(false);
    for (index, batch) in loader.epoch(0, 0).take(batches).enumerate() {
        network.set_momentum(1.0 / (index + 1) as f64);
        network.features(to_tensor(batch?.images, loader.size(), device));
    }
    Ok(network)
}
