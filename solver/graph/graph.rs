//! The DAG itself: nodes in topological order, equal nodes merged.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// What a node does. The graph only needs to know when two nodes do the same.
pub trait Operation {
    /// Equal keys over equal inputs are the same vertex.
    type Key: Hash + Eq + Clone;
    /// The key.
    fn key(&self) -> Self::Key;
}

/// A node of one [`Graph`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(NodeIndex<u32>);

impl NodeId {
    /// Position in the graph: nodes are numbered from 0 in the order of their creation.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// Lines of a Dockerfile, 1-based and inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Span {
    /// First line.
    pub first: u32,
    /// Last line.
    pub last: u32,
}

/// What a person sees of a node, and hints on how to solve it. Never part of a digest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// As BuildKit prints it: `[build 2/5] RUN make`.
    pub name: String,
    /// Where in the Dockerfile the node was written.
    pub span: Option<Span>,
    /// The name or number of the Dockerfile stage.
    pub stage: Option<String>,
    /// `--no-cache`: do not look for a recorded result.
    pub ignore_cache: bool,
}

/// An operation, its inputs in order, and what people see of it.
#[derive(Clone, Debug)]
pub struct Node<O> {
    /// What is done.
    pub op: O,
    /// The nodes whose outputs are the op's inputs, by position.
    pub inputs: Vec<NodeId>,
    /// Outside the digest.
    pub meta: Meta,
}

/// A DAG of operations. Every node has one output.
pub struct Graph<O: Operation> {
    dag: DiGraph<Node<O>, u32>,
    by_key: HashMap<(O::Key, Vec<NodeId>), NodeId>,
}

impl<O: Operation> Default for Graph<O> {
    fn default() -> Self {
        Self { dag: DiGraph::new(), by_key: HashMap::new() }
    }
}

impl<O: Operation> Graph<O> {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, or returns the one that already does the same with the same inputs. In the latter case the first
    /// node's name stays, and `ignore_cache` holds if either asks for it.
    pub fn add(&mut self, op: O, inputs: Vec<NodeId>, meta: Meta) -> NodeId {
        let key = (op.key(), inputs.clone());
        if let Some(&id) = self.by_key.get(&key) {
            self.dag[id.0].meta.ignore_cache |= meta.ignore_cache;
            return id;
        }
        let index = self.dag.add_node(Node { op, inputs: inputs.clone(), meta });
        for (position, input) in (0u32..).zip(&inputs) {
            self.dag.add_edge(input.0, index, position);
        }
        let id = NodeId(index);
        self.by_key.insert(key, id);
        id
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node<O> {
        &self.dag[id.0]
    }

    /// All nodes; inputs come before the nodes that use them.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node<O>)> {
        self.dag.node_indices().map(|index| (NodeId(index), &self.dag[index]))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes that use `id`, without repetition.
    #[must_use]
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut seen = HashSet::new();
        let users = self.dag.edges_directed(id.0, Direction::Outgoing).map(|edge| NodeId(edge.target()));
        users.filter(|user| seen.insert(*user)).collect()
    }

    /// The nodes that `targets` need, themselves included, in topological order.
    #[must_use]
    pub fn reachable(&self, targets: &[NodeId]) -> Vec<NodeId> {
        let mut needed: HashSet<NodeId> = targets.iter().copied().collect();
        let mut stack: Vec<NodeId> = targets.to_vec();
        while let Some(id) = stack.pop() {
            for &input in &self.node(id).inputs {
                if needed.insert(input) {
                    stack.push(input);
                }
            }
        }
        let mut order: Vec<NodeId> = needed.into_iter().collect();
        order.sort_unstable();
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Operation for &'static str {
        type Key = Self;
        fn key(&self) -> Self {
            self
        }
    }

    #[test]
    fn equal_nodes_are_merged_and_only_needed_ones_reached() {
        let mut graph = Graph::new();
        let base = graph.add("base", vec![], Meta::default());
        let one = graph.add("run", vec![base], Meta::default());
        let again = graph.add("run", vec![base], Meta { ignore_cache: true, ..Meta::default() });
        let other = graph.add("other", vec![base, one], Meta::default());
        assert_eq!(one, again);
        assert!(graph.node(one).meta.ignore_cache);
        assert_eq!(graph.reachable(&[one]), [base, one]);
        assert_eq!(graph.users(base), [other, one]);
        assert_eq!(graph.len(), 3);
    }
}
