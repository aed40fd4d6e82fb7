//! What ingestion asks about items, of an index and of a running server.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::source::{SOURCE, Stored, StoredPage};
use crate::client::Client;
use crate::index::{Condition, Filter, Index, Listing, Metadata};

/// An index that this process has open.
pub(super) struct Local<'a> {
    pub(super) index: &'a dyn Index,
    pub(super) runtime: &'a Runtime,
}

impl Stored for Local<'_> {
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<StoredPage> {
        let condition = |source: &str| (SOURCE.to_string(), Condition::In(vec![source.into()]));
        let filter = Filter { conditions: source.map(condition).into_iter().collect() };
        let listing = Listing { cursor, limit, filter, vectors: false, uncounted: true };
        let page = self.runtime.block_on(self.index.list(listing))?;
        let items = page.items.into_iter().map(|item| (item.id, item.metadata)).collect();
        Ok(StoredPage { items, next: page.next })
    }

    fn metadata(&self, id: &str) -> Result<Option<Metadata>> {
        Ok(self.runtime.block_on(self.index.get(id))?.map(|item| item.metadata))
    }

    fn remove(&self, id: &str) -> Result<bool> {
        Ok(self.runtime.block_on(self.index.delete(id))?)
    }
}

/// A running server.
pub(super) struct Remote<'a>(pub(super) &'a Client);

impl Stored for Remote<'_> {
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<StoredPage> {
        let filter = source.map(|source| json!({ SOURCE: source }).to_string());
        let query = [("limit", Some(limit.to_string())), ("cursor", cursor), ("filter", filter)];
        let query: Vec<String> =
            query.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", percent(&value?)))).collect();
        let answer = self.0.get(&format!("/items?{}", query.join("&")))?;
        let items = answer["items"].as_array().context("/items gave no items")?;
        let item = |item: &Value| {
            let metadata = item["metadata"].as_object().cloned().unwrap_or_default();
            Some((item["id"].as_str()?.to_string(), metadata))
        };
        let items =
            items.iter().map(|i| item(i).context("/items gave an item without an id")).collect::<Result<_>>()?;
        Ok(StoredPage { items, next: answer["next"].as_str().map(str::to_string) })
    }

    fn metadata(&self, id: &str) -> Result<Option<Metadata>> {
        let item = self.0.find(&format!("/items/{}", percent(id)))?;
        Ok(item.map(|item| item["metadata"].as_object().cloned().unwrap_or_default()))
    }

    fn remove(&self, id: &str) -> Result<bool> {
        self.0.delete(&format!("/items/{}", percent(id)))
    }
}

/// Percent-encoded: everything but letters, digits and `-._~`.
fn percent(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
