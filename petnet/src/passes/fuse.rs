//! Which nodes run as one step: a convolution, max pool or sum with the norm, sum, activation and pool that follow
//! it, so that a feature map is written once.

use crate::graph::{Activation, Graph, Op, Padding, Window};

/// The operation that a step begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    /// A convolution, by its node.
    Conv(usize),
    /// A max pool, by its node.
    MaxPool(usize),
    /// None: a norm, sum or activation of a feature map as it is.
    Identity,
}

/// Norm, residual, activation and pool after the main operation, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Epilogue {
    /// A batch norm, by its node.
    pub(crate) norm: Option<usize>,
    /// A feature map to add, by the node that gives it.
    pub(crate) residual: Option<usize>,
    pub(crate) activation: Option<Activation>,
    /// Whether the largest of each two by two pixels is kept, a last odd row or column left out.
    pub(crate) pool: bool,
}

/// Some nodes that run as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) main: Main,
    /// The node that it reads.
    pub(crate) input: usize,
    pub(crate) epilogue: Epilogue,
    /// The node whose output it gives: its last.
    pub(crate) output: usize,
}

const POOL: Window = Window { kernel: 2, stride: 2, padding: Padding::Explicit(0) };

/// The steps up to the global average pool, in the order in which they run.
pub(crate) fn fuse(graph: &Graph) -> Vec<Step> {
    let readers = graph.readers();
    let mut given = vec![false; graph.nodes().len()];
    given[0] = true;
    let mut steps = Vec::new();
    for (place, node) in graph.nodes()[..graph.pool()].iter().enumerate() {
        if given[place] {
            continue;
        }
        let (main, mut last) = match node.op {
            Op::Conv2d(_) => (Main::Conv(place), place),
            Op::MaxPool(_) => (Main::MaxPool(place), place),
            // The step is its own epilogue's first operation.
            _ => (Main::Identity, node.inputs[0]),
        };
        let input = node.inputs[0];
        let mut epilogue = Epilogue::default();
        if main == Main::Identity {
            absorb(graph, place, (main, last), &given, &mut epilogue);
            last = place;
        }
        given[last] = true;
        // A block's last map is kept, so that training can begin behind it.
        while readers[last] == 1
            && !graph.blocks().contains(&(last + 1))
            && let Some(next) = reader(graph, last)
            && absorb(graph, next, (main, last), &given, &mut epilogue)
        {
            last = next;
            given[last] = true;
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

/// Takes a node that reads `last` into an epilogue, if it comes next in the order and its other input is there.
fn absorb(
    graph: &Graph,
    place: usize,
    (main, last): (Main, usize),
    given: &[bool],
    epilogue: &mut Epilogue,
) -> bool {
    let node = &graph.nodes()[place];
    let Epilogue { norm, residual, activation, pool } = *epilogue;
    let dense = match main {
        // Nothing is gained by an epilogue of a pool.
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
            if !given[other] {
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
    fn each_convolution_is_one_step_with_all_that_follows_it() {
        for name in Architecture::names() {
            let (graph, steps) = steps(name);
            let convs =
                graph.nodes().iter().filter(|node| matches!(node.op, Op::Conv2d(_))).count();
            let pools = usize::from(name == "resnet18" || name == "improved_cnn");
            assert_eq!(steps.len(), convs + pools, "{name}");
            assert!(steps.iter().all(|step| step.main != Main::Identity), "{name}");
            assert_eq!(steps.last().map(|step| step.output), Some(graph.pool() - 1), "{name}");
        }
    }

    #[test]
    fn a_sum_is_taken_in_by_the_convolution_that_comes_last() {
        let (graph, steps) = steps("petnet");
        let second = steps.iter().find(|step| step.epilogue.residual.is_some()).unwrap();
        let Main::Conv(conv) = second.main else { panic!("{second:?}") };
        assert_eq!(graph.nodes()[conv].name, "blocks.0.second.conv");
        assert_eq!(second.epilogue.activation, Some(Activation::Relu));
        let (_, steps) = self::steps("simple_cnn");
        assert!(steps.iter().all(|step| step.epilogue.pool));
    }
}
