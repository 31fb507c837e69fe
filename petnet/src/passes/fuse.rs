//! Operator fusion: a convolution and the batch norm, sum, activation and max pool that follow it become one step, so that
//! their feature map is written to memory once.

use crate::graph::{Activation, Conv2d, Graph, Op, Padding, Window};

/// The first operation of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MainOp {
    Conv(Conv2d),
    MaxPool(Window),
    /// No operation: the step is a norm, sum or activation that follows no convolution.
    Identity,
}

/// Norm, residual, activation and pool after the main operation, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FusedOps {
    /// A batch norm, by its node.
    pub(crate) norm: Option<usize>,
    /// A feature map to add, by its node.
    pub(crate) residual: Option<usize>,
    pub(crate) activation: Option<Activation>,
    /// True for a 2x2 max pool of stride 2; a last odd row or column is dropped.
    pub(crate) pool: bool,
}

/// Nodes that run as one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FusedStep {
    pub(crate) main: MainOp,
    /// Its first node: that of the main operation, if there is one.
    pub(crate) node: usize,
    /// The node that it reads.
    pub(crate) input: usize,
    pub(crate) epilogue: FusedOps,
    /// Its last node, whose output it writes.
    pub(crate) output: usize,
}

impl FusedStep {
    /// The convolution that the step begins with, unless it is depthwise.
    pub(crate) fn dense_conv(&self) -> Option<Conv2d> {
        match self.main {
            MainOp::Conv(conv) if !conv.is_depthwise() => Some(conv),
            _ => None,
        }
    }
}

/// The max pool that is fused into a step, [`FusedOps::pool`].
pub(crate) const FUSED_POOL: Window =
    Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) };

/// The steps up to the global average pool, in the order in which they run.
pub(crate) fn fuse(graph: &Graph) -> Vec<FusedStep> {
    let readers = graph.readers();
    let mut computed = vec![false; graph.nodes().len()];
    computed[0] = true;
    let mut steps = Vec::new();
    for (index, node) in graph.nodes()[..graph.global_pool()].iter().enumerate() {
        if computed[index] {
            continue;
        }
        let input = node.inputs[0];
        let (main, output) = match node.op {
            Op::Conv2d(conv) => (MainOp::Conv(conv), index),
            Op::MaxPool(window) => (MainOp::MaxPool(window), index),
            _ => (MainOp::Identity, input),
        };
        let epilogue = FusedOps::default();
        let mut step = FusedStep { main, node: index, input, epilogue, output };
        if step.main == MainOp::Identity {
            // The node becomes the first operation of the epilogue.
            let absorbed = absorb(graph, index, &computed, &mut step);
            assert!(absorbed, "no epilogue begins with {:?}", node.op);
        }
        computed[index] = true;
        // The last map of a block is always written, so that training can start after any block.
        while readers[step.output] == 1
            && !graph.blocks().contains(&(step.output + 1))
            && let Some(next) = reader(graph, step.output)
            && absorb(graph, next, &computed, &mut step)
        {
            computed[next] = true;
        }
        steps.push(step);
    }
    steps
}

/// The first node before the pool that reads a node's output.
fn reader(graph: &Graph, of: usize) -> Option<usize> {
    let nodes = graph.nodes()[..graph.global_pool()].iter();
    nodes.skip(of + 1).position(|node| node.inputs.contains(&of)).map(|index| of + 1 + index)
}

/// Adds a node that reads a step's output to its epilogue and returns true, if the order of operations allows it and the
/// node's other input is computed.
fn absorb(graph: &Graph, index: usize, computed: &[bool], step: &mut FusedStep) -> bool {
    let node = &graph.nodes()[index];
    let dense = step.dense_conv().is_some();
    let FusedStep { main, ref mut epilogue, output: last, .. } = *step;
    // Max pools have no epilogue: it would gain nothing.
    if matches!(main, MainOp::MaxPool(..)) {
        return false;
    }
    let FusedOps { norm, residual, activation, pool } = *epilogue;
    match node.op {
        Op::BatchNorm { .. }
            if norm.is_none() && residual.is_none() && activation.is_none() && !pool =>
        {
            epilogue.norm = Some(index);
        }
        Op::Add if residual.is_none() && activation.is_none() && !pool => {
            // `x + x` reads one map twice. A node with two readers ends the step that computes it, so the sum begins a step
            // of its own: that map is its input, and its residual as well.
            let other = node.inputs.iter().copied().find(|from| *from != last).unwrap_or(last);
            if !computed[other] {
                return false;
            }
            epilogue.residual = Some(other);
        }
        Op::Activation { function } if activation.is_none() && !pool => {
            epilogue.activation = Some(function);
        }
        Op::MaxPool(window) if window == FUSED_POOL && dense && residual.is_none() && !pool => {
            epilogue.pool = true;
        }
        _ => return false,
    }
    step.output = index;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Architecture;

    fn steps(name: &str) -> (Graph, Vec<FusedStep>) {
        let graph = Architecture::named(name).unwrap().graph(2).unwrap();
        let steps = fuse(&graph);
        (graph, steps)
    }

    #[test]
    fn every_operation_belongs_to_one_step() {
        for name in Architecture::names() {
            let (graph, steps) = steps(name);
            let operations = steps.iter().map(|FusedStep { main, epilogue, .. }| {
                let FusedOps { norm, residual, activation, pool } = *epilogue;
                let fused = [norm.is_some(), residual.is_some(), activation.is_some(), pool];
                usize::from(*main != MainOp::Identity)
                    + fused.map(usize::from).iter().sum::<usize>()
            });
            // The first node is the image.
            assert_eq!(operations.sum::<usize>(), graph.global_pool() - 1, "{name}");
            let last = steps.last().map(|step| step.output);
            assert_eq!(last, Some(graph.global_pool() - 1), "{name}");
        }
    }

    #[test]
    fn these_networks_have_a_step_for_each_convolution_and_none_for_an_epilogue() {
        for name in ["petnet", "efficientnet_lite0", "resnet18", "improved_cnn", "simple_cnn"] {
            let epilogues = [MainOp::Identity, MainOp::MaxPool(FUSED_POOL)];
            assert!(steps(name).1.iter().all(|step| !epilogues.contains(&step.main)), "{name}");
        }
    }

    #[test]
    fn a_sum_is_fused_into_the_last_of_its_convolutions() {
        let (graph, steps) = steps("petnet");
        let second = steps.iter().find(|step| step.epilogue.residual.is_some()).unwrap();
        assert_eq!(graph.nodes()[second.node].name, "blocks.0.second.conv");
        assert_eq!(second.epilogue.activation, Some(Activation::Relu));
    }

    #[test]
    fn a_max_pool_is_fused_into_the_convolution_before_it() {
        let (_, steps) = steps("simple_cnn");
        assert!(steps.iter().all(|step| step.epilogue.pool));
    }
}
