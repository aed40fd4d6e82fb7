//! What an index is asked, and the parts of its answers that are not items.

use super::filter::Filter;
use super::item::Item;

/// A search for the items nearest to a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// (D), L2-normalised.
    pub vector: Vec<f32>,
    /// Largest number of hits.
    pub k: usize,
    /// Conditions on the hits' metadata.
    pub filter: Filter,
    /// Whether the answer must be exact; otherwise an approximate one may be given.
    pub exact: bool,
    /// Id of an item to leave out, such as the one whose vector is searched with.
    pub except: Option<String>,
}

/// A request for one page of items.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListQuery {
    /// The page begins after this id; `None`: at the first item.
    pub cursor: Option<String>,
    /// Largest number of items of the page.
    pub limit: usize,
    /// Conditions on the items' metadata.
    pub filter: Filter,
    /// Whether items come with their vectors.
    pub vectors: bool,
    /// Whether [`Page::total`] may be skipped: counting the whole index for every page is wasted on a caller who reads
    /// all pages.
    pub skip_total: bool,
}

/// One page of items.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the order of their ids (by bytes).
    pub items: Vec<Item>,
    /// Cursor of the next page; `None` on the last.
    pub next: Option<String>,
    /// Number of matching items on all pages; not meaningful if the query had `skip_total`.
    pub total: usize,
}

/// Size of an index.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Number of items.
    pub items: usize,
    /// Number of items that the approximate search covers; the others are compared exactly.  `None` if every search is
    /// exact.
    pub approximate: Option<usize>,
}
