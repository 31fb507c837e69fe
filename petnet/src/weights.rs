//! The parameters of a network by name, as flat values: `NODE.weight`, `NODE.bias`, and of batch norms also
//! `NODE.running_mean` and `NODE.running_var`.

use std::collections::BTreeMap;

/// Shape and values of one parameter or buffer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weight {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The transpose of a matrix of so many columns, both row by row.
pub(crate) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// Parameters and buffers by name.
pub(crate) type Weights = BTreeMap<String, Weight>;
