//! `--prune`: removes items whose files are gone from the index.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;

use super::item_store::ItemStore;
use super::source::Source;

/// Items of one page.
const BLOCK: usize = 1000;

/// Removes the items of `source` below `folder` that are not among `ids`; returns their number.
///
/// # Errors
/// The index does not answer; items that were removed before stay removed.
pub(super) fn prune(store: &dyn ItemStore, source: &Source, folder: &Path, ids: &HashSet<&str>) -> Result<usize> {
    let beginning = source.id_of_folder(folder);
    let (mut cursor, mut removed) = (None, 0);
    loop {
        let page = store.page(Some(&source.name), cursor, BLOCK)?;
        for (id, _) in page.items {
            if id.starts_with(&beginning) && !ids.contains(id.as_str()) && store.remove(&id)? {
                removed += 1;
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(removed);
        }
    }
}
