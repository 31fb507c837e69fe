//! The head of another network on the same trunk.

use serde::{Deserialize, Serialize};

use super::{Graph, GraphError, Node, NodeError};

/// Before the names of a source head's own nodes.
pub(crate) const PREFIX: &str = "source.";

/// The head of the network that training started from (the source task, in the terms of transfer learning), kept
/// beside the model's own.
///
/// Both networks begin with the same nodes and weights, the frozen trunk, which runs once. The source head is a whole
/// [`Graph`]: its first [`SourceHead::shared`] nodes are the model's, the names of all others begin with `source.`.
///
/// ```
/// use petnet::arch::Architecture;
/// use petnet::graph::SourceHead;
///
/// let imagenet = Architecture::named("efficientnet_lite0")?.graph(1000)?;
/// let shared = imagenet.blocks()[14];
/// let head = SourceHead::new(&imagenet, shared)?;
/// assert_eq!(head.graph().classes(), 1000);
/// assert!(head.graph().nodes()[shared].name.starts_with("source.blocks.15."));
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Description")]
pub struct SourceHead {
    shared: usize,
    graph: Graph,
}

/// A source head as it is written, not yet validated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    shared: usize,
    graph: Graph,
}

impl TryFrom<Description> for SourceHead {
    type Error = GraphError;

    fn try_from(Description { shared, graph }: Description) -> Result<Self, GraphError> {
        validate_split(&graph, shared)?;
        Ok(Self { graph, shared })
    }
}

impl SourceHead {
    /// The head of a network behind its first `shared` nodes.
    ///
    /// # Errors
    /// [`GraphError::Block`] where `shared` is neither the end of a block nor behind the global average pool.
    pub fn new(source: &Graph, shared: usize) -> Result<Self, GraphError> {
        validate_split(source, shared)?;
        let rename = |(index, node): (usize, &Node)| {
            let name = match index < shared {
                true => node.name.clone(),
                false => format!("{PREFIX}{}", node.name),
            };
            Node { name, ..node.clone() }
        };
        let nodes = source.nodes().iter().enumerate().map(rename).collect();
        let graph = Graph::new(source.name().into(), nodes, source.blocks().to_vec())?;
        Ok(Self { graph, shared })
    }

    /// The whole network that it is the head of, the trunk included.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Number of nodes that both networks begin with.
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// The network as it was before it became a second head: its nodes have their own names again.
    /// Errors: none for a head that [`SourceHead::new`] made.
    pub(crate) fn source(&self) -> Result<Graph, GraphError> {
        let rename = |node: &Node| Node { name: without_prefix(&node.name).into(), ..node.clone() };
        let nodes = self.graph.nodes().iter().map(rename).collect();
        Graph::new(self.graph.name().into(), nodes, self.graph.blocks().to_vec())
    }

    /// Validates that it shares its trunk with a model's graph, and no other names.
    /// Errors: [`GraphError::Node`] where it does not begin as another graph does, or has names of that graph's own.
    pub(crate) fn validate(&self, graph: &Graph) -> Result<(), GraphError> {
        let fails = |node: &Node, reason| GraphError::Node { node: node.name.clone(), reason };
        for (index, node) in self.graph.nodes().iter().enumerate() {
            if index < self.shared && graph.nodes().get(index) != Some(node) {
                return Err(fails(node, NodeError::NotShared));
            }
            if index >= self.shared && graph.nodes().iter().any(|other| other.name == node.name) {
                return Err(fails(node, NodeError::Name));
            }
        }
        validate_split(graph, self.shared)
    }
}

/// The name of a node or weight in the source network.
pub(crate) fn without_prefix(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// The name in a source head of a node or weight behind the trunk.
#[cfg(feature = "train")]
pub(crate) fn with_prefix(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Validates that a network can be divided after its first `shared` nodes: at the end of a block or after the global average
/// pool. Only there later nodes read a single output.
fn validate_split(graph: &Graph, shared: usize) -> Result<(), GraphError> {
    let fits = shared == graph.global_pool() + 1 || graph.blocks().contains(&shared);
    if fits { Ok(()) } else { Err(GraphError::Block(shared)) }
}
