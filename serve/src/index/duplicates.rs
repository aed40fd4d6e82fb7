//! Finds groups of near-duplicate items.
//!
//! A group is an item and all items with greater ids whose score with it reaches the threshold.  An item whose pairs are all in
//! the group of an earlier item has no group of its own: four hundred copies are one group.  So any two items whose score
//! reaches the threshold are together in some group.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::IndexError;
use super::filter::Filter;
use super::interface::Index;
use super::item::{Hit, Item, ScoredId};
use super::query::{ListQuery, Query};

/// Items whose neighbours are searched together.
const BLOCK: usize = 128;
/// Neighbours of an item that a first search returns.  If all of them reach the threshold, the item is compared with all
/// others.
const FIRST_NEIGHBOURS: usize = 100;
/// Most duplicates of a page; a larger group continues on the next one.
pub const MAX_PER_PAGE: usize = 2000;
/// A page ends after this time: a large index is compared over many pages.
const PAGE_TIME: Duration = Duration::from_secs(2);
/// Rounding may make the product of two equal unit vectors smaller than 1 by this.
const ROUNDING: f32 = 1e-6;
/// Items whose neighbours are cached, and ids of all their neighbours.
const CACHED: usize = 16;
const CACHED_IDS: usize = 1 << 18;

/// An item and its near-duplicates.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Id of the item whose near-duplicates are listed.
    pub id: String,
    /// The items with greater ids that are on this page, best first.
    pub duplicates: Vec<Hit>,
    /// Number of duplicates on all pages.
    pub count: usize,
}

/// A request for one page of groups.
#[derive(Debug, Clone, PartialEq)]
pub struct DuplicateQuery {
    /// Smallest cosine of a pair.
    pub threshold: f32,
    /// The previous page's cursor; `None` for the first page.
    pub cursor: Option<String>,
    /// Largest number of groups of the page.
    pub limit: usize,
    /// Conditions on the metadata of the items that are compared.
    pub filter: Filter,
    /// Whether the answer must be exact; otherwise an approximate one may be given.
    pub exact: bool,
}

/// Where a page begins.
///
/// Its text is an item's id.  For a group that continues, a tab and a number follow; no id contains a tab.
enum Cursor {
    /// After this item; `None`: at the first one.
    After(Option<String>),
    /// In this item's group, after so many of its duplicates.
    Within(String, usize),
}

impl Cursor {
    fn parse(text: Option<String>) -> Self {
        let within = |text: &String| {
            let (id, skip) = text.split_once('\t')?;
            Some(Self::Within(id.into(), skip.parse().ok()?))
        };
        text.as_ref().and_then(within).unwrap_or(Self::After(text))
    }

    fn text(self) -> Option<String> {
        match self {
            Self::After(id) => id,
            Self::Within(id, skip) => Some(format!("{id}\t{skip}")),
        }
    }
}

/// All items whose score with one item reaches the threshold.
struct Neighbours {
    id: String,
    vector: Vec<f32>,
    /// Similar items, the most similar first.
    scored: Vec<ScoredId>,
    ids: HashSet<String>,
}

/// Collects the groups of one page.
struct PageBuilder<'a> {
    index: &'a dyn Index,
    query: &'a DuplicateQuery,
    /// The most recently used last.
    cache: Vec<Arc<Neighbours>>,
    groups: Vec<Group>,
    /// Number of duplicates that may still be added.
    left: usize,
}

/// The groups of one page and the cursor of the next; `None` after the last page.
///
/// # Errors
/// Those of the index.
pub async fn duplicates(index: &dyn Index, query: &DuplicateQuery) -> Result<(Vec<Group>, Option<String>), IndexError> {
    let since = Instant::now();
    let mut page = PageBuilder { index, query, cache: Vec::new(), groups: Vec::new(), left: MAX_PER_PAGE };
    let mut after = match Cursor::parse(query.cursor.clone()) {
        Cursor::After(id) => id,
        Cursor::Within(id, skip) => {
            if let Some(next) = page.resume(&id, skip).await? {
                return Ok((page.groups, next.text()));
            }
            Some(id)
        }
    };
    loop {
        let filter = query.filter.clone();
        let block = ListQuery { cursor: after.clone(), limit: BLOCK, filter, vectors: true, skip_total: true };
        let block = index.list(block).await?;
        let copies: Vec<bool> = block.items.iter().map(|item| page.is_copy(item)).collect();
        let others = block.items.iter().zip(&copies).filter(|(_, copy)| !**copy);
        let searches = others.map(|(item, _)| page.search_for(item, FIRST_NEIGHBOURS)).collect();
        let mut found = index.search(searches).await?.into_iter();
        let searched = Instant::now();
        for (item, copy) in block.items.into_iter().zip(copies) {
            // Measured from here, so that every page gets at least one item further.
            if page.is_full() || searched.elapsed() > PAGE_TIME {
                return Ok((page.groups, after));
            }
            let id = item.id.clone();
            if !copy && let Some(next) = page.compare(item, &found.next().unwrap_or_default()).await? {
                return Ok((page.groups, next.text()));
            }
            after = Some(id);
        }
        if block.next.is_none() {
            return Ok((page.groups, None));
        }
        if page.is_full() || since.elapsed() > PAGE_TIME {
            return Ok((page.groups, after));
        }
    }
}

