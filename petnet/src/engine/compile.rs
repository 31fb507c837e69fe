//! The plan of each architecture, from its weights by name.

use super::plan::Plan;
use crate::architecture::{Architecture, Normalization, PetNetConfig, SimpleCnnConfig};
use crate::weights::Weights;

/// What follows a convolution: stride, ReLU, pooling.
const POOLED: (usize, bool, bool) = (1, true, true);

/// # Errors
/// Names what is missing or does not fit.
pub(crate) fn compile(
    architecture: &Architecture,
    normalization: Normalization,
    side: usize,
    weights: &Weights,
) -> Result<Plan, String> {
    let plan = Plan::new(normalization, side);
    match architecture {
        Architecture::SimpleCnn(config) => simple_cnn(plan, config, weights),
        Architecture::PetNet(config) => pet_net(plan, config, weights),
    }
}

fn simple_cnn(mut plan: Plan, config: &SimpleCnnConfig, weights: &Weights) -> Result<Plan, String> {
    let mut last = 0;
    for block in 0..config.channels.len() {
        last = plan.conv(weights, &format!("SimpleCnn.blocks.{block}"), POOLED, (last, None))?;
    }
    plan.dense(weights, "SimpleCnn.hidden", true)?;
    plan.dense(weights, "SimpleCnn.head", false)?;
    Ok(plan)
}

fn pet_net(mut plan: Plan, config: &PetNetConfig, weights: &Weights) -> Result<Plan, String> {
    let mut last = 0;
    for layer in 0..2 {
        let name = format!("PetNet.stem.{layer}");
        last = plan.conv(weights, &name, (2, true, false), (last, None))?;
    }
    let mut number = 0;
    for (stage, depth) in config.depths.iter().enumerate() {
        for place in 0..*depth {
            let name = |part: &str| format!("PetNet.blocks.{number}.{part}");
            let stride = if stage > 0 && place == 0 { 2 } else { 1 };
            let shortcut = if weights.contains_key(&name("shortcut.conv.weight")) {
                plan.conv(weights, &name("shortcut"), (stride, false, false), (last, None))?
            } else {
                last
            };
            let inner = plan.conv(weights, &name("first"), (stride, true, false), (last, None))?;
            let to = (inner, Some(shortcut));
            last = plan.conv(weights, &name("second"), (1, true, false), to)?;
            number += 1;
        }
    }
    plan.dense(weights, "PetNet.head", false)?;
    Ok(plan)
}
