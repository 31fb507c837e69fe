//! The head, after the global average pool: features to logits, and the gradient of a logit by the features for Grad-CAM.

use crate::error::ModelError;
use crate::graph::{Activation, Graph, Op};
use crate::weights::Weights;

/// A sequence of linear layers and activations; without any, logits are the features.
#[derive(Debug, Default)]
pub(crate) struct Head {
    layers: Vec<Layer>,
}

#[derive(Debug)]
enum Layer {
    Linear {
        /// `[inputs, outputs]`.
        weights: Vec<f32>,
        bias: Vec<f32>,
    },
    Activation(Activation),
}

impl Head {
    /// The head of a graph.
    /// Errors: [`ModelError::MissingWeight`].
    pub(crate) fn new(graph: &Graph, weights: &Weights) -> Result<Self, ModelError> {
        let get = |name: String| {
            let weight = weights.get(&name).map(|weight| weight.values.clone());
            weight.ok_or(ModelError::MissingWeight(name))
        };
        let mut layers = Vec::new();
        for node in graph.head() {
            match node.op {
                Op::Linear { .. } => layers.push(Layer::Linear {
                    weights: get(format!("{}.weight", node.name))?,
                    bias: get(format!("{}.bias", node.name))?,
                }),
                Op::Activation { function } => layers.push(Layer::Activation(function)),
                // Dropout does nothing in inference, and a valid head has no other operation.
                _ => {}
            }
        }
        Ok(Self { layers })
    }

    /// Features to logits.
    pub(crate) fn run(&self, features: &[f32]) -> Vec<f32> {
        self.layers.iter().fold(features.to_vec(), |x, layer| layer.run(&x))
    }

    /// Features to the inputs of the last linear layer.
    #[cfg(feature = "train")]
    pub(crate) fn last_inputs(&self, features: Vec<f32>) -> Vec<f32> {
        let layers = self.layers.len().saturating_sub(1);
        self.layers[..layers].iter().fold(features, |x, layer| layer.run(&x))
    }

    /// The inputs of the last linear layer to logits.
    #[cfg(feature = "train")]
    pub(crate) fn last_logits(&self, inputs: &[f32]) -> Vec<f32> {
        self.layers.last().map(|layer| layer.run(inputs)).unwrap_or_default()
    }

    /// The gradient of logit `class` by the features.
    pub(crate) fn gradient(&self, features: &[f32], class: usize) -> Vec<f32> {
        gradient(&self.layers, features, class)
    }
}

impl Layer {
    fn run(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Self::Linear { weights, bias } => {
                let mut out = bias.clone();
                for (value, row) in x.iter().zip(weights.chunks_exact(out.len())) {
                    out.iter_mut().zip(row).for_each(|(out, weight)| *out += value * weight);
                }
                out
            }
            Self::Activation(activation) => {
                let [floor, ceiling] = activation.bounds();
                x.iter().map(|value| value.max(floor).min(ceiling)).collect()
            }
        }
    }
}

/// Backpropagation through `layers`, whose input is `x`.
fn gradient(layers: &[Layer], x: &[f32], class: usize) -> Vec<f32> {
    let Some((layer, later)) = layers.split_first() else {
        return (0..x.len()).map(|output| f32::from(u8::from(output == class))).collect();
    };
    let output = gradient(later, &layer.run(x), class);
    match layer {
        Layer::Linear { weights, .. } => {
            let rows = weights.chunks_exact(output.len());
            rows.map(|row| row.iter().zip(&output).map(|(weight, g)| weight * g).sum()).collect()
        }
        Layer::Activation(activation) => {
            let [floor, ceiling] = activation.bounds();
            let is_inside = |value: f32| value > floor && value < ceiling;
            x.iter().zip(output).map(|(x, g)| if is_inside(*x) { g } else { 0.0 }).collect()
        }
    }
}
