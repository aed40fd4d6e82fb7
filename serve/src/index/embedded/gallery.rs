//! All items in memory, as a search reads them: vectors in one block, and what belongs to each beside it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::super::{ContentHash, Filter, Hit, Item, Listing, Metadata, Page};
use super::graph::Graph;
use super::nodes::{Nodes, key};
use super::postings::Postings;

/// What belongs to a slot beside its vector.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: Arc<str>,
    /// Number of the write that made it: its picture is stored under it.
    pub(super) seq: u64,
    /// Its node of the graph; see [`key`].
    node: u64,
    /// JSON: a parsed object takes several times its place.
    metadata: Box<str>,
    hash: Option<Box<ContentHash>>,
    pictured: bool,
    /// Where nothing else keeps it.
    image: Option<Arc<[u8]>>,
}

/// An item as it goes into a slot.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: Arc<str>,
    pub(super) vector: Vec<f32>,
    pub(super) metadata: Box<str>,
    pub(super) hash: Option<ContentHash>,
    pub(super) pictured: bool,
    pub(super) image: Option<Arc<[u8]>>,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Gallery {
    /// D.
    dim: usize,
    /// (slots, D), L2-normalised; zero where a slot is free.
    vectors: Vec<f32>,
    entries: Vec<Option<Entry>>,
    places: BTreeMap<Arc<str>, u32>,
    free: Vec<u32>,
    postings: Postings,
    nodes: Nodes,
    bytes: usize,
}

fn parse(metadata: &str) -> Metadata {
    // It was written by this program from such an object.
    serde_json::from_str(metadata).unwrap_or_default()
}

impl Record {
    /// What it takes in memory, about: vector, texts, and the maps around them.
    pub(super) fn cost(&self) -> usize {
        let image = self.image.as_ref().map_or(0, |png| png.len());
        // A value stands in the metadata and in the postings.
        4 * self.vector.len() + self.id.len() + 2 * self.metadata.len() + image + 300
    }
}

impl Gallery {
    /// None yet, of `dim` numbers each, with room for `items`.
    pub(super) fn new(dim: usize, items: usize) -> Self {
        let vectors = Vec::with_capacity(items.saturating_mul(dim));
        Self { dim, vectors, entries: Vec::with_capacity(items), ..Self::default() }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of all items, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// (slots, D).
    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Used and free.
    pub(super) fn slots(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn vector(&self, slot: u32) -> &[f32] {
        let start = slot as usize * self.dim;
        &self.vectors[start..start + self.dim]
    }

    /// `None` where the slot is free.
    pub(super) fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub(super) fn slot(&self, id: &str) -> Option<u32> {
        self.places.get(id).copied()
    }

    /// What [`Record::cost`] was for the item of this id; 0 where there is none.
    pub(super) fn cost(&self, id: &str) -> usize {
        let entry = self.slot(id).and_then(|slot| self.entry(slot));
        entry.map_or(0, |e| self.entry_cost(e))
    }

    fn entry_cost(&self, entry: &Entry) -> usize {
        let image = entry.image.as_ref().map_or(0, |png| png.len());
        4 * self.dim + entry.id.len() + 2 * entry.metadata.len() + image + 300
    }

    /// Adds or replaces; whether it is new.
    pub(super) fn put(&mut self, seq: u64, record: Record) -> bool {
        let created = !self.delete(&record.id);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.grow();
            (self.entries.len() - 1) as u32
        });
        let start = slot as usize * self.dim;
        self.vectors[start..start + self.dim].copy_from_slice(&record.vector);
        self.postings.add(slot, &parse(&record.metadata));
        self.places.insert(record.id.clone(), slot);
        let node = key(&record.vector);
        self.nodes.add(node, slot);
        let Record { id, metadata, hash, pictured, image, .. } = record;
        let entry = Entry { id, seq, node, metadata, hash: hash.map(Box::new), pictured, image };
        self.bytes += self.entry_cost(&entry);
        self.entries[slot as usize] = Some(entry);
        created
    }

    /// Room for one more vector; the block grows by a quarter, since twice its size might not be there.
    fn grow(&mut self) {
        if self.vectors.capacity() - self.vectors.len() < self.dim {
            self.vectors.reserve_exact((self.vectors.len() / 4).max(1024 * self.dim));
        }
        self.vectors.resize(self.vectors.len() + self.dim, 0.0);
    }

    /// Removes; whether there was one.
    pub(super) fn delete(&mut self, id: &str) -> bool {
        let Some(slot) = self.places.remove(id) else { return false };
        if let Some(old) = self.entries[slot as usize].take() {
            self.bytes -= self.entry_cost(&old);
            self.nodes.remove(old.node, slot);
            self.postings.remove(slot, &parse(&old.metadata));
        }
        let start = slot as usize * self.dim;
        self.vectors[start..start + self.dim].fill(0.0);
        self.free.push(slot);
        true
    }

