//! An exact index in memory: every search compares with every item.  Nothing survives the process.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Hit, Index, IndexError, Item, Metadata, Page, Query};

/// Vectors in one block of memory, in which a search walks straight ahead.
#[derive(Default)]
struct Store {
    /// (slots, D), L2-normalised.
    vectors: Vec<f32>,
    /// What belongs to each slot; the vector is left empty.
    slots: Vec<Option<Item>>,
    /// Bytes of all items, about.
    bytes: usize,
    places: BTreeMap<String, usize>,
    free: Vec<usize>,
}

/// See the module's documentation.
pub struct MemoryIndex {
    dim: usize,
    limit: usize,
    store: RwLock<Store>,
}

impl MemoryIndex {
    /// An empty index of `dim`-dimensional vectors, whose items may take about `limit` bytes.
    pub fn new(dim: usize, limit: usize) -> Self {
        Self { dim, limit, store: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Store> {
        self.store.write().unwrap_or_else(|e| e.into_inner())
    }

    fn check(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() == self.dim {
            return Ok(());
        }
        Err(IndexError::Dimension { expected: self.dim, found: vector.len() })
    }
}

/// What an item takes in memory, about: its vector, texts, picture, and the maps around them.
fn cost(item: &Item, dim: usize) -> usize {
    let metadata: usize = item.metadata.iter().map(|(key, value)| key.len() + value.to_string().len() + 100).sum();
    4 * dim + 2 * item.id.len() + metadata + item.image.as_ref().map_or(0, |png| png.len()) + 300
}

impl Store {
    fn put(&mut self, mut item: Item, dim: usize) -> bool {
        let vector = std::mem::take(&mut item.vector);
        let known = self.places.get(&item.id).copied();
        let slot = known.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.slots.push(None);
            self.vectors.resize(self.slots.len() * dim, 0.0);
            self.slots.len() - 1
        });
        self.vectors[slot * dim..(slot + 1) * dim].copy_from_slice(&vector);
        self.places.insert(item.id.clone(), slot);
        self.bytes += cost(&item, dim);
        if let Some(old) = self.slots[slot].replace(item) {
            self.bytes -= cost(&old, dim);
        }
        known.is_none()
    }

    fn item(&self, slot: usize) -> Option<&Item> {
        self.slots.get(slot).and_then(Option::as_ref)
    }
}

impl Index for MemoryIndex {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn len(&self) -> usize {
        self.read().places.len()
    }

    fn put(&self, items: Vec<Item>) -> Result<Vec<bool>, IndexError> {
        items.iter().try_for_each(|item| self.check(&item.vector))?;
        let mut store = self.write();
        let more: usize = items.iter().map(|item| cost(item, self.dim)).sum();
        if store.bytes + more > self.limit {
            return Err(IndexError::Full { limit: self.limit });
        }
        Ok(items.into_iter().map(|item| store.put(item, self.dim)).collect())
    }

    fn get(&self, id: &str) -> Result<Option<Item>, IndexError> {
        let store = self.read();
        let Some(slot) = store.places.get(id).copied() else { return Ok(None) };
        let vector = store.vectors[slot * self.dim..(slot + 1) * self.dim].to_vec();
        Ok(store.item(slot).map(|item| Item { vector, ..item.clone() }))
    }

    fn delete(&self, id: &str) -> Result<bool, IndexError> {
        let mut store = self.write();
        let Some(slot) = store.places.remove(id) else { return Ok(false) };
        if let Some(old) = store.slots[slot].take() {
            store.bytes -= cost(&old, self.dim);
        }
        store.free.push(slot);
        Ok(true)
    }

    fn list(&self, cursor: Option<&str>, limit: usize) -> Result<Page, IndexError> {
        let store = self.read();
        let start = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = store.places.range::<str, _>((start, Bound::Unbounded));
        let items: Vec<Item> = rest.by_ref().take(limit).filter_map(|(_, slot)| store.item(*slot).cloned()).collect();
        let next = rest.next().and_then(|_| items.last().map(|item| item.id.clone()));
        Ok(Page { items, next })
    }

    fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        self.check(&query.vector)?;
        let store = self.read();
        // A heap of the k best so far, the worst of them on top.
        let mut best: BinaryHeap<Candidate> = BinaryHeap::new();
        for (item, vector) in store.slots.iter().zip(store.vectors.chunks_exact(self.dim.max(1))) {
            let Some(item) = item else { continue };
            if query.except.as_ref() == Some(&item.id) || !matches(&item.metadata, &query.filter) {
                continue;
            }
            let candidate = Candidate { score: dot(vector, &query.vector), item };
            if best.len() < query.k {
                best.push(candidate);
            } else if best.peek().is_some_and(|worst| candidate < *worst) {
                best.pop();
                best.push(candidate);
            }
        }
        Ok(best.into_sorted_vec().into_iter().map(Candidate::hit).collect())
    }
}

fn matches(metadata: &Metadata, filter: &Metadata) -> bool {
    filter.iter().all(|(field, value)| metadata.get(field) == Some(value))
}

/// Sum of products in eight lanes, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Ordered best first: higher score, then smaller id.
struct Candidate<'a> {
    score: f32,
    item: &'a Item,
}

impl Candidate<'_> {
    fn hit(self) -> Hit {
        let Item { id, metadata, image, .. } = self.item;
        Hit {
            id: id.clone(),
            // Rounding can carry the product of two unit vectors past 1.
            score: self.score.clamp(-1.0, 1.0),
            metadata: metadata.clone(),
            image: image.is_some(),
        }
    }
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then_with(|| self.item.id.cmp(&other.item.id))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, vector: [f32; 2], label: &str) -> Item {
        let metadata = Metadata::from_iter([("label".to_string(), label.into())]);
        Item { id: id.into(), vector: vector.to_vec(), metadata, image: None }
    }

    fn ids(index: &MemoryIndex, k: usize, filter: Metadata) -> Vec<String> {
        let query = Query { vector: vec![1.0, 0.0], k, filter, exact: true, except: None };
        index.search(&query).unwrap().into_iter().map(|h| h.id).collect()
    }

    #[test]
    fn the_best_come_first_and_ties_by_id() {
        let index = MemoryIndex::new(2, 10_000);
        let items = vec![item("c", [0.0, 1.0], "x"), item("b", [1.0, 0.0], "y"), item("a", [1.0, 0.0], "x")];
        assert_eq!(index.put(items).unwrap(), [true; 3]);
        assert_eq!(ids(&index, 2, Metadata::new()), ["a", "b"]);
        assert_eq!(ids(&index, 9, Metadata::from_iter([("label".to_string(), "x".into())])), ["a", "c"]);
    }

    #[test]
    fn items_are_replaced_deleted_and_their_places_reused() {
        let index = MemoryIndex::new(2, 10_000);
        index.put(vec![item("a", [1.0, 0.0], "x"), item("b", [0.0, 1.0], "x")]).unwrap();
        assert_eq!(index.put(vec![item("a", [-1.0, 0.0], "y")]).unwrap(), [false]);
        assert_eq!(ids(&index, 9, Metadata::new()), ["b", "a"]);
        assert!(index.delete("b").unwrap() && !index.delete("b").unwrap());
        index.put(vec![item("c", [1.0, 0.0], "z")]).unwrap();
        assert_eq!(ids(&index, 9, Metadata::new()), ["c", "a"]);
        assert_eq!((index.len(), index.read().slots.len()), (2, 2));
        assert_eq!(index.get("c").unwrap().unwrap(), item("c", [1.0, 0.0], "z"));
    }

    #[test]
    fn a_full_index_says_so_and_room_comes_back() {
        let one = item("a", [1.0, 0.0], "x");
        let index = MemoryIndex::new(2, 2 * cost(&one, 2));
        index.put(vec![one, item("b", [1.0, 0.0], "x")]).unwrap();
        let third = || vec![item("c", [1.0, 0.0], "x")];
        assert!(matches!(index.put(third()), Err(IndexError::Full { .. })));
        assert_eq!(index.len(), 2);
        index.delete("a").unwrap();
        assert_eq!(index.put(third()).unwrap(), [true]);
    }

    #[test]
    fn pages_follow_each_other_without_gaps() {
        let index = MemoryIndex::new(2, 10_000);
        index.put(["a", "b", "c"].map(|id| item(id, [1.0, 0.0], "x")).to_vec()).unwrap();
        let first = index.list(None, 2).unwrap();
        assert_eq!(first.next.as_deref(), Some("b"));
        let last = index.list(first.next.as_deref(), 2).unwrap();
        assert_eq!((last.items[0].id.as_str(), last.next), ("c", None));
        assert!(index.put(vec![Item { vector: vec![1.0], ..item("d", [0.0; 2], "x") }]).is_err());
    }
}
