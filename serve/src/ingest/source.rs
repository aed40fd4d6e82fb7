//! Ids of ingested files.
//!
//! A *source* is a folder that was ingested, known by its full path or by the name that `--source` gives it.  Each item
//! keeps its source in its metadata.  The id of a file is its path below the source's folder; from the second source on it
//! stands behind a prefix, the folder's name, so that files of two sources never have the same id.  A folder within a
//! source that the index knows belongs to that source: its files have the ids that they have from there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use macrl_bundle::folder::text;
use serde_json::Value;

use crate::index::Metadata;
use crate::pictures::Picture;

/// Metadata fields of a source and its prefix.
pub(super) const SOURCE: &str = "source";
const PREFIX: &str = "prefix";

/// Items that are looked through for another source.
const LOOK: usize = 1000;

/// An index, or a server that has one, as far as ingestion asks about it.
pub(super) trait Stored: Sync {
    /// Items after a cursor, in the order of their ids: (id, metadata), and the next cursor.  `source`: this source's only.
    ///
    /// # Errors
    /// No answer.
    fn page(&self, source: Option<&str>, cursor: Option<String>, limit: usize) -> Result<StoredPage>;

    /// One item's metadata.
    ///
    /// # Errors
    /// No answer.
    fn metadata(&self, id: &str) -> Result<Option<Metadata>>;

    /// Removes an item; whether it was there.
    ///
    /// # Errors
    /// No answer.
    fn remove(&self, id: &str) -> Result<bool>;
}

/// Ids and metadata, and the next page's cursor.
pub(super) struct StoredPage {
    /// In the order of their ids.
    pub(super) items: Vec<(String, Metadata)>,
    /// `None` on the last page.
    pub(super) next: Option<String>,
}

/// Where files come from, and how their ids begin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// The folder's full path as text, or the given name.
    pub(super) name: String,
    /// The folder that ids begin at.
    pub(super) root: PathBuf,
    prefix: Option<String>,
}

impl Source {
    /// Which source `folder` (a full path) belongs to; `name`: what the user calls it.
    pub(super) fn find(stored: &dyn Stored, folder: &Path, name: Option<&str>) -> Result<Self> {
        let names: Vec<(String, &Path)> = match name {
            Some(name) => vec![(name.to_string(), folder)],
            None => folder.ancestors().map(|around| (text(around), around)).collect(),
        };
        for (name, root) in &names {
            let first = stored.page(Some(name), None, 1)?.items.into_iter().next();
            if let Some((_, metadata)) = first {
                let prefix = metadata.get(PREFIX).and_then(Value::as_str).map(str::to_string);
                return Ok(Self { name: name.clone(), root: root.to_path_buf(), prefix });
            }
        }
        let (name, _) = names.into_iter().next().context("the folder has no path")?;
        let others = stored.page(None, None, LOOK)?.items.iter().any(|(_, metadata)| metadata.contains_key(SOURCE));
        let prefix = if others { Some(free_prefix(stored, &name)?) } else { None };
        Ok(Self { name, root: folder.to_path_buf(), prefix })
    }

    /// The picture with this source's id, and its metadata.
    pub(super) fn item(&self, picture: Picture) -> (Picture, Metadata) {
        let mut metadata = picture.metadata();
        metadata.insert(SOURCE.into(), self.name.clone().into());
        let Some(prefix) = &self.prefix else { return (picture, metadata) };
        metadata.insert(PREFIX.into(), prefix.clone().into());
        (Picture { id: format!("{prefix}/{}", picture.id), ..picture }, metadata)
    }

    /// How the ids of files below `folder` begin.
    pub(super) fn id_of_folder(&self, folder: &Path) -> String {
        let below = folder.strip_prefix(&self.root).map(text).unwrap_or_default();
        let parts = self.prefix.iter().cloned().chain((!below.is_empty()).then_some(below));
        parts.map(|part| part + "/").collect()
    }

    /// Whether an item of the same id is this source's; items from before sources were kept are.
    pub(super) fn owns(&self, metadata: &Metadata) -> bool {
        metadata.get(SOURCE).is_none_or(|source| *source == self.name.as_str())
    }
}

/// The folder's name, or that with a number, at which no id begins.
fn free_prefix(stored: &dyn Stored, source: &str) -> Result<String> {
    let name = source.rsplit('/').find(|part| !part.is_empty()).unwrap_or("files");
    let mut number = 1;
    loop {
        let prefix = if number == 1 { name.to_string() } else { format!("{name}-{number}") };
        // Sorted directly before the first id that begins with the prefix and a slash, since `.` precedes `/`.
        let before = format!("{prefix}.{}", char::MAX);
        let next = stored.page(None, Some(before), 1)?.items.into_iter().next();
        let beginning = format!("{prefix}/");
        if next.is_none_or(|(id, _)| !id.starts_with(&beginning)) {
            return Ok(prefix);
        }
        number += 1;
    }
}
