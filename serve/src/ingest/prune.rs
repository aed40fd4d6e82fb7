//! `--prune`: items whose files are gone leave the index.

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;

use super::source::{Source, Stored};

/// Items looked at together.
const BLOCK: usize = 1000;

/// Removes the items of `source` below `folder` that are not among `ids`; how many.
///
/// # Errors
/// An index that does not answer; what was removed until then is removed.
pub(super) fn prune(stored: &dyn Stored, source: &Source, folder: &Path, ids: &HashSet<&str>) -> Result<usize> {
    let beginning = source.id_of_folder(folder);
    let (mut cursor, mut removed) = (None, 0);
    loop {
        let page = stored.page(Some(&source.name), cursor, BLOCK)?;
        for (id, _) in page.items {
            if id.starts_with(&beginning) && !ids.contains(id.as_str()) && stored.remove(&id)? {
                removed += 1;
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(removed);
        }
    }
}
