//! A network's parameters as named, flat numbers.

use std::collections::BTreeMap;

/// Shape and values of one parameter or buffer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Parameters and buffers by their path, e.g. `blocks.0.conv.weight`.
pub(crate) type Weights = BTreeMap<String, Weight>;
