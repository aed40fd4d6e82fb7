//! Where items live: a trait, so that a search in memory, a durable one and a data base answer the same routes.

mod memory;

use std::sync::Arc;

use serde_json::{Map, Value};

pub use memory::MemoryIndex;

/// An item's metadata: a JSON object.
pub type Metadata = Map<String, Value>;

/// What can be found again.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Unique; see [`check_id`].
    pub id: String,
    /// (D), L2-normalised.
    pub vector: Vec<f32>,
    /// Free.
    pub metadata: Metadata,
    /// A small PNG, where the item came as an image.
    pub image: Option<Arc<[u8]>>,
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

/// What to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// (D), L2-normalised.
    pub vector: Vec<f32>,
    /// Largest number of hits.
    pub k: usize,
    /// Metadata fields that must have exactly these values.
    pub filter: Metadata,
    /// Whether an approximate answer is not good enough.
    pub exact: bool,
    /// An item that is left out: the one that is searched with.
    pub except: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// In the order of their ids, without vectors.
    pub items: Vec<Item>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
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
    /// No room for these items.
    #[error("the index is full: its items may take {limit} bytes")]
    Full {
        /// Bytes.
        limit: usize,
    },
    /// The storage behind it.
    #[error("{0}")]
    Storage(String),
}

/// A set of items.  Calls block (the server makes them on blocking threads); every change is durable, as far as the
/// implementation promises any durability, when the call returns.
pub trait Index: Send + Sync {
    /// What it is, for `/info`.
    fn kind(&self) -> &'static str;

    /// Number of items.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds or replaces; for each item whether it is new.
    ///
    /// # Errors
    /// [`IndexError`]; no item was changed.
    fn put(&self, items: Vec<Item>) -> Result<Vec<bool>, IndexError>;

    /// One item, whole.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    fn get(&self, id: &str) -> Result<Option<Item>, IndexError>;

    /// Removes; whether there was one.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    fn delete(&self, id: &str) -> Result<bool, IndexError>;

    /// Up to `limit` items whose ids come after `cursor`.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    fn list(&self, cursor: Option<&str>, limit: usize) -> Result<Page, IndexError>;

    /// The nearest items, best first; equal scores in the order of their ids.
    ///
    /// # Errors
    /// [`IndexError`].
    fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError>;
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
