//! The item table: all items in memory.  Vectors are in one block, which searches read; the rest of each item is beside it.
//!
//! An item has a slot, the number of its row.  The slot of a deleted item is used again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::super::filter::Filter;
use super::super::item::{ContentHash, Hit, Item, JsonMap, Metadata};
use super::super::query::{ListQuery, Page};
use super::graph::Graph;
use super::nodes::{Nodes, key};
use super::postings::{PlannedValues, Postings};

/// What a slot holds beside its vector.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Arc<str>,
    /// Sequence number of the write; the thumbnail is stored under it.
    pub(super) seq: u64,
    /// Key of its node in the graph; see [`key`].
    node: u64,
    metadata: Metadata,
    hash: Option<Box<ContentHash>>,
    has_image: bool,
    /// The thumbnail, if there is no store that keeps it.
    image: Option<Arc<[u8]>>,
}

/// An item as it goes into a slot.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: Arc<str>,
    pub(super) vector: Vec<f32>,
    pub(super) metadata: Metadata,
    pub(super) hash: Option<ContentHash>,
    pub(super) has_image: bool,
    pub(super) image: Option<Arc<[u8]>>,
}

/// All items, by slot and by id.
#[derive(Default)]
pub(super) struct ItemTable {
    /// Length of a vector, D.
    dim: usize,
    /// (slots, D), L2-normalised; a free slot is zero.
    vectors: Vec<f32>,
    entries: Vec<Option<Entry>>,
    slots_by_id: BTreeMap<Arc<str>, u32>,
    free: Vec<u32>,
    postings: Postings,
    nodes: Nodes,
    bytes: usize,
}

impl Record {
    /// The memory that it will take, about, without its part of the postings.
    pub(super) fn bytes(&self) -> usize {
        let image = self.image.as_ref().map_or(0, |png| png.len());
        4 * self.vector.len() + self.id.len() + self.metadata.as_str().len() + image + 300
    }
}

impl ItemTable {
    /// An empty table for vectors of `dim` numbers, with capacity for `items`.
    pub(super) fn new(dim: usize, items: usize) -> Self {
        let vectors = Vec::with_capacity(items.saturating_mul(dim));
        Self { dim, vectors, entries: Vec::with_capacity(items), ..Self::default() }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn len(&self) -> usize {
        self.slots_by_id.len()
    }

    /// Bytes that all items take, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.postings.bytes()
    }

    /// The memory that a record with this metadata will take and that the item which it replaces gives back, about.
    pub(super) fn change_in_bytes(&self, record: &Record, new: &JsonMap, planned: &PlannedValues) -> (usize, usize) {
        let old = self.slot(&record.id).and_then(|slot| self.entry(slot));
        let released =
            |entry: &Entry| self.entry_bytes(entry) + self.postings.released_bytes(&entry.metadata.to_map(), new);
        (record.bytes() + self.postings.added_bytes(new, planned), old.map_or(0, released))
    }

