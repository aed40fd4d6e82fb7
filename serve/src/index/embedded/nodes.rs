//! Which items share a node of the graph, and which nodes the graph lacks.
//!
//! A node stands for a vector, not for an item, and is named by the vector's digest ([`key`]).  So a thousand copies of a
//! picture are one node, which hides nothing around it.  And a name cannot come to mean something else: whatever past of
//! the index a graph's file is from, a node whose name an item's vector has is where that item belongs, and an item
//! whose name the file does not have is compared exactly until it is added.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::graph::Graph;
use super::slots::Slots;

/// The name of the node that stands for a vector: 63 bits of a digest of its numbers as the graph keeps them.
///
/// Vectors that half precision does not tell apart share a node: one picture's vectors from two batches may differ in
/// their last bits.  Two others of a million vectors share one by chance in 1 of 10^7 indexes.
pub(super) fn key(vector: &[f32]) -> u64 {
    // To the nearest; 0.0 + turns -0.0 into 0.0.
    let half = |v: &f32| (((0.0 + v).to_bits().wrapping_add(0x8000)) >> 16) as u16;
    let bytes: Vec<u8> = vector.iter().flat_map(|v| half(v).to_le_bytes()).collect();
    let digest = Sha256::digest(&bytes);
    let first = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    // usearch keeps the greatest number for itself.
    first >> 1
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Nodes {
    /// Node -> the items that it stands for.
    slots: BTreeMap<u64, Slots>,
    /// What approximate searches use.
    graph: Option<Arc<Graph>>,
    /// Nodes that the graph lacks, where there is one.
    missing: BTreeSet<u64>,
    /// Items that those stand for.
    missing_items: usize,
    /// Changes so far.
    changes: u64,
}

impl Nodes {
    /// The item in `slot` has this node's vector.
    pub(super) fn add(&mut self, node: u64, slot: u32) {
        self.changes += 1;
        self.slots.entry(node).and_modify(|slots| slots.insert(slot)).or_insert(Slots::One(slot));
        if self.graph.as_ref().is_some_and(|graph| self.missing.contains(&node) || !graph.contains(node)) {
            self.missing.insert(node);
            self.missing_items += 1;
        }
    }

    /// The item in `slot` had this node's vector and is gone.
    pub(super) fn remove(&mut self, node: u64, slot: u32) {
        self.changes += 1;
        let Some(slots) = self.slots.get_mut(&node) else { return };
        let empty = slots.remove(slot);
        if empty {
            self.slots.remove(&node);
        }
        if self.missing.contains(&node) {
            self.missing_items -= 1;
            if empty {
                self.missing.remove(&node);
            }
        }
    }

    /// Distinct vectors.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The items that a node stands for.
    pub(super) fn slots(&self, node: u64) -> impl Iterator<Item = u32> + '_ {
        self.slots.get(&node).into_iter().flat_map(Slots::iter)
    }

    /// Nodes whose names come after this one.
    pub(super) fn after(&self, node: Option<u64>) -> impl Iterator<Item = u64> + '_ {
        let start = node.map_or(Bound::Unbounded, Bound::Excluded);
        self.slots.range((start, Bound::Unbounded)).map(|(node, _)| *node)
    }

    pub(super) fn graph(&self) -> Option<&Arc<Graph>> {
        self.graph.as_ref()
    }

    /// Nodes that the graph lacks.
    pub(super) fn missing(&self) -> &BTreeSet<u64> {
        &self.missing
    }

    /// Items that the graph does not find.
    pub(super) fn missing_items(&self) -> usize {
        self.missing_items
    }

    /// Changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn set_graph(&mut self, graph: Option<Arc<Graph>>) {
        let lacks = |node: &u64| graph.as_ref().is_some_and(|graph| !graph.contains(*node));
        self.missing = self.slots.keys().copied().filter(lacks).collect();
        self.missing_items = self.missing.iter().filter_map(|node| self.slots.get(node)).map(Slots::len).sum();
        self.graph = graph;
    }

    /// The graph has these nodes now.
    pub(super) fn cover(&mut self, nodes: &[u64]) {
        for node in nodes {
            if self.missing.remove(node) {
                self.missing_items -= self.slots.get(node).map_or(0, Slots::len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_half_precision_tells_apart_have_nodes_of_their_own() {
        let node = key(&[0.6, -0.8, 0.0]);
        assert_eq!(node, key(&[0.6000001, -0.8, -0.0]));
        for other in [[0.605, -0.8, 0.0], [0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]] {
            assert_ne!(node, key(&other), "{other:?}");
        }
        // import hashlib, torch
        // t = torch.tensor([0.6, -0.8, 0.0]).bfloat16().view(torch.int16)
        // int.from_bytes(hashlib.sha256(t.numpy().astype("<i2").tobytes()).digest()[:8]) >> 1
        assert_eq!(node, 4_718_654_579_073_254_073);
    }

    #[test]
    fn what_the_graph_lacks_is_known_after_every_change() {
        let mut nodes = Nodes::default();
        nodes.add(1, 10);
        nodes.add(1, 11);
        nodes.add(2, 12);
        assert_eq!((nodes.len(), nodes.missing_items()), (2, 0));
        let graph = Arc::new(Graph::new(2, 100).unwrap());
        graph.add(1, &[1.0, 0.0]).unwrap();
        nodes.set_graph(Some(graph.clone()));
        assert_eq!((nodes.missing().len(), nodes.missing_items()), (1, 1));
        nodes.add(3, 13);
        nodes.add(3, 14);
        nodes.add(1, 15);
        assert_eq!((nodes.missing().len(), nodes.missing_items()), (2, 3));
        nodes.remove(3, 13);
        assert_eq!((nodes.missing().len(), nodes.missing_items()), (2, 2));
        graph.add(2, &[0.0, 1.0]).unwrap();
        nodes.cover(&[2, 7]);
        nodes.remove(3, 14);
        assert_eq!((nodes.missing().len(), nodes.missing_items(), nodes.len()), (0, 0, 2));
        // A node that was there before is there again.
        nodes.remove(2, 12);
        nodes.add(2, 16);
        assert_eq!(nodes.missing_items(), 0);
        assert_eq!(nodes.slots(1).collect::<Vec<_>>(), [10, 11, 15]);
    }
}