    /// Which items share a node of the graph, and which nodes it lacks.
    pub(super) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Searches use this graph from now on, unless it is for vectors of another length.
    pub(super) fn set_graph(&mut self, graph: Option<Arc<Graph>>) {
        self.nodes.set_graph(graph.filter(|graph| graph.dim() == self.dim));
    }

    /// The graph has these nodes now.
    pub(super) fn cover(&mut self, nodes: &[u64]) {
        self.nodes.cover(nodes);
    }

    /// Slots that meet a filter; `None` where there is nothing to meet.
    pub(super) fn select(&self, filter: &Filter) -> Option<RoaringBitmap> {
        self.postings.select(filter)
    }

    pub(super) fn hit(&self, slot: u32, score: f32) -> Option<Hit> {
        let entry = self.entry(slot)?;
        let (id, metadata) = (entry.id.to_string(), parse(&entry.metadata));
        // Rounding can carry the product of two unit vectors past 1.
        Some(Hit { id, score: score.clamp(-1.0, 1.0), metadata, image: entry.pictured })
    }

    pub(super) fn hash(&self, id: &str) -> Option<ContentHash> {
        self.entry(self.slot(id)?)?.hash.as_deref().copied()
    }

    /// The item and the number it was written under.
    pub(super) fn item(&self, id: &str) -> Option<(Item, u64)> {
        let slot = self.slot(id)?;
        let entry = self.entry(slot)?;
        let item = Item { image: entry.image.clone(), ..self.describe(slot, true)? };
        Some((item, entry.seq))
    }

    fn describe(&self, slot: u32, vector: bool) -> Option<Item> {
        let entry = self.entry(slot)?;
        Some(Item {
            id: entry.id.to_string(),
            vector: if vector { self.vector(slot).to_vec() } else { Vec::new() },
            metadata: parse(&entry.metadata),
            image: None,
            pictured: entry.pictured,
            hash: entry.hash.as_deref().copied(),
        })
    }

    pub(super) fn list(&self, listing: &Listing) -> Page {
        let selected = self.postings.select(&listing.filter);
        let start = listing.cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let passes = |slot: &u32| selected.as_ref().is_none_or(|s| s.contains(*slot));
        let mut rest = self.places.range::<str, _>((start, Bound::Unbounded)).map(|(_, slot)| *slot).filter(passes);
        let slots = rest.by_ref().take(listing.limit);
        let items: Vec<Item> = slots.filter_map(|slot| self.describe(slot, listing.vectors)).collect();
        let next = rest.next().and_then(|_| items.last().map(|item| item.id.clone()));
        Page { items, next, total: selected.map_or(self.len(), |s| s.len() as usize) }
    }

    /// About `count` items at even distances.
    pub(super) fn sample(&self, count: usize) -> Vec<Item> {
        let used = (0..self.slots() as u32).filter(|slot| self.entry(*slot).is_some());
        let step = self.len().div_ceil(count.max(1)).max(1);
        used.step_by(step).filter_map(|slot| self.describe(slot, true)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, vector: [f32; 2]) -> Record {
        let metadata = r#"{"label":"x"}"#.into();
        Record { id: id.into(), vector: vector.to_vec(), metadata, hash: None, pictured: false, image: None }
    }

    #[test]
    fn slots_are_used_again_and_bytes_are_given_back() {
        let mut gallery = Gallery::new(2, 0);
        assert!(gallery.put(1, record("a", [1.0, 0.0])) && gallery.put(2, record("b", [0.0, 1.0])));
        let bytes = gallery.bytes();
        assert_eq!(bytes, record("a", [1.0, 0.0]).cost() + gallery.cost("b"));
        assert!(!gallery.put(3, record("a", [-1.0, 0.0])));
        assert!(gallery.delete("b") && !gallery.delete("b"));
        assert!(gallery.put(4, record("c", [0.6, 0.8])));
        assert_eq!((gallery.len(), gallery.slots(), gallery.bytes()), (2, 2, bytes));
        assert_eq!(gallery.vector(gallery.slot("c").unwrap()), [0.6, 0.8]);
        let at = |vector: [f32; 2]| gallery.nodes().slots(key(&vector)).collect::<Vec<_>>();
        assert_eq!(at([-1.0, 0.0]), [gallery.slot("a").unwrap()]);
        assert!(at([1.0, 0.0]).is_empty() && gallery.nodes().len() == 2);
    }
}