impl PageBuilder<'_> {
    /// The search for an item's neighbours.
    fn search_for(&self, item: &Item, k: usize) -> Query {
        let DuplicateQuery { filter, exact, .. } = self.query;
        Query { vector: item.vector.clone(), k, filter: filter.clone(), exact: *exact, except: Some(item.id.clone()) }
    }

    fn is_full(&self) -> bool {
        self.groups.len() == self.query.limit || self.left == 0
    }

    /// Whether the item is a copy of an earlier one in the cache: all its pairs are in the earlier item's group then.
    fn is_copy(&self, item: &Item) -> bool {
        let is_earlier_copy = |known: &Arc<Neighbours>| known.vector == item.vector && known.id < item.id;
        self.cache.iter().any(|known| is_earlier_copy(known) && known.ids.contains(&item.id))
    }

    /// Adds the rest of a group; returns where the next page begins, if this one ends here.
    async fn resume(&mut self, id: &str, skip: usize) -> Result<Option<Cursor>, IndexError> {
        let Some(item) = self.index.get(id).await? else { return Ok(None) };
        let neighbours = self.neighbours(item, None).await?;
        self.push(&neighbours, skip).await
    }

    /// Adds the item's group, if it has one of its own; returns where the next page begins, if this one ends here.
    async fn compare(&mut self, item: Item, hits: &[Hit]) -> Result<Option<Cursor>, IndexError> {
        let threshold = self.query.threshold - ROUNDING;
        let near = hits.iter().filter(|hit| hit.score >= threshold);
        if near.clone().count() < FIRST_NEIGHBOURS && near.clone().all(|hit| hit.id < item.id) {
            return Ok(None);
        }
        let neighbours = self.neighbours(item, Some(hits)).await?;
        let mut greater = neighbours.greater().peekable();
        if greater.peek().is_none() {
            return Ok(None);
        }
        if let Some(first) = neighbours.scored.iter().map(|scored| &scored.id).min().filter(|id| **id < neighbours.id)
            && let Some(earlier) = self.neighbours_of(first).await?
            && greater.all(|scored| earlier.ids.contains(&scored.id))
        {
            return Ok(None);
        }
        self.push(&neighbours, 0).await
    }

    /// All neighbours of the item with this id, from the cache if possible.
    async fn neighbours_of(&mut self, id: &str) -> Result<Option<Arc<Neighbours>>, IndexError> {
        if let Some(position) = self.cache.iter().position(|known| known.id == id) {
            let known = self.cache.remove(position);
            self.cache.push(known.clone());
            return Ok(Some(known));
        }
        let Some(item) = self.index.get(id).await? else { return Ok(None) };
        Ok(Some(self.neighbours(item, None).await?))
    }

    /// Finds and caches all neighbours of an item.  `hits` are the first of them, if they were searched already.
    async fn neighbours(&mut self, item: Item, hits: Option<&[Hit]>) -> Result<Arc<Neighbours>, IndexError> {
        let threshold = self.query.threshold - ROUNDING;
        let searched = match hits {
            Some(_) => Vec::new(),
            None => self.index.search(vec![self.search_for(&item, FIRST_NEIGHBOURS)]).await?.concat(),
        };
        let hits = hits.unwrap_or(&searched);
        let mut scored: Vec<ScoredId> = hits
            .iter()
            .filter(|hit| hit.score >= threshold)
            .map(|hit| ScoredId { id: hit.id.clone(), score: hit.score })
            .collect();
        if scored.len() == FIRST_NEIGHBOURS {
            scored = self.compare_with_all(&item, threshold).await?;
        }
        let ids = scored.iter().map(|scored| scored.id.clone()).collect();
        let neighbours = Arc::new(Neighbours { id: item.id, vector: item.vector, scored, ids });
        let full = |cache: &[Arc<Neighbours>]| {
            cache.len() >= CACHED || cache.iter().map(|known| known.ids.len()).sum::<usize>() > CACHED_IDS
        };
        while !self.cache.is_empty() && full(&self.cache) {
            self.cache.remove(0);
        }
        self.cache.push(neighbours.clone());
        Ok(neighbours)
    }

    /// All items whose score with this one reaches the threshold, exactly.
    async fn compare_with_all(&self, item: &Item, threshold: f32) -> Result<Vec<ScoredId>, IndexError> {
        let Some(copy) = self.cache.iter().find(|known| known.vector == item.vector) else {
            return self.index.within(self.search_for(item, 0), threshold).await;
        };
        // A copy has the same neighbours, except that each of the two has the other.
        let position = copy.scored.iter().position(|scored| scored.id == item.id);
        let mut scored = copy.scored.clone();
        if let Some(position) = position {
            scored[position].id.clone_from(&copy.id);
        }
        scored.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        Ok(scored)
    }

    /// Adds a group without its first `skip` duplicates; returns where the next page begins, if not all of them fit.
    async fn push(&mut self, neighbours: &Neighbours, skip: usize) -> Result<Option<Cursor>, IndexError> {
        let count = neighbours.greater().count();
        let here: Vec<ScoredId> = neighbours.greater().skip(skip).take(self.left).cloned().collect();
        let next = skip + here.len();
        self.left -= here.len();
        let duplicates = self.index.hits(here).await?;
        if !duplicates.is_empty() {
            self.groups.push(Group { id: neighbours.id.clone(), duplicates, count });
        }
        Ok((next < count).then(|| Cursor::Within(neighbours.id.clone(), next)))
    }
}

impl Neighbours {
    /// Those with greater ids.
    fn greater(&self) -> impl Iterator<Item = &ScoredId> {
        self.scored.iter().filter(|scored| scored.id > self.id)
    }
}
