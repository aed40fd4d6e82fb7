//! How a search is answered: exactly over all items, exactly over those that a filter selects, or through the graph.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use roaring::RoaringBitmap;

use super::super::error::IndexError;
use super::super::item::{Hit, ScoredId};
use super::super::query::Query;
use super::item_table::ItemTable;
use super::scan;
use super::shared::Shared;

/// Queries that are compared with all vectors in one pass.
const QUERIES_PER_SCAN: usize = 64;

/// A query that waits for a pass over all vectors.
struct PendingQuery {
    query: Query,
    hits: OnceLock<Vec<Hit>>,
}

/// Answers searches, exactly or by the graph.
pub(super) struct Searcher {
    pub(super) shared: Arc<Shared>,
    pending: Mutex<Vec<Arc<PendingQuery>>>,
    /// Held by the thread that makes a pass over all vectors.
    scanning: Mutex<()>,
}

impl Searcher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, pending: Mutex::default(), scanning: Mutex::default() }
    }

    /// The hits of each query.
    pub(super) fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let dim = self.shared.table().dim();
        if let Some(wrong) = queries.iter().find(|q| q.vector.len() != dim) {
            return Err(IndexError::Dimension { expected: dim, found: wrong.vector.len() });
        }
        let mut hits: Vec<Option<Vec<Hit>>> = queries.iter().map(|q| self.search_part(q)).collect();
        let rest = queries.into_iter().zip(&hits).filter(|(_, hits)| hits.is_none()).map(|(query, _)| query);
        let mut scanned = self.scan_all(rest.collect())?.into_iter();
        hits.iter_mut().filter(|hits| hits.is_none()).for_each(|hits| *hits = scanned.next());
        Ok(hits.into_iter().flatten().collect())
    }

    /// All items that pass the query's filter and score at least `threshold`.
    pub(super) fn within(&self, query: &Query, threshold: f32) -> Result<Vec<ScoredId>, IndexError> {
        let table = self.shared.table();
        if query.vector.len() != table.dim() {
            return Err(IndexError::Dimension { expected: table.dim(), found: query.vector.len() });
        }
        let slots: Vec<u32> = match table.select(&query.filter) {
            Some(selected) => selected.iter().collect(),
            None => (0..table.slots() as u32).collect(),
        };
        Ok(scan::within(&table, &slots, query, threshold))
    }

    /// The answer from the graph or from the items that a filter selects; `None` if all vectors must be compared.
    fn search_part(&self, query: &Query) -> Option<Vec<Hit>> {
        let table = self.shared.table();
        let selected = table.select(&query.filter);
        // While the graph lacks many items, a pass over all vectors is faster than comparing the missing ones singly.
        let incomplete = table.nodes().missing_items() > self.shared.exact_up_to / 4;
        let many = selected.as_ref().is_none_or(|s| s.len() > self.shared.exact_up_to as u64);
        if !query.exact
            && many
            && !incomplete
            && let Some(hits) = approximate(&table, query, selected.as_ref())
        {
            return Some(hits);
        }
        selected.map(|slots| scan::subset(&table, &slots.iter().collect::<Vec<_>>(), query))
    }

    /// Compares queries with all vectors.  The thread that holds `scanning` does so for every pending query: one pass over
    /// memory serves all of them.
    fn scan_all(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError> {
        let pending = |query| Arc::new(PendingQuery { query, hits: OnceLock::new() });
        let own: Vec<Arc<PendingQuery>> = queries.into_iter().map(pending).collect();
        lock(&self.pending).extend(own.iter().cloned());
        while own.iter().any(|pending| pending.hits.get().is_none()) {
            let _scanning = lock(&self.scanning);
            if own.iter().all(|pending| pending.hits.get().is_some()) {
                break;
            }
            let batch: Vec<Arc<PendingQuery>> = {
                let mut pending = lock(&self.pending);
                let count = pending.len().min(QUERIES_PER_SCAN);
                pending.drain(..count).collect()
            };
            if batch.is_empty() {
                // The thread that took our queries has panicked.
                return Err(IndexError::Storage("a search of several failed".into()));
            }
            let queries: Vec<&Query> = batch.iter().map(|pending| &pending.query).collect();
            let found = scan::all(&self.shared.table(), &queries);
            batch.iter().zip(found).for_each(|(pending, hits)| drop(pending.hits.set(hits)));
        }
        Ok(own.iter().filter_map(|pending| pending.hits.get().cloned()).collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Exact scores of the items that the graph finds and of those that it lacks; `None` if there is no graph or it finds too
/// few.
fn approximate(table: &ItemTable, query: &Query, selected: Option<&RoaringBitmap>) -> Option<Vec<Hit>> {
    let nodes = table.nodes();
    let graph = nodes.graph()?;
    let passing = |node: u64| nodes.slots(node).filter(|slot| selected.is_none_or(|s| s.contains(*slot)));
    let mut slots: Vec<u32> = nodes.missing().iter().flat_map(|node| passing(*node)).collect();
    // More than asked for: half precision may have changed the order, and the excepted item may be among them.
    let count = query.k + query.k / 2 + 8;
    let stale = graph.len() + nodes.missing().len() > nodes.len();
    let passes = (selected.is_some() || stale).then_some(|node| passing(node).next().is_some());
    let found = graph.search(&query.vector, count, passes).ok()?;
    let candidates: Vec<u32> = found.into_iter().flat_map(passing).collect();
    let reachable = selected.map_or(table.len(), |s| s.len() as usize).saturating_sub(slots.len());
    if candidates.len() < query.k.min(reachable) {
        return None;
    }
    slots.extend(candidates);
    slots.sort_unstable();
    slots.dedup();
    Some(scan::subset(table, &slots, query))
}
