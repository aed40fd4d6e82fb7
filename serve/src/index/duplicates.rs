//! Groups of items that are nearly the same.
//!
//! A group is an item and all items with greater ids that are at least as near to it as the threshold says.  Where all of
//! an item's pairs are in the group of an item before it, it has no group of its own: four hundred copies are one group.
//! So any two items that are near enough are together in some group.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Filter, Hit, Index, IndexError, Item, Listing, Near, Query};

/// Items whose neighbours are looked up together.
const BLOCK: usize = 128;
/// Neighbours of one item that are looked at first: whoever has as many has all items compared with it.
const FIRST: usize = 100;
/// Duplicates of a page: a larger group goes on on the next one.
pub const MOST: usize = 2000;
/// A page ends where it has taken so long: a large index is compared over many pages.
const PATIENCE: Duration = Duration::from_secs(2);
/// The product of two equal vectors of length 1 may fall short of 1 by so much.
const ROUNDING: f32 = 1e-6;
/// Lists of neighbours that are remembered.
const REMEMBERED: usize = 16;

/// An item and those that are nearly the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The item.
    pub id: String,
    /// Items with greater ids, best first; those of this page.
    pub duplicates: Vec<Hit>,
    /// How many there are on all pages.
    pub count: usize,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Smallest cosine of a pair.
    pub threshold: f32,
    /// From the page before.
    pub cursor: Option<String>,
    /// Most groups of the page.
    pub limit: usize,
    /// Which items are compared, and with which.
    pub filter: Filter,
    /// Whether an approximate answer is not good enough.
    pub exact: bool,
}

/// Where a page begins.
///
/// As text it is the id, and for a group that goes on a tab and a number follow: no id has a tab.
enum Cursor {
    /// After this item.
    After(Option<String>),
    /// With this item's group, after so many of its duplicates.
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

/// All neighbours of an item.
struct Neighbours {
    id: String,
    vector: Vec<f32>,
    /// Best first.
    near: Vec<Near>,
    ids: HashSet<String>,
}

struct Finder<'a> {
    index: &'a dyn Index,
    comparison: &'a Comparison,
    remembered: Vec<Arc<Neighbours>>,
    groups: Vec<Group>,
    /// Duplicates that the page still has room for.
    room: usize,
}

/// The groups of one page and where the next begins; `None` where all items were compared.
///
/// # Errors
/// The index's.
pub async fn duplicates(
    index: &dyn Index,
    comparison: &Comparison,
) -> Result<(Vec<Group>, Option<String>), IndexError> {
    let since = Instant::now();
    let mut finder = Finder { index, comparison, remembered: Vec::new(), groups: Vec::new(), room: MOST };
    let mut after = match Cursor::parse(comparison.cursor.clone()) {
        Cursor::After(id) => id,
        Cursor::Within(id, skip) => {
            if let Some(next) = finder.resume(&id, skip).await? {
                return Ok((finder.groups, next.text()));
            }
            Some(id)
        }
    };
    loop {
        let filter = comparison.filter.clone();
        let listing = Listing { cursor: after.clone(), limit: BLOCK, filter, vectors: true, uncounted: true };
        let page = index.list(listing).await?;
        let copies: Vec<bool> = page.items.iter().map(|item| finder.is_copy(item)).collect();
        let others = page.items.iter().zip(&copies).filter(|(_, copy)| !**copy);
        let mut found = index.search(others.map(|(item, _)| finder.query(item, FIRST)).collect()).await?.into_iter();
        let searched = Instant::now();
        for (item, copy) in page.items.into_iter().zip(copies) {
            // Every page comes at least one item further.
            if finder.is_full() || searched.elapsed() > PATIENCE {
                return Ok((finder.groups, after));
            }
            let id = item.id.clone();
            if !copy && let Some(next) = finder.compare(item, &found.next().unwrap_or_default()).await? {
                return Ok((finder.groups, next.text()));
            }
            after = Some(id);
        }
        if page.next.is_none() {
            return Ok((finder.groups, None));
        }
        if finder.is_full() || since.elapsed() > PATIENCE {
            return Ok((finder.groups, after));
        }
    }
}

