//! Access to the items of an index, in this process or through a running server.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::index::{Condition, Filter, Index, JsonMap, ListQuery};
use crate::text_encoding::encode_percent;

/// Metadata field of an item's source.
pub(super) const SOURCE: &str = "source";

/// The operations on an index that ingestion needs.
pub(super) trait ItemStore: Sync {
    /// One page of items after a cursor, in the order of their ids; with `source`, only items of this source.
    ///
    /// # Errors
    /// The index does not answer.
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<ItemPage>;

    /// The metadata of one item.
    ///
    /// # Errors
    /// The index does not answer.
    fn metadata(&self, id: &str) -> Result<Option<JsonMap>>;

    /// Removes an item; returns whether it existed.
    ///
    /// # Errors
    /// The index does not answer.
    fn remove(&self, id: &str) -> Result<bool>;
}

/// Ids and metadata of one page of items.
pub(super) struct ItemPage {
    /// In the order of their ids.
    pub(super) items: Vec<(String, JsonMap)>,
    /// Cursor of the next page; `None` on the last.
    pub(super) next: Option<String>,
}

/// An index that this process has open.
pub(super) struct OpenIndex<'a> {
    pub(super) index: &'a dyn Index,
    pub(super) runtime: &'a Runtime,
}

impl ItemStore for OpenIndex<'_> {
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<ItemPage> {
        let condition = |source: &str| (SOURCE.to_string(), Condition::In(vec![source.into()]));
        let filter = Filter { conditions: source.map(condition).into_iter().collect() };
        let query = ListQuery { cursor, limit, filter, vectors: false, skip_total: true };
        let page = self.runtime.block_on(self.index.list(query))?;
        let items = page.items.into_iter().map(|item| (item.id, item.metadata.to_map())).collect();
        Ok(ItemPage { items, next: page.next })
    }

    fn metadata(&self, id: &str) -> Result<Option<JsonMap>> {
        Ok(self.runtime.block_on(self.index.get(id))?.map(|item| item.metadata.to_map()))
    }

    fn remove(&self, id: &str) -> Result<bool> {
        Ok(self.runtime.block_on(self.index.delete(id))?)
    }
}

/// A running server.
pub(super) struct RemoteServer<'a>(pub(super) &'a Client);

impl ItemStore for RemoteServer<'_> {
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<ItemPage> {
        let filter = source.map(|source| json!({ SOURCE: source }).to_string());
        let query = [("limit", Some(limit.to_string())), ("cursor", cursor), ("filter", filter)];
        let query: Vec<String> =
            query.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", encode_percent(&value?)))).collect();
        let answer = self.0.get(&format!("/items?{}", query.join("&")))?;
        let items = answer["items"].as_array().context("/items gave no items")?;
        let item = |item: &Value| {
            let metadata = item["metadata"].as_object().cloned().unwrap_or_default();
            Some((item["id"].as_str()?.to_string(), metadata))
        };
        let items =
            items.iter().map(|i| item(i).context("/items gave an item without an id")).collect::<Result<_>>()?;
        Ok(ItemPage { items, next: answer["next"].as_str().map(str::to_string) })
    }

    fn metadata(&self, id: &str) -> Result<Option<JsonMap>> {
        let item = self.0.find(&format!("/items/{}", encode_percent(id)))?;
        Ok(item.map(|item| item["metadata"].as_object().cloned().unwrap_or_default()))
    }

    fn remove(&self, id: &str) -> Result<bool> {
        self.0.delete(&format!("/items/{}", encode_percent(id)))
    }
}
