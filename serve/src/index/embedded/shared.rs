//! The state that searches, the writer and graph maintenance share.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::super::item::EncoderIdentity;
use super::graph::Graph;
use super::item_table::ItemTable;

/// The item table, the encoder of its vectors, and when a search may be approximate.
pub(super) struct Shared {
    table: RwLock<ItemTable>,
    encoder: RwLock<EncoderIdentity>,
    /// With more items than this, searches are approximate unless they ask to be exact.
    pub(super) exact_up_to: usize,
}

impl Shared {
    pub(super) fn new(table: ItemTable, encoder: EncoderIdentity, exact_up_to: usize) -> Arc<Self> {
        Arc::new(Self { table: RwLock::new(table), encoder: RwLock::new(encoder), exact_up_to })
    }

    /// The item table, for reading.
    pub(super) fn table(&self) -> RwLockReadGuard<'_, ItemTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The item table, for writing.
    pub(super) fn table_mut(&self) -> RwLockWriteGuard<'_, ItemTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn encoder(&self) -> EncoderIdentity {
        self.encoder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn graph(&self) -> Option<Arc<Graph>> {
        self.table().nodes().graph().cloned()
    }

    pub(super) fn set_graph(&self, graph: Option<Arc<Graph>>) {
        self.table_mut().set_graph(graph);
    }

    /// Records that these nodes have been added to the graph.
    pub(super) fn mark_added(&self, nodes: &[u64]) {
        self.table_mut().mark_added(nodes);
    }

    /// Replaces the encoder of an index without items.
    pub(super) fn adopt(&self, encoder: EncoderIdentity) {
        *self.table_mut() = ItemTable::new(encoder.dim, 0);
        *self.encoder.write().unwrap_or_else(PoisonError::into_inner) = encoder;
    }
}
