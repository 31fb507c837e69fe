//! Names and shapes of the tensors of PyTorch's files, by which architectures are recognised. Independent of files.

use std::collections::BTreeSet;

use super::Architecture;
use crate::weights::Weights;

/// A network that a file was recognised as.
pub(crate) struct RecognisedNetwork {
    pub(crate) architecture: Architecture,
    pub(crate) classes: usize,
    /// Each node with weights, and the module of the file that has them.
    pub(crate) modules: Vec<(String, String)>,
}

/// The names and shapes of a file's tensors, without the prefix that all names share.
pub(crate) struct Keys<'a>(pub(crate) &'a Weights);

impl Keys<'_> {
    /// True for a module with a weight.
    pub(crate) fn has(&self, module: &str) -> bool {
        self.shape(module).is_some()
    }

    /// Shape of a module's weight.
    pub(crate) fn shape(&self, module: &str) -> Option<&[usize]> {
        self.0.get(&format!("{module}.weight")).map(|weight| weight.shape.as_slice())
    }

    /// Output channels or features of a module.
    pub(crate) fn outputs(&self, module: &str) -> Option<usize> {
        self.shape(module).and_then(|shape| shape.first().copied())
    }

    /// A convolution `NODE.conv` and a norm `NODE.norm`, with their modules.
    pub(crate) fn conv_norm(&self, node: &str, conv: &str, norm: &str) -> Vec<(String, String)> {
        vec![(format!("{node}.conv"), conv.into()), (format!("{node}.norm"), norm.into())]
    }

    /// Convolutions in the order of the numbers in their names.
    pub(crate) fn convs(&self) -> Vec<String> {
        self.modules(4, None)
    }

    /// Batch norms in that order.
    pub(crate) fn norms(&self) -> Vec<String> {
        self.modules(1, Some("running_mean"))
    }

    /// Linear layers in that order.
    pub(crate) fn linears(&self) -> Vec<String> {
        self.modules(2, None)
    }

    /// Modules whose weight has so many dimensions, and which have a buffer of that name.
    fn modules(&self, dimensions: usize, buffer: Option<&str>) -> Vec<String> {
        let modules: BTreeSet<_> = self
            .0
            .iter()
            .filter(|(_, weight)| weight.shape.len() == dimensions)
            .filter_map(|(name, _)| name.strip_suffix(".weight"))
            .filter(|module| {
                buffer.is_none_or(|buffer| self.0.contains_key(&format!("{module}.{buffer}")))
            })
            .map(|module| (natural_order(module), module.to_string()))
            .collect();
        modules.into_iter().map(|(_, module)| module).collect()
    }
}

/// Orders `conv2` before `conv10`.
fn natural_order(name: &str) -> Vec<(u64, String)> {
    let alike = |a: &u8, b: &u8| a.is_ascii_digit() == b.is_ascii_digit();
    let parts = name.as_bytes().chunk_by(alike).map(String::from_utf8_lossy);
    parts.map(|part| (part.parse().unwrap_or(0), part.into_owned())).collect()
}
