//! Where a training starts from: weights of petnet's or of PyTorch's, another number of classes or not.

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ModelError, Result};
use crate::nn::{Network, weights};
use crate::passes;
use crate::pytorch;

/// A model file of petnet's or PyTorch's.
pub(super) fn read(path: &Path) -> Result<Checkpoint> {
    match Checkpoint::load_own(path)? {
        Some(checkpoint) => Ok(checkpoint),
        None => pytorch::unnamed(path),
    }
}

/// Gives a network the weights of a file. A last layer of another number of classes stays as it was
/// drawn.
pub(super) fn fill(network: Network, start: Checkpoint, path: &Path) -> Result<Network> {
    let refused = |reason: ModelError| Error::checkpoint(path, reason);
    let (info, mut given) = start.into_parts();
    let (theirs, ours) = (&info.graph, network.graph());
    // Dropout may differ, and the number of classes.
    let layers = |graph: &crate::graph::Graph| {
        let parameters = graph.nodes().iter().map(passes::parameters);
        parameters.flatten().map(|(name, _)| name).collect::<Vec<_>>()
    };
    if layers(theirs) != layers(ours) {
        let (found, expected) = (theirs.name().into(), ours.name().into());
        return Err(refused(ModelError::OtherNetwork { found, expected }));
    }
    if theirs.classes() != ours.classes() {
        let drawn = weights::read(&network);
        for (name, _) in ours.nodes().last().into_iter().flat_map(passes::parameters) {
            tracing::info!(layer = name, "drawn anew: the file has other classes");
            if let Some(weight) = drawn.get(&name) {
                given.insert(name, weight.clone());
            }
        }
    }
    weights::write(network, &given).map_err(refused)
}
