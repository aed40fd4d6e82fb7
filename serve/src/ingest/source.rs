//! Sources of ingested files, and the ids that they give to items.
//!
//! A *source* is a folder that was ingested.  It is identified by its full path or by the name that `--source` gives, which
//! each of its items has in its metadata.  The id of an item is the file's path below the source's folder.  From the second
//! source on, a prefix (the folder's name) precedes it, so that files of two sources never have the same id.  A folder within
//! a known source belongs to that source, and ids are relative to the source's folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use macrl_bundle::folder::text;
use serde_json::Value;

use super::item_store::{ItemStore, SOURCE};
use crate::image_folder::ImageFile;
use crate::index::JsonMap;

/// Metadata field of the source's prefix.
const PREFIX: &str = "prefix";

/// Number of items that are looked through for another source.
const SAMPLE: usize = 1000;

/// A source.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// Its identity: the folder's full path, or the given name.
    pub(super) name: String,
    /// The folder that ids are relative to.
    pub(super) root: PathBuf,
    prefix: Option<String>,
}

impl Source {
    /// Finds the source that `folder` (a full path) belongs to, or makes a new one.  `name` is the one given by the user.
    pub(super) fn find(store: &dyn ItemStore, folder: &Path, name: Option<&str>) -> Result<Self> {
        let names: Vec<(String, &Path)> = match name {
            Some(name) => vec![(name.to_string(), folder)],
            None => folder.ancestors().map(|around| (text(around), around)).collect(),
        };
        for (name, root) in &names {
            let first = store.page(Some(name), None, 1)?.items.into_iter().next();
            if let Some((_, metadata)) = first {
                let prefix = metadata.get(PREFIX).and_then(Value::as_str).map(str::to_string);
                return Ok(Self { name: name.clone(), root: root.to_path_buf(), prefix });
            }
        }
        let (name, _) = names.into_iter().next().context("the folder has no path")?;
        let others = store.page(None, None, SAMPLE)?.items.iter().any(|(_, metadata)| metadata.contains_key(SOURCE));
        let prefix = if others { Some(free_prefix(store, &name)?) } else { None };
        Ok(Self { name, root: folder.to_path_buf(), prefix })
    }

    /// The image with its id in this source, and its metadata.
    pub(super) fn item(&self, image: ImageFile) -> (ImageFile, JsonMap) {
        let mut metadata = image.metadata();
        metadata.insert(SOURCE.into(), self.name.clone().into());
        let Some(prefix) = &self.prefix else { return (image, metadata) };
        metadata.insert(PREFIX.into(), prefix.clone().into());
        (ImageFile { id: format!("{prefix}/{}", image.id), ..image }, metadata)
    }

    /// The beginning of the ids of all files below `folder`.
    pub(super) fn id_of_folder(&self, folder: &Path) -> String {
        let below = folder.strip_prefix(&self.root).map(text).unwrap_or_default();
        let parts = self.prefix.iter().cloned().chain((!below.is_empty()).then_some(below));
        parts.map(|part| part + "/").collect()
    }

    /// Whether an existing item belongs to this source.  Items of early versions name no source and belong to any.
    pub(super) fn owns(&self, metadata: &JsonMap) -> bool {
        metadata.get(SOURCE).is_none_or(|source| *source == self.name.as_str())
    }
}

/// The folder's name, followed by a number if ids begin with it already.
fn free_prefix(store: &dyn ItemStore, source: &str) -> Result<String> {
    let name = source.rsplit('/').find(|part| !part.is_empty()).unwrap_or("files");
    let mut number = 1;
    loop {
        let prefix = if number == 1 { name.to_string() } else { format!("{name}-{number}") };
        // The greatest text before the ids that begin with the prefix and a slash, because `.` precedes `/`.
        let before = format!("{prefix}.{}", char::MAX);
        let next = store.page(None, Some(before), 1)?.items.into_iter().next();
        let beginning = format!("{prefix}/");
        if next.is_none_or(|(id, _)| !id.starts_with(&beginning)) {
            return Ok(prefix);
        }
        number += 1;
    }
}
