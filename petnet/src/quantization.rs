//! Ranges of feature maps, stored in a checkpoint for int8 inference.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::graph::Graph;
use crate::passes;

/// The ranges of a network's feature maps, for static 8-bit quantisation.
///
/// CPUs with AVX-512 VNNI then run the network in int8: feature maps are unsigned bytes with one scale and zero point for
/// each map, weights signed bytes with one scale for each output channel. Features and logits are f32. The stored weights
/// are the same with and without ranges. The model runs in f32 on other CPUs and devices, and where the graph has a norm,
/// sum or activation that follows no convolution, or a step other than a dense convolution that reads the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// The smallest and the largest value of each feature map that is written to memory, by the name of its node. Values
    /// outside are clipped.
    pub ranges: BTreeMap<String, [f32; 2]>,
}

impl Quantization {
    /// Validates that there is a finite range for each step's output of some graphs.
    /// Errors: [`ModelError::MissingRange`] and [`ModelError::Range`].
    pub(crate) fn validate<'a>(
        &self,
        graphs: impl IntoIterator<Item = &'a Graph>,
    ) -> Result<(), ModelError> {
        for graph in graphs {
            for step in passes::fuse(graph) {
                let name = &graph.nodes()[step.output].name;
                if !self.ranges.contains_key(name) {
                    return Err(ModelError::MissingRange(name.clone()));
                }
            }
        }
        for (name, &range) in &self.ranges {
            let [low, high] = range;
            if !(low.is_finite() && high.is_finite() && low <= high) {
                return Err(ModelError::Range { name: name.clone(), range });
            }
        }
        Ok(())
    }
}
