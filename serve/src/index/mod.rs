//! Where items live: one trait, so that a folder on this machine and a data base across the network answer the same
//! routes with the same words.
//!
//! [`EmbeddedIndex`] is the default: everything that a search reads is in memory, and with a folder every change is in
//! a data base on disk before it is acknowledged.  [`PostgresIndex`] is for more servers than one.

pub mod duplicates;
pub mod embedded;
mod filter;
mod location;
pub mod postgres;

use std::sync::Arc;

use async_trait::async_trait;
use macrl_bundle::bundle::Bundle;
use serde_json::{Map, Value};

pub use embedded::EmbeddedIndex;
pub use filter::{Condition, Filter, Range};
pub use location::{Location, OpenOptions, open, open_to_read};
pub use postgres::PostgresIndex;

/// An item's metadata: a JSON object.
pub type Metadata = Map<String, Value>;

/// SHA-256 of the file that an item was made from.
pub type ContentHash = [u8; 32];

/// Whose vectors an index holds: those of two encoders have nothing to do with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoder {
    /// SHA-256 of the bundle's `model.safetensors`, hexadecimal.
    pub sha256: String,
    /// D.
    pub dim: usize,
}

impl Encoder {
    /// The one in a bundle.
    pub fn of(bundle: &Bundle) -> Self {
        Self { sha256: bundle.config.macrl.weights_sha256.clone(), dim: bundle.config.hidden_size }
    }
}

impl std::fmt::Display for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short: String = self.sha256.chars().take(12).collect();
        write!(f, "{short} ({} numbers)", self.dim)
    }
}

/// What can be found again.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Unique; see [`check_id`].
    pub id: String,
    /// (D), L2-normalised; empty in a listing that did not ask for vectors.
    pub vector: Vec<f32>,
    /// Free.
    pub metadata: Metadata,
    /// A small PNG, where the item came as an image; listings leave it out and say so in `pictured`.
    pub image: Option<Arc<[u8]>>,
    /// Whether the index has an image for it; ignored in [`Index::put`], where `image` says so.
    pub pictured: bool,
    /// Of the file it was made from, where there was one.
    pub hash: Option<ContentHash>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The item's.
    pub id: String,
    /// Cosine, in [-1, 1].
    pub score: f32,
    /// The item's.
    pub metadata: Metadata,
    /// Whether the item has an image.
    pub image: bool,
}

/// A neighbour's name.
#[derive(Debug, Clone, PartialEq)]
pub struct Near {
    /// The item's.
    pub id: String,
    /// Cosine, in [-1, 1].
    pub score: f32,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// (D), L2-normalised.
    pub vector: Vec<f32>,
    /// Largest number of hits.
    pub k: usize,
    /// What the hits' metadata must be like.
    pub filter: Filter,
    /// Whether an approximate answer is not good enough.
    pub exact: bool,
    /// An item that is left out: the one that is searched with.
    pub except: Option<String>,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// Items whose ids come after this one; all of them where there is none.
    pub cursor: Option<String>,
    /// Most items of the page.
    pub limit: usize,
    /// What the items' metadata must be like.
    pub filter: Filter,
    /// With their vectors.
    pub vectors: bool,
    /// [`Page::total`] is not looked at: whoever reads every page need not have the whole index counted each time.
    pub uncounted: bool,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the order of their ids (by bytes).
    pub items: Vec<Item>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
    /// Items that match, on all pages; anything where the listing is `uncounted`.
    pub total: usize,
}

/// What an index says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Items.
    pub items: usize,
    /// Items that an approximate search finds; the others are compared one by one.  `None` where every search is exact.
    pub approximate: Option<usize>,
}

/// Why an index did not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IndexError {
    /// Another dimension than the index holds.
    #[error("expected a vector of {expected} numbers, found {found}")]
    Dimension {
        /// D.
        expected: usize,
        /// Numbers given.
        found: usize,
    },
    /// Vectors of another encoder.
    #[error(
        "the index holds {items} items of encoder {holds}, found encoder {given}: use another index, or embed anew"
    )]
    Encoder {
        /// Recorded in the index.
        holds: Encoder,
        /// Items of that encoder.
        items: usize,
        /// The caller's.
        given: Encoder,
    },
    /// No room for this item.
    #[error("the index is full: its items may take {limit} bytes")]
    Full {
        /// Bytes.
        limit: usize,
    },
    /// It cannot be opened; one sentence that names it.
    #[error("{0}")]
    Open(String),
    /// The storage does not answer now and may do so later.
    #[error("{0}")]
    Unavailable(String),
    /// The storage failed.
    #[error("{0}")]
    Storage(String),
}

/// A set of items.  Futures may be dropped: what was begun is then done or not done, never half.
///
/// Every change is durable, as far as the implementation promises any durability, when its future is ready.
#[async_trait]
pub trait Index: Send + Sync {
    /// What it is, for `/info`.
    fn kind(&self) -> &'static str;

    /// Format of what is stored, for `/info`.
    fn format(&self) -> u32;

    /// What there is.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`], as everywhere below.
    async fn status(&self) -> Result<Status, IndexError>;

    /// From now on items of this encoder are expected.
    ///
    /// # Errors
    /// [`IndexError::Encoder`] where there are items of another.
    async fn adopt(&self, encoder: &Encoder) -> Result<(), IndexError>;

    /// Adds or replaces; for each item whether it is new, or why it was left out.  Of two items with one id the later
    /// one stays.
    ///
    /// # Errors
    /// [`IndexError::Encoder`] and what concerns the storage: no item was changed.
    async fn put(&self, encoder: &Encoder, items: Vec<Item>) -> Result<Vec<Result<bool, IndexError>>, IndexError>;

    /// One item, whole.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError>;

    /// Removes; whether there was one.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn delete(&self, id: &str) -> Result<bool, IndexError>;

    /// Items in the order of their ids, without their images.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn list(&self, listing: Listing) -> Result<Page, IndexError>;

    /// For each query the nearest items, best first; equal scores in the order of their ids.
    ///
    /// # Errors
    /// [`IndexError::Dimension`], [`IndexError::Storage`].
    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError>;

    /// All items that score at least `threshold` and that the query's filter passes, best first, equal scores in the
    /// order of their ids: an exact answer, whatever the query's `k` and `exact`.
    ///
    /// # Errors
    /// [`IndexError::Dimension`], [`IndexError::Storage`].
    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<Near>, IndexError>;

    /// These neighbours with their metadata, in their order; without those that are gone.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn describe(&self, near: Vec<Near>) -> Result<Vec<Hit>, IndexError>;

    /// The content hashes of these items, where the index has them.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError>;

    /// About `count` items spread over the whole index, with vectors and without images; the same ones when asked again.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError>;
}

/// Scales to length 1.
///
/// # Errors
/// One sentence where a value is not finite or all are zero.
pub fn normalized(mut vector: Vec<f32>) -> Result<Vec<f32>, String> {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !norm.is_finite() || norm == 0.0 {
        return Err("expected a vector of finite numbers that are not all zero".into());
    }
    for value in &mut vector {
        *value = (f64::from(*value) / norm) as f32;
    }
    Ok(vector)
}

/// An id is 1 to 512 bytes of text without control characters.
///
/// # Errors
/// One sentence.
pub fn check_id(id: &str) -> Result<(), String> {
    if (1..=512).contains(&id.len()) && !id.chars().any(char::is_control) {
        return Ok(());
    }
    Err("an id must be 1 to 512 bytes of text without control characters".into())
}
