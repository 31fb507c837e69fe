//! The plan of each architecture, from its weights by name.

use super::plan::Plan;
use crate::architecture::{
    Architecture, Normalization, PetNetConfig, ResNetConfig, SimpleCnnConfig,
};
use crate::weights::Weights;

/// What follows a convolution: stride, ReLU, pooling.
const POOLED: (usize, bool, bool) = (1, true, true);
const HALVED: (usize, bool, bool) = (2, true, false);

/// # Errors
/// Names what is missing or does not fit.
pub(crate) fn compile(
    architecture: &Architecture,
    normalization: Normalization,
    side: usize,
    weights: &Weights,
) -> Result<Plan, String> {
    let plan = |kernel| Plan::new(normalization, side, kernel);
    match architecture {
        Architecture::SimpleCnn(config) => simple_cnn(plan(3), config, weights),
        Architecture::PetNet(config) => pet_net(plan(3), config, weights),
        Architecture::ResNet(config) => res_net(plan(7), config, weights),
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
    let first = plan.conv(weights, "PetNet.stem.0", HALVED, (0, None))?;
    let stem = plan.conv(weights, "PetNet.stem.1", HALVED, (first, None))?;
    residual(plan, "PetNet", (&config.depths, stem), weights)
}

fn res_net(mut plan: Plan, config: &ResNetConfig, weights: &Weights) -> Result<Plan, String> {
    let first = plan.conv(weights, "ResNet.stem.0", HALVED, (0, None))?;
    let stem = plan.pool("ResNet.stem.pool", first);
    residual(plan, "ResNet", (&config.depths, stem), weights)
}

/// What follows a stem.
fn residual(
    mut plan: Plan,
    network: &str,
    (depths, mut last): (&[usize], usize),
    weights: &Weights,
) -> Result<Plan, String> {
    let mut number = 0;
    for (stage, depth) in depths.iter().enumerate() {
        for place in 0..*depth {
            let name = |part: &str| format!("{network}.blocks.{number}.{part}");
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
    plan.dense(weights, &format!("{network}.head"), false)?;
    Ok(plan)
}
