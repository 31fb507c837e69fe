//! Operator fusion: a convolution and the batch norm, sum, activation and max pool that follow it become one step, so that
//! their feature map is written to memory once.

use crate::graph::{Activation, Graph, Op, Padding, Window};

/// The first operation of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    /// A convolution, by its node.
    Conv(usize),
    /// A max pool, by its node.
    MaxPool(usize),
    /// None: the step is a norm, sum or activation that follows no convolution.
    Identity,
}

/// Norm, residual, activation and pool after the main operation, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Epilogue {
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
pub(crate) struct Step {
    pub(crate) main: Main,
    /// The node that it reads.
    pub(crate) input: usize,
    pub(crate) epilogue: Epilogue,
    /// Its last node, whose output it writes.
    pub(crate) output: usize,
}

const POOL: Window = Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) };

/// The steps up to the global average pool, in the order in which they run.
pub(crate) fn fuse(graph: &Graph) -> Vec<Step> {
    let readers = graph.readers();
    let mut computed = vec![false; graph.nodes().len()];
    computed[0] = true;
    let mut steps = Vec::new();
    for (index, node) in graph.nodes()[..graph.pool()].iter().enumerate() {
        if computed[index] {
            continue;
        }
        let (main, mut last) = match node.op {
            Op::Conv2d(_) => (Main::Conv(index), index),
            Op::MaxPool(_) => (Main::MaxPool(index), index),
            // The node becomes the first operation of the epilogue.
            _ => (Main::Identity, node.inputs[0]),
        };
        let input = node.inputs[0];
        let mut epilogue = Epilogue::default();
        if main == Main::Identity {
            absorb(graph, index, (main, last), &computed, &mut epilogue);
            last = index;
        }
        computed[last] = true;
        // The last map of a block is always written, so that training can start after any block.
        while readers[last] == 1
            && !graph.blocks().contains(&(last + 1))
            && let Some(next) = reader(graph, last)
            && absorb(graph, next, (main, last), &computed, &mut epilogue)
        {
            last = next;
            computed[last] = true;
        }
        steps.push(Step { main, input, epilogue, output: last });
    }
    steps
}

/// The first node before the pool that reads a node's output.
fn reader(graph: &Graph, of: usize) -> Option<usize> {
    let nodes = graph.nodes()[..graph.pool()].iter();
    nodes.skip(of + 1).position(|node| node.inputs.contains(&of)).map(|place| of + 1 + place)
}

/// Adds a node that reads `last` to an epilogue and returns true, if the order of operations allows it and its other input
/// is computed.
fn absorb(
    graph: &Graph,
    place: usize,
    (main, last): (Main, usize),
    computed: &[bool],
    epilogue: &mut Epilogue,
) -> bool {
    let node = &graph.nodes()[place];
    let Epilogue { norm, residual, activation, pool } = *epilogue;
    let dense = match main {
        // Max pools have no epilogue: it would gain nothing.
        Main::MaxPool(_) => return false,
        Main::Identity => false,
        Main::Conv(conv) => {
            matches!(graph.nodes()[conv].op, Op::Conv2d(conv) if !conv.is_depthwise())
        }
    };
    match node.op {
        Op::BatchNorm { .. }
            if norm.is_none() && residual.is_none() && activation.is_none() && !pool =>
        {
            epilogue.norm = Some(place);
        }
        Op::Add if residual.is_none() && activation.is_none() && !pool => {
            let other = node.inputs.iter().copied().find(|from| *from != last).unwrap_or(last);
            if !computed[other] {
                return false;
            }
            epilogue.residual = Some(other);
        }
        Op::Activation { function } if activation.is_none() && !pool => {
            epilogue.activation = Some(function);
        }
        Op::MaxPool(window) if window == POOL && dense && residual.is_none() && !pool => {
            epilogue.pool = true;
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Architecture;

    fn steps(name: &str) -> (Graph, Vec<Step>) {
        let graph = Architecture::named(name).unwrap().graph(2).unwrap();
        let steps = fuse(&graph);
        (graph, steps)
    }

    #[test]
    fn each_convolution_is_one_step_with_its_epilogue() {
        for name in Architecture::names() {
            let (graph, steps) = steps(name);
            let own_step = |op| match op {
                Op::Conv2d(_) => true,
                Op::MaxPool(window) => window != POOL,
                _ => false,
            };
            let expected = graph.nodes().iter().filter(|node| own_step(node.op)).count();
            assert_eq!(steps.len(), expected, "{name}");
            assert!(steps.iter().all(|step| step.main != Main::Identity), "{name}");
            assert_eq!(steps.last().map(|step| step.output), Some(graph.pool() - 1), "{name}");
        }
    }

    #[test]
    fn a_sum_is_fused_into_the_last_of_its_convolutions() {
        let (graph, steps) = steps("petnet");
        let second = steps.iter().find(|step| step.epilogue.residual.is_some()).unwrap();
        let Main::Conv(conv) = second.main else { panic!("{second:?}") };
        assert_eq!(graph.nodes()[conv].name, "blocks.0.second.conv");
        assert_eq!(second.epilogue.activation, Some(Activation::Relu));
        let (_, steps) = self::steps("simple_cnn");
        assert!(steps.iter().all(|step| step.epilogue.pool));
    }
}
