//! Where a training starts from: weights of petnet's or of PyTorch's, another number of classes or not.

use std::path::Path;

use crate::architecture::Normalization;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::{Network, weights};
use crate::pytorch;
use crate::weights::Weights;

/// The last layer of each network.
const HEADS: [&str; 2] = [".head.weight", ".head.bias"];

/// A file's weights, and what they expect of their input's values.
pub(super) fn read(path: &Path) -> Result<(Weights, Normalization)> {
    let Some(checkpoint) = Checkpoint::load_own(path)? else {
        return Ok((pytorch::weights(path)?, Normalization::default()));
    };
    let (info, weights) = checkpoint.into_parts();
    Ok((weights, info.normalization))
}

/// Gives a network the weights of a file. A last layer of another number of classes stays as it was
/// drawn.
pub(super) fn fill(network: Network, mut given: Weights, path: &Path) -> Result<Network> {
    let drawn = weights::read(&network);
    let (theirs, ours) = (kind(&given), kind(&drawn));
    if theirs != ours {
        let reason = format!("it holds a {theirs}, the settings ask for a {ours}");
        return Err(Error::checkpoint(path, reason));
    }
    for (name, weight) in drawn {
        let head = HEADS.iter().any(|head| name.ends_with(head));
        let other = given.get(&name).is_some_and(|given| given.shape != weight.shape);
        if head && other {
            tracing::info!(layer = name, "drawn anew: the file has other classes");
            given.insert(name, weight);
        }
    }
    weights::write(network, given).map_err(|reason| Error::checkpoint(path, reason))
}

/// The network's name as it begins each weight's.
fn kind(weights: &Weights) -> &str {
    let first = weights.keys().next().map(String::as_str).unwrap_or_default();
    first.split_once('.').map_or(first, |(network, _)| network)
}
