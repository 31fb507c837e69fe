//! Programs: the steps of a network and of a source head on the same trunk, with one numbering of nodes.

use super::fuse::{FusedOps, FusedStep, fuse};
use crate::graph::{Graph, GraphError, Node, SourceHead};

/// The steps for an image up to the global average pools.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The network's nodes, then those that only the source head has.
    pub(crate) nodes: Vec<Node>,
    pub(crate) steps: Vec<FusedStep>,
    /// The nodes whose feature maps are averaged: the network's, then the source head's, which may be the same.
    pub(crate) head_inputs: Vec<usize>,
    /// Height and width of each node's output.
    pub(crate) sides: Vec<[usize; 2]>,
}

impl Program {
    /// For images of `side` pixels.
    /// Errors: [`GraphError::Side`] where the image is too small.
    pub(crate) fn new(
        graph: &Graph,
        source: Option<&SourceHead>,
        side: usize,
    ) -> Result<Self, GraphError> {
        let mut program = Self {
            nodes: graph.nodes().to_vec(),
            steps: fuse(graph),
            head_inputs: vec![head_input(graph)],
            sides: graph.sides(side)?,
        };
        if let Some(source) = source {
            program.append(source, side)?;
        }
        Ok(program)
    }

    /// Only the first `blocks` blocks; the end is their last feature map.
    /// Errors: [`GraphError::Side`] where the image is too small, [`GraphError::Block`] where there are fewer blocks.
    #[cfg(feature = "train")]
    pub(crate) fn trunk(graph: &Graph, blocks: usize, side: usize) -> Result<Self, GraphError> {
        let mut program = Self::new(graph, None, side)?;
        let last = blocks.checked_sub(1).and_then(|last| graph.blocks().get(last));
        let end = last.ok_or(GraphError::Block(blocks))? - 1;
        program.steps.retain(|step| step.output <= end);
        program.head_inputs = vec![end];
        Ok(program)
    }

    fn append(&mut self, source: &SourceHead, side: usize) -> Result<(), GraphError> {
        let (own, shared) = (self.nodes.len(), source.shared());
        let renumber = |node: usize| if node < shared { node } else { node - shared + own };
        let nodes = source.graph().nodes()[shared..].iter().cloned();
        self.nodes.extend(nodes.map(|mut node| {
            node.inputs.iter_mut().for_each(|from| *from = renumber(*from));
            node
        }));
        let steps = fuse(source.graph()).into_iter().filter(|step| step.output >= shared);
        self.steps.extend(steps.map(|step| renumbered(step, renumber)));
        self.head_inputs.push(renumber(head_input(source.graph())));
        self.sides.extend_from_slice(&source.graph().sides(side)?[shared..]);
        Ok(())
    }
}

/// The node that the global average pool reads.
fn head_input(graph: &Graph) -> usize {
    graph.nodes()[graph.global_pool()].inputs[0]
}

/// A step with its nodes renumbered.
fn renumbered(step: FusedStep, renumber: impl Fn(usize) -> usize) -> FusedStep {
    let FusedOps { norm, residual, .. } = step.epilogue;
    let [norm, residual] = [norm, residual].map(|node| node.map(&renumber));
    FusedStep {
        node: renumber(step.node),
        input: renumber(step.input),
        epilogue: FusedOps { norm, residual, ..step.epilogue },
        output: renumber(step.output),
        ..step
    }
}
