//! Pairs of items that are nearly the same.

use std::time::{Duration, Instant};

use super::{Filter, Hit, Index, IndexError, Listing, Query};

/// Items whose neighbours are looked up together.
const BLOCK: usize = 128;
/// Neighbours of one item that are looked at.
pub const MOST: usize = 100;
/// A page ends where it has taken so long: a large index is compared over many pages.
const PATIENCE: Duration = Duration::from_secs(2);

/// An item and those that are nearly the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The item.
    pub id: String,
    /// Items with greater ids, best first, so that every pair is named once.
    pub duplicates: Vec<Hit>,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Smallest cosine of a pair.
    pub threshold: f32,
    /// Items whose ids come after this one.
    pub cursor: Option<String>,
    /// Most groups of the page.
    pub limit: usize,
    /// Which items are compared, and with which.
    pub filter: Filter,
    /// Whether an approximate answer is not good enough.
    pub exact: bool,
}

/// The groups of one page and where the next begins; `None` where all items were compared.
///
/// # Errors
/// The index's.
pub async fn duplicates(
    index: &dyn Index,
    mut comparison: Comparison,
) -> Result<(Vec<Group>, Option<String>), IndexError> {
    let since = Instant::now();
    let mut groups = Vec::new();
    loop {
        let listing = Listing {
            cursor: comparison.cursor.clone(),
            limit: BLOCK,
            filter: comparison.filter.clone(),
            vectors: true,
            uncounted: true,
        };
        let page = index.list(listing).await?;
        let ids: Vec<String> = page.items.iter().map(|item| item.id.clone()).collect();
        let queries = page.items.into_iter().map(|item| Query {
            vector: item.vector,
            k: MOST,
            filter: comparison.filter.clone(),
            exact: comparison.exact,
            except: Some(item.id),
        });
        let found = index.search(queries.collect()).await?;
        for (id, hits) in ids.into_iter().zip(found) {
            comparison.cursor = Some(id.clone());
            let near = |hit: &Hit| hit.score >= comparison.threshold && hit.id > id;
            let duplicates: Vec<Hit> = hits.into_iter().filter(near).collect();
            if !duplicates.is_empty() {
                groups.push(Group { id, duplicates });
            }
            if groups.len() == comparison.limit {
                return Ok((groups, comparison.cursor));
            }
        }
        if page.next.is_none() {
            return Ok((groups, None));
        }
        if since.elapsed() > PATIENCE {
            return Ok((groups, comparison.cursor));
        }
    }
}
