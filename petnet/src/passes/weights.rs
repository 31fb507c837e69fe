//! Names and shapes of a network's weights.

use std::collections::BTreeSet;

use crate::error::ModelError;
use crate::graph::{Node, Op};
use crate::weights::Weights;

/// Names and shapes of a node's weights; the last two of a batch norm are its running statistics.
pub(crate) fn parameters(node: &Node) -> Vec<(String, Vec<usize>)> {
    let named = |part: &str, shape: &[usize]| (format!("{}.{part}", node.name), shape.to_vec());
    match node.op {
        Op::Conv2d(conv) => {
            let weight = named("weight", &conv.weight_shape());
            let bias = conv.bias.then(|| named("bias", &[conv.outputs]));
            std::iter::once(weight).chain(bias).collect()
        }
        Op::BatchNorm { channels, .. } => ["weight", "bias", "running_mean", "running_var"]
            .map(|part| named(part, &[channels]))
            .into(),
        Op::Linear { inputs, outputs, .. } => {
            vec![named("weight", &[inputs, outputs]), named("bias", &[outputs])]
        }
        Op::Image
        | Op::Activation { .. }
        | Op::Add
        | Op::MaxPool(_)
        | Op::GlobalAvgPool
        | Op::Dropout { .. } => Vec::new(),
    }
}

/// Validates that weights are exactly those of some names and shapes, among which there may be duplicates.
/// Errors: [`ModelError`] names the first that is missing, of another shape, not finite, or of no layer.
pub(crate) fn validate(
    expected: impl IntoIterator<Item = (String, Vec<usize>)>,
    weights: &Weights,
) -> Result<(), ModelError> {
    let mut known = BTreeSet::new();
    for (name, expected) in expected {
        let weight = weights.get(&name).ok_or_else(|| ModelError::MissingWeight(name.clone()))?;
        let values = expected.iter().product::<usize>();
        if weight.shape != expected || weight.values.len() != values {
            return Err(ModelError::WeightShape { name, found: weight.shape.clone(), expected });
        }
        // A bounded activation maps NaN to a number, so that outputs would not reveal it.
        if weight.values.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::WeightValue(name));
        }
        known.insert(name);
    }
    match weights.keys().find(|name| !known.contains(*name)) {
        Some(name) => Err(ModelError::UnusedWeight(name.clone())),
        None => Ok(()),
    }
}
