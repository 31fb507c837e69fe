//! Conversion of a PyTorch file's tensors to petnet's weights: their names and layouts.

use std::collections::BTreeSet;

use crate::arch::{Architecture, Keys, RecognisedNetwork, TABLE};
use crate::error::ModelError;
use crate::graph::Op;
use crate::passes;
use crate::weights::{Weight, Weights, transposed};

/// Names of a file that an error lists.
const MAX_LISTED_NAMES: usize = 6;

/// Recognises the network of a file's tensors; returns it with its weights by petnet's names. All tensors, or all of one key
/// of a checkpoint that has other keys as well, must belong to the network.
pub(super) fn convert(tensors: Weights) -> Result<(RecognisedNetwork, Weights), ModelError> {
    let as_named = unknown(&tensors);
    let given = without_shared_prefix(tensors);
    let whole = match recognised(&given) {
        Some(found) => assign_weights(found, given.clone()),
        None => Err(as_named),
    };
    let whole_failed = match whole {
        // Names of `simple_cnn` are free: something else may lie beside it.
        Err(reason @ (ModelError::UnusedWeight(_) | ModelError::UnknownNetwork { .. })) => reason,
        decided => return decided,
    };
    let keys: BTreeSet<&str> =
        given.keys().filter_map(|name| Some(name.split_once('.')?.0)).collect();
    let below = |key: &str| {
        let names = given.iter().filter_map(|(name, weight)| {
            Some((name.strip_prefix(key)?.strip_prefix('.')?.to_string(), weight.clone()))
        });
        without_shared_prefix(names.collect())
    };
    let found =
        keys.into_iter().map(below).find_map(|part| assign_weights(recognised(&part)?, part).ok());
    found.ok_or(whole_failed)
}

fn recognised(given: &Weights) -> Option<RecognisedNetwork> {
    let keys = Keys(given);
    TABLE.iter().filter_map(|entry| entry.recognise).find_map(|known| known(&keys))
}

pub(super) fn assign_weights(
    found: RecognisedNetwork,
    mut given: Weights,
) -> Result<(RecognisedNetwork, Weights), ModelError> {
    let graph = found
        .architecture
        .graph(found.classes)
        .map_err(|e| ModelError::Description(format!("{}: {e}", found.architecture.name())))?;
    let mut taken = Weights::new();
    for node in graph.nodes() {
        let module = found.modules.iter().find(|(name, _)| *name == node.name);
        for (name, expected) in passes::parameters(node) {
            let Some((_, module)) = module else { return Err(ModelError::MissingWeight(name)) };
            let part = name.rsplit_once('.').map_or("", |(_, part)| part);
            let theirs = format!("{module}.{part}");
            let weight = match (given.remove(&theirs), node.op) {
                (Some(weight), Op::Linear { .. }) if expected.len() == 2 => linear_weight(weight),
                (Some(weight), _) => weight,
                // A convolution before a norm need not have one there, and has one of zeros here.
                (None, Op::Conv2d(_)) if part == "bias" => {
                    let values = vec![0.0; expected.iter().product()];
                    Weight { shape: expected.clone(), values }
                }
                (None, _) => return Err(ModelError::MissingWeight(theirs)),
            };
            if weight.shape != expected {
                // As the file has it.
                let turn = |shape: Vec<usize>| match node.op {
                    Op::Linear { .. } => shape.into_iter().rev().collect(),
                    _ => shape,
                };
                let (found, expected) = (turn(weight.shape), turn(expected));
                return Err(ModelError::WeightShape { name: theirs, found, expected });
            }
            taken.insert(name, weight);
        }
    }
    match given.into_keys().next() {
        Some(name) => Err(ModelError::UnusedWeight(name)),
        None => Ok((found, taken)),
    }
}

/// The weight of a linear layer: PyTorch's `[outputs, inputs]` to `[inputs, outputs]`.
fn linear_weight(Weight { shape, values }: Weight) -> Weight {
    let [outputs, inputs] = shape[..] else { return Weight { shape, values } };
    Weight { values: transposed(&values, inputs), shape: vec![inputs, outputs] }
}

/// Removes the modules that all names begin with: wrappers, and the keys under which checkpoints store weights.
fn without_shared_prefix(mut tensors: Weights) -> Weights {
    loop {
        let shared = tensors.keys().next().and_then(|name| name.split_once('.'));
        let Some(prefix) = shared.map(|(prefix, _)| format!("{prefix}.")) else { return tensors };
        // A single module with its weight and bias alone is a layer and no wrapper.
        let nested =
            |name: &String| name.strip_prefix(&prefix).is_some_and(|rest| rest.contains('.'));
        if !tensors.keys().all(nested) {
            return tensors;
        }
        let strip = |(name, weight): (String, Weight)| (name[prefix.len()..].to_string(), weight);
        tensors = tensors.into_iter().map(strip).collect();
    }
}

fn unknown(given: &Weights) -> ModelError {
    let names = || given.keys().map(String::as_str);
    let first = names().take(MAX_LISTED_NAMES).collect::<Vec<_>>().join(", ");
    let more = if given.len() > MAX_LISTED_NAMES { ", ..." } else { "" };
    let known = Architecture::names().collect::<Vec<_>>().join(", ");
    ModelError::UnknownNetwork { known, keys: given.len(), first: format!("{first}{more}") }
}