impl Finder<'_> {
    fn query(&self, item: &Item, k: usize) -> Query {
        let Comparison { filter, exact, .. } = self.comparison;
        Query { vector: item.vector.clone(), k, filter: filter.clone(), exact: *exact, except: Some(item.id.clone()) }
    }

    fn is_full(&self) -> bool {
        self.groups.len() == self.comparison.limit || self.room == 0
    }

    /// Whether it is a copy of an item before it whose neighbours are known: all its pairs are in that one's group.
    fn is_copy(&self, item: &Item) -> bool {
        let of = |known: &Arc<Neighbours>| known.vector == item.vector && known.id < item.id;
        self.remembered.iter().any(|known| of(known) && known.ids.contains(&item.id))
    }

    /// The rest of a group; where the next page begins, if this one ends with it.
    async fn resume(&mut self, id: &str, skip: usize) -> Result<Option<Cursor>, IndexError> {
        let Some(item) = self.index.get(id).await? else { return Ok(None) };
        let neighbours = self.neighbours(item, None).await?;
        self.push(&neighbours, skip).await
    }

    /// Adds the item's group, where it has one of its own; where the next page begins, if this one ends with it.
    async fn compare(&mut self, item: Item, hits: &[Hit]) -> Result<Option<Cursor>, IndexError> {
        let threshold = self.comparison.threshold - ROUNDING;
        let near = hits.iter().filter(|hit| hit.score >= threshold);
        if near.clone().count() < FIRST && near.clone().all(|hit| hit.id < item.id) {
            return Ok(None);
        }
        let neighbours = self.neighbours(item, Some(hits)).await?;
        let mut greater = neighbours.greater().peekable();
        if greater.peek().is_none() {
            return Ok(None);
        }
        if let Some(first) = neighbours.near.iter().map(|near| &near.id).min().filter(|id| **id < neighbours.id)
            && let Some(before) = self.of(first).await?
            && greater.all(|near| before.ids.contains(&near.id))
        {
            return Ok(None);
        }
        self.push(&neighbours, 0).await
    }

    /// All neighbours of the item of this id.
    async fn of(&mut self, id: &str) -> Result<Option<Arc<Neighbours>>, IndexError> {
        if let Some(place) = self.remembered.iter().position(|known| known.id == id) {
            let known = self.remembered.remove(place);
            self.remembered.push(known.clone());
            return Ok(Some(known));
        }
        let Some(item) = self.index.get(id).await? else { return Ok(None) };
        Ok(Some(self.neighbours(item, None).await?))
    }

    /// All neighbours of an item; `hits` are its first.
    async fn neighbours(&mut self, item: Item, hits: Option<&[Hit]>) -> Result<Arc<Neighbours>, IndexError> {
        let threshold = self.comparison.threshold - ROUNDING;
        let searched = match hits {
            Some(_) => Vec::new(),
            None => self.index.search(vec![self.query(&item, FIRST)]).await?.concat(),
        };
        let hits = hits.unwrap_or(&searched);
        let mut near: Vec<Near> = hits
            .iter()
            .filter(|hit| hit.score >= threshold)
            .map(|hit| Near { id: hit.id.clone(), score: hit.score })
            .collect();
        if near.len() == FIRST {
            near = self.all(&item, threshold).await?;
        }
        let ids = near.iter().map(|near| near.id.clone()).collect();
        let neighbours = Arc::new(Neighbours { id: item.id, vector: item.vector, near, ids });
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(neighbours.clone());
        Ok(neighbours)
    }

    /// All items that are near, exactly.
    async fn all(&self, item: &Item, threshold: f32) -> Result<Vec<Near>, IndexError> {
        // A copy's are the same, but for the two themselves.
        let Some(copy) = self.remembered.iter().find(|known| known.vector == item.vector) else {
            return self.index.within(self.query(item, 0), threshold).await;
        };
        let itself = copy.near.iter().position(|near| near.id == item.id);
        let mut near = copy.near.clone();
        if let Some(place) = itself {
            near[place].id.clone_from(&copy.id);
        }
        near.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        Ok(near)
    }

    /// Adds a group without its first `skip` duplicates; where the next page begins, if there is no room for the rest.
    async fn push(&mut self, neighbours: &Neighbours, skip: usize) -> Result<Option<Cursor>, IndexError> {
        let count = neighbours.greater().count();
        let here: Vec<Near> = neighbours.greater().skip(skip).take(self.room).cloned().collect();
        let next = skip + here.len();
        self.room -= here.len();
        let duplicates = self.index.describe(here).await?;
        if !duplicates.is_empty() {
            self.groups.push(Group { id: neighbours.id.clone(), duplicates, count });
        }
        Ok((next < count).then(|| Cursor::Within(neighbours.id.clone(), next)))
    }
}

impl Neighbours {
    fn greater(&self) -> impl Iterator<Item = &Near> {
        self.near.iter().filter(|near| near.id > self.id)
    }
}
