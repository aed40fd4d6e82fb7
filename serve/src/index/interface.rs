//! The trait that every index backend implements.

use async_trait::async_trait;

use super::error::IndexError;
use super::item::{ContentHash, EncoderIdentity, Hit, Item, ScoredId};
use super::query::{ListQuery, Page, Query, Status};

/// A set of items that can be searched.
///
/// A change is durable, as far as the backend promises durability, when its future is ready.  Dropping a future leaves its
/// change made as a whole or not at all.
#[async_trait]
pub trait Index: Send + Sync {
    /// Name of the backend, for `/info`.
    fn kind(&self) -> &'static str;

    /// Version of the storage format, for `/info`.
    fn format(&self) -> u32;

    /// Number of items.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`], as every method below.
    async fn status(&self) -> Result<Status, IndexError>;

    /// From now on, items of this encoder are expected.
    ///
    /// # Errors
    /// [`IndexError::EncoderMismatch`] if the index holds items of another one.
    async fn adopt(&self, encoder: &EncoderIdentity) -> Result<(), IndexError>;

    /// Adds or replaces items.  The result says for each item whether it is new, or why it was not stored.  If two items
    /// have the same id, the later one is stored.
    ///
    /// # Errors
    /// [`IndexError::EncoderMismatch`] and errors of the storage; no item was changed then.
    async fn put(
        &self,
        encoder: &EncoderIdentity,
        items: Vec<Item>,
    ) -> Result<Vec<Result<bool, IndexError>>, IndexError>;

    /// One item with its vector and thumbnail.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn get(&self, id: &str) -> Result<Option<Item>, IndexError>;

    /// Removes an item; returns whether there was one.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn delete(&self, id: &str) -> Result<bool, IndexError>;

    /// One page of items in the order of their ids, without thumbnails.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn list(&self, query: ListQuery) -> Result<Page, IndexError>;

    /// The nearest items of each query, best first; equal scores in the order of their ids.
    ///
    /// # Errors
    /// [`IndexError::Dimension`], [`IndexError::Storage`].
    async fn search(&self, queries: Vec<Query>) -> Result<Vec<Vec<Hit>>, IndexError>;

    /// All items that pass the query's filter and score at least `threshold`, best first, equal scores in the order of
    /// their ids.  The answer is exact; the query's `k` and `exact` are ignored.
    ///
    /// # Errors
    /// [`IndexError::Dimension`], [`IndexError::Storage`].
    async fn within(&self, query: Query, threshold: f32) -> Result<Vec<ScoredId>, IndexError>;

    /// These items with their metadata, in the given order; items that no longer exist are left out.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn hits(&self, scored: Vec<ScoredId>) -> Result<Vec<Hit>, IndexError>;

    /// The content hash of each of these items, where the index has one.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn hashes(&self, ids: &[String]) -> Result<Vec<Option<ContentHash>>, IndexError>;

    /// About `count` items spread evenly over the index, with vectors and without thumbnails.  An unchanged index gives the
    /// same items again.
    ///
    /// # Errors
    /// [`IndexError::Storage`].
    async fn sample(&self, count: usize) -> Result<Vec<Item>, IndexError>;
}
