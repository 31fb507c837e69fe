//! The plan of each architecture, from its weights by name.

use super::plan::Plan;
use crate::architecture::{Architecture, Normalization};
use crate::layers::{self, Build, Conv};
use crate::weights::Weights;

/// For pictures of `side` pixels. Whoever calls has seen that the weights are sound.
///
/// # Errors
/// Names what is missing.
pub(crate) fn compile(
    architecture: &Architecture,
    classes: usize,
    normalization: Normalization,
    side: usize,
    weights: &Weights,
) -> Result<Plan, String> {
    let plan = Plan::new(normalization, side, layers::first_kernel(architecture));
    let mut compiler = Compiler { plan, weights };
    layers::build(architecture, classes, &mut compiler)?;
    Ok(compiler.plan)
}

struct Compiler<'a> {
    plan: Plan,
    weights: &'a Weights,
}

impl Build for Compiler<'_> {
    fn conv(&mut self, prefix: &str, conv: Conv) -> Result<usize, String> {
        self.plan.conv(self.weights, prefix, conv)
    }

    fn pool(&mut self, name: &str, from: usize) -> usize {
        self.plan.pool(name, from)
    }

    fn dense(&mut self, prefix: &str, _: [usize; 2], relu: bool) -> Result<(), String> {
        self.plan.dense(self.weights, prefix, relu)
    }
}
