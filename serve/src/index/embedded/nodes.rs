//! Which items belong to a node of the graph, and which nodes the graph lacks.
//!
//! A node stands for a vector, not for an item, and its key is a digest of the vector ([`key`]).  So a thousand copies of one
//! image are one node and do not crowd out their neighbours.  The key depends on the vector alone: an old graph file
//! stays usable after any change of the index.  A node in it whose key matches an item's vector is that item's node, and an
//! item whose key the file lacks is compared exactly until its node is added.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::graph::Graph;
use super::slot_set::SlotSet;

/// The key of a vector's node: 63 bits of a digest of its numbers in the graph's half precision.
///
/// Vectors that are equal in half precision share a node: the vectors of one image from two batches may differ in their last
/// bits.  Among a million other vectors, two share a node by chance in 1 of 10^7 indexes.
pub(super) fn key(vector: &[f32]) -> u64 {
    // Rounds to the nearest; 0.0 + turns -0.0 into 0.0.
    let half = |v: &f32| (((0.0 + v).to_bits().wrapping_add(0x8000)) >> 16) as u16;
    let bytes: Vec<u8> = vector.iter().flat_map(|v| half(v).to_le_bytes()).collect();
    let digest = Sha256::digest(&bytes);
    let first = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    // usearch reserves the greatest number.
    first >> 1
}

/// Relates the nodes of the graph to the items.
#[derive(Default)]
pub(super) struct Nodes {
    /// The slots of each node's items.
    slots: BTreeMap<u64, SlotSet>,
    /// The graph that approximate searches use.
    graph: Option<Arc<Graph>>,
    /// Nodes that the graph lacks; empty without a graph.
    missing: BTreeSet<u64>,
    /// Number of items of the missing nodes.
    missing_items: usize,
    /// Number of changes since the index was opened.
    changes: u64,
}

impl Nodes {
    /// Adds the item in `slot`, whose vector is this node's.
    pub(super) fn add(&mut self, node: u64, slot: u32) {
        self.changes += 1;
        self.slots.entry(node).and_modify(|slots| slots.insert(slot)).or_insert(SlotSet::One(slot));
        if self.graph.as_ref().is_some_and(|graph| self.missing.contains(&node) || !graph.contains(node)) {
            self.missing.insert(node);
            self.missing_items += 1;
        }
    }

    /// Removes the item in `slot`, whose vector was this node's.
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

    /// Number of nodes, which is the number of distinct vectors.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slots of a node's items.
    pub(super) fn slots(&self, node: u64) -> impl Iterator<Item = u32> + '_ {
        self.slots.get(&node).into_iter().flat_map(SlotSet::iter)
    }

    /// The nodes whose keys come after this one.
    pub(super) fn after(&self, node: Option<u64>) -> impl Iterator<Item = u64> + '_ {
        let start = node.map_or(Bound::Unbounded, Bound::Excluded);
        self.slots.range((start, Bound::Unbounded)).map(|(node, _)| *node)
    }

    pub(super) fn graph(&self) -> Option<&Arc<Graph>> {
        self.graph.as_ref()
    }

    /// The nodes that the graph lacks.
    pub(super) fn missing(&self) -> &BTreeSet<u64> {
        &self.missing
    }

    /// Number of items that the graph does not find.
    pub(super) fn missing_items(&self) -> usize {
        self.missing_items
    }

    /// Number of changes since the index was opened.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn set_graph(&mut self, graph: Option<Arc<Graph>>) {
        let is_missing = |node: &u64| graph.as_ref().is_some_and(|graph| !graph.contains(*node));
        self.missing = self.slots.keys().copied().filter(is_missing).collect();
        self.missing_items = self.missing.iter().filter_map(|node| self.slots.get(node)).map(SlotSet::len).sum();
        self.graph = graph;
    }

    /// Records that these nodes have been added to the graph.
    pub(super) fn mark_added(&mut self, nodes: &[u64]) {
        for node in nodes {
            if self.missing.remove(node) {
                self.missing_items -= self.slots.get(node).map_or(0, SlotSet::len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_differ_in_half_precision_have_different_nodes() {
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
    fn missing_nodes_are_tracked_through_every_change() {
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
        nodes.mark_added(&[2, 7]);
        nodes.remove(3, 14);
        assert_eq!((nodes.missing().len(), nodes.missing_items(), nodes.len()), (0, 0, 2));
        // The graph still has the node of an item that was deleted and added again.
        nodes.remove(2, 12);
        nodes.add(2, 16);
        assert_eq!(nodes.missing_items(), 0);
        assert_eq!(nodes.slots(1).collect::<Vec<_>>(), [10, 11, 15]);
    }
}