    /// The vectors of all slots, (slots, D).
    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Number of slots, used and free.
    pub(super) fn slots(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn vector(&self, slot: u32) -> &[f32] {
        let start = slot as usize * self.dim;
        &self.vectors[start..start + self.dim]
    }

    /// `None` if the slot is free.
    pub(super) fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub(super) fn slot(&self, id: &str) -> Option<u32> {
        self.slots_by_id.get(id).copied()
    }

    /// What the item with this id gives back if it is deleted, at least; 0 if there is none.
    pub(super) fn item_bytes(&self, id: &str) -> usize {
        let entry = self.slot(id).and_then(|slot| self.entry(slot));
        entry.map_or(0, |e| self.entry_bytes(e))
    }

    fn entry_bytes(&self, entry: &Entry) -> usize {
        let image = entry.image.as_ref().map_or(0, |png| png.len());
        4 * self.dim + entry.id.len() + entry.metadata.as_str().len() + image + 300
    }

    /// Adds an item or reslots_by_id the one with its id; returns whether it is new.
    pub(super) fn put(&mut self, seq: u64, record: Record) -> bool {
        let created = !self.delete(&record.id);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.grow();
            (self.entries.len() - 1) as u32
        });
        let start = slot as usize * self.dim;
        self.vectors[start..start + self.dim].copy_from_slice(&record.vector);
        self.postings.add(slot, &record.metadata.to_map());
        self.slots_by_id.insert(record.id.clone(), slot);
        let node = key(&record.vector);
        self.nodes.add(node, slot);
        let Record { id, metadata, hash, has_image, image, .. } = record;
        let entry = Entry { id, seq, node, metadata, hash: hash.map(Box::new), has_image, image };
        self.bytes += self.entry_bytes(&entry);
        self.entries[slot as usize] = Some(entry);
        created
    }

    /// Makes the block longer by one vector.  Its capacity grows by a quarter: memory for twice its size may not be free.
    fn grow(&mut self) {
        if self.vectors.capacity() - self.vectors.len() < self.dim {
            self.vectors.reserve_exact((self.vectors.len() / 4).max(1024 * self.dim));
        }
        self.vectors.resize(self.vectors.len() + self.dim, 0.0);
    }

    /// Removes an item; returns whether there was one.
    pub(super) fn delete(&mut self, id: &str) -> bool {
        let Some(slot) = self.slots_by_id.remove(id) else { return false };
        if let Some(old) = self.entries[slot as usize].take() {
            self.bytes -= self.entry_bytes(&old);
            self.nodes.remove(old.node, slot);
            self.postings.remove(slot, &old.metadata.to_map());
        }
        let start = slot as usize * self.dim;
        self.vectors[start..start + self.dim].fill(0.0);
        self.free.push(slot);
        true
    }

    /// How the items relate to the nodes of the graph.
    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Sets the graph for approximate searches, unless it is for vectors of another length.
    pub(super) fn set_graph(&mut self, graph: Option<Arc<Graph>>) {
        self.nodes.set_graph(graph.filter(|graph| graph.dim() == self.dim));
    }

    /// Records that these nodes have been added to the graph.
    pub(super) fn mark_added(&mut self, nodes: &[u64]) {
        self.nodes.mark_added(nodes);
    }

    /// The slots of the items that pass a filter; `None` if it has no condition.
    pub(super) fn select(&self, filter: &Filter) -> Option<RoaringBitmap> {
        self.postings.select(filter)
    }

    pub(super) fn hit(&self, slot: u32, score: f32) -> Option<Hit> {
        let entry = self.entry(slot)?;
        let (id, metadata) = (entry.id.to_string(), entry.metadata.clone());
        // Rounding can carry the product of two unit vectors past 1.
        Some(Hit { id, score: score.clamp(-1.0, 1.0), metadata, has_image: entry.has_image })
    }

    pub(super) fn hash(&self, id: &str) -> Option<ContentHash> {
        self.entry(self.slot(id)?)?.hash.as_deref().copied()
    }

    /// The item and the sequence number of its write.
    pub(super) fn item(&self, id: &str) -> Option<(Item, u64)> {
        let slot = self.slot(id)?;
        let entry = self.entry(slot)?;
        let item = Item { image: entry.image.clone(), ..self.item_at(slot, true)? };
        Some((item, entry.seq))
    }

    /// The item in a slot, without its thumbnail.
    fn item_at(&self, slot: u32, vector: bool) -> Option<Item> {
        let entry = self.entry(slot)?;
        Some(Item {
            id: entry.id.to_string(),
            vector: if vector { self.vector(slot).to_vec() } else { Vec::new() },
            metadata: entry.metadata.clone(),
            image: None,
            has_image: entry.has_image,
            hash: entry.hash.as_deref().copied(),
        })
    }

    pub(super) fn list(&self, query: &ListQuery) -> Page {
        let selected = self.postings.select(&query.filter);
        let start = query.cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let passes = |slot: &u32| selected.as_ref().is_none_or(|s| s.contains(*slot));
        let mut rest =
            self.slots_by_id.range::<str, _>((start, Bound::Unbounded)).map(|(_, slot)| *slot).filter(passes);
        let slots = rest.by_ref().take(query.limit);
        let items: Vec<Item> = slots.filter_map(|slot| self.item_at(slot, query.vectors)).collect();
        let next = rest.next().and_then(|_| items.last().map(|item| item.id.clone()));
        Page { items, next, total: selected.map_or(self.len(), |s| s.len() as usize) }
    }

    /// About `count` items, evenly spaced.
    pub(super) fn sample(&self, count: usize) -> Vec<Item> {
        let used = (0..self.slots() as u32).filter(|slot| self.entry(*slot).is_some());
        let step = self.len().div_ceil(count.max(1)).max(1);
        used.step_by(step).filter_map(|slot| self.item_at(slot, true)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, vector: [f32; 2]) -> Record {
        let metadata = Metadata::from_stored(r#"{"label":"x"}"#);
        Record { id: id.into(), vector: vector.to_vec(), metadata, hash: None, has_image: false, image: None }
    }

    #[test]
    fn slots_are_reused_and_memory_is_accounted_for() {
        let mut table = ItemTable::new(2, 0);
        assert!(table.put(1, record("a", [1.0, 0.0])) && table.put(2, record("b", [0.0, 1.0])));
        let bytes = table.bytes();
        let again = record("a", [1.0, 0.0]);
        let (added, released) = table.change_in_bytes(&again, &again.metadata.to_map(), &PlannedValues::default());
        assert_eq!((added, released), (again.bytes() + 8, added));
        assert_eq!(bytes, table.item_bytes("a") + table.item_bytes("b") + table.postings.bytes());
        assert!(!table.put(3, record("a", [-1.0, 0.0])));
        assert!(table.delete("b") && !table.delete("b"));
        assert!(table.put(4, record("c", [0.6, 0.8])));
        assert_eq!((table.len(), table.slots(), table.bytes()), (2, 2, bytes));
        assert_eq!(table.vector(table.slot("c").unwrap()), [0.6, 0.8]);
        let at = |vector: [f32; 2]| table.nodes().slots(key(&vector)).collect::<Vec<_>>();
        assert_eq!(at([-1.0, 0.0]), [table.slot("a").unwrap()]);
        assert!(at([1.0, 0.0]).is_empty() && table.nodes().len() == 2);
    }
}
