//! Parquet as the Hugging Face hub serves it, and as others write it: a column of encoded images (bytes, or structs
//! {bytes, path}), a label column, perhaps class names in the file's metadata.
//!
//! What fits the memory budget is held, decoded or else encoded; larger sets are read a row group at a time (`held.rs`).

mod columns;
mod held;
mod labels;
mod source;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod written;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use macrl_bundle::folder::{Split, is_system, text, walk};

use super::dataset::Dataset;
use super::reading::{Reading, Splits, count, without_labels};
use columns::{Chosen, choose, listed};
use held::{Encoded, Groups, hold};
use labels::{Classes, Label};
use source::{Opened, Source};

/// Folders below the one named that are searched (`data/`, `default/train/`, a folder around them).
const DEPTH: usize = 6;

/// Reads `*.parquet`; the split of a file is in its name, else in the nearest folder's.
///
/// # Errors
/// When a file is damaged, columns are unclear, there is no training split, or none of its images is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let mut files = Vec::new();
    collect(dir, DEPTH, &mut HashSet::new(), &mut files)?;
    files.sort();
    let Some(Opening { sources, without_images }) = Opening::of(&files, dir, reading)? else { return Ok(None) };
    let mut parts = Parts::of(sources, dir)?;
    let held = parts.held();
    let train = parts.tables.remove(&Split::Train).context("no training split")?;
    let held = held.and_then(|split| parts.tables.remove(&split));
    let classes = {
        let labels = train.labels.iter().chain(held.iter().flat_map(|t| &t.labels)).flatten();
        Classes::of(train.names(), labels)
    };
    let mut skipped = Vec::new();
    let train = train.load("train", &classes, reading, &mut skipped)?;
    if train.is_empty() {
        let why = skipped.first().map(|s| s.1.as_str()).unwrap_or("no rows");
        bail!("none of {} images is readable; the first: {why}", skipped.len());
    }
    let test = held.map(|table| table.load("test", &classes, reading, &mut skipped)).transpose()?;
    let mut left_out = parts.left_out;
    if let Some(first) = without_images.first() {
        left_out.push(format!("{} without images ({first})", count(without_images.len(), "Parquet file")));
    }
    Ok(Some(Splits { skipped, notes: parts.notes, left_out, ..Splits::new(train, test, classes.names) }))
}

/// All Parquet files, each once.
fn collect(dir: &Path, depth: usize, seen: &mut HashSet<(u64, u64)>, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", text(dir)))?;
    for entry in entries.flatten().filter(|e| !is_system(&e.file_name())) {
        let path = entry.path();
        let kind = entry.file_type().ok();
        if kind.is_some_and(|kind| kind.is_dir()) {
            // A sub-folder that cannot be listed is named by the walk over images.
            let _ = depth > 0 && collect(&path, depth - 1, seen, files).is_ok();
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
            && let Ok(metadata) = std::fs::metadata(&path)
            && metadata.is_file()
            && seen.insert((metadata.dev(), metadata.ino()))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The files with images, and the names of those without.
struct Opening {
    sources: Vec<Source>,
    without_images: Vec<String>,
}

impl Opening {
    /// `None` where the files have no images, and there may be image files beside them.
    fn of(files: &[PathBuf], dir: &Path, reading: &Reading) -> Result<Option<Self>> {
        let mut opening = Opening { sources: Vec::new(), without_images: Vec::new() };
        let mut found = None;
        for path in files {
            match choose(Opened::open(path)?, &reading.columns)? {
                Chosen::Source(source) => opening.sources.push(source),
                Chosen::NoImages(file) => {
                    found = found.or_else(|| Some(listed(&file)));
                    opening.without_images.push(text(path.strip_prefix(dir).unwrap_or(path)));
                }
            }
        }
        if !opening.sources.is_empty() {
            return Ok(Some(opening));
        }
        match (opening.without_images.first(), found) {
            (Some(file), Some(found)) if walk(dir).is_ok_and(|walk| walk.images.is_empty()) => {
                bail!("{file} has no image column: looked for encoded images or structs of them, found {found}")
            }
            _ => Ok(None),
        }
    }
}

/// The tables of each split.
struct Parts {
    tables: BTreeMap<Split, Table>,
    notes: Vec<String>,
    left_out: Vec<String>,
}

impl Parts {
    /// Files that name no split are for training where no other is.
    fn of(sources: Vec<Source>, dir: &Path) -> Result<Self> {
        let mut by_split: BTreeMap<Option<Split>, Vec<Source>> = BTreeMap::new();
        for source in sources {
            by_split.entry(split_of(&source.file.path, dir)).or_default().push(source);
        }
        let mut parts = Parts { tables: BTreeMap::new(), notes: Vec::new(), left_out: Vec::new() };
        if let Some(unnamed) = by_split.remove(&None) {
            match by_split.contains_key(&Some(Split::Train)) {
                false => drop(by_split.insert(Some(Split::Train), unnamed)),
                true => {
                    let rows =
                        unnamed.iter().map(|s| (0..s.file.groups()).map(|g| s.file.rows(g)).sum::<usize>()).sum();
                    let first = text(unnamed[0].file.path.strip_prefix(dir).unwrap_or(&unnamed[0].file.path));
                    parts.left_out.push(format!("{} in files that name no split ({first})", count(rows, "image")));
                }
            }
        }
        for (split, sources) in by_split {
            let Some(split) = split else { continue };
            parts.tables.insert(split, Table::open(sources, &mut parts.notes)?);
        }
        parts.note_unlabelled();
        if parts.tables.get(&Split::Train).is_none_or(|t| t.labels.is_empty()) {
            let found =
                parts.tables.iter().map(|(s, t)| format!("{} of a {} split", count(t.labels.len(), "image"), s.name()));
            bail!("no training images: found {}", found.collect::<Vec<_>>().join(", "));
        }
        Ok(parts)
    }

    /// A label column with an unusual name is not taken for none in silence.
    fn note_unlabelled(&mut self) {
        let Some(first) = self.tables.get(&Split::Train).and_then(|t| t.files.first()) else { return };
        let others = first.file.columns().iter().map(|c| c.name()).filter(|name| *name != first.image.name());
        let others = others.collect::<Vec<_>>().join(", ");
        if first.label.is_none() && !others.is_empty() {
            self.notes.push(format!("no label column among {others}; `data.label_column` names one"));
        }
    }

    /// The validation split, or else the test split, if it has a training class.
    fn held(&mut self) -> Option<Split> {
        let classes = |split| -> BTreeSet<&Label> {
            let table: Option<&Table> = self.tables.get(&split);
            // A lone -1 marks hidden labels.
            let labels = table.into_iter().flat_map(|t| &t.labels).flatten();
            labels.filter(|label| **label != Label::Number(-1)).collect()
        };
        let training = classes(Split::Train);
        let mut held = None;
        for split in [Split::Validation, Split::Test] {
            let rows = self.tables.get(&split).map_or(0, |t| t.labels.len());
            let (name, images) = (split.name(), count(rows, "image"));
            if rows == 0 {
                continue;
            } else if let Some(used) = held {
                self.left_out.push(format!("{images} of the {name} split ({} is used)", Split::name(used)));
            } else if training.is_empty() || !training.is_disjoint(&classes(split)) {
                held = Some(split);
            } else {
                self.notes.push(without_labels(name, rows));
                self.left_out.push(format!("{images} of the {name} split (no labels)"));
            }
        }
        held
    }
}

/// From the file's name, else the nearest folder that says so.
fn split_of(file: &Path, root: &Path) -> Option<Split> {
    let below = file.strip_prefix(root).unwrap_or(file).with_extension("");
    below.iter().rev().find_map(|name| Split::mentioned(&name.to_string_lossy()))
}

/// The files of one split.
struct Table {
    files: Vec<Source>,
    labels: Vec<Option<Label>>,
}

impl Table {
    fn open(files: Vec<Source>, notes: &mut Vec<String>) -> Result<Self> {
        let (mut labels, mut several) = (Vec::new(), None);
        for file in &files {
            if file.labels(&mut labels)? {
                several = file.label.as_ref().map(|column| column.name());
            }
        }
        if let Some(column) = several {
            labels.fill(None);
            notes.push(format!(
                "the column {column} holds several labels an image, and counts as none; `data.label_column` names another"
            ));
        }
        Ok(Table { files, labels })
    }

    fn names(&self) -> Option<&[String]> {
        self.files.iter().find_map(|file| file.names.as_deref())
    }

    /// Bytes that the encoded images take in memory.
    fn encoded(&self) -> u64 {
        self.files.iter().map(Source::encoded).sum()
    }

    fn load(
        self,
        split: &'static str,
        classes: &Classes,
        reading: &Reading,
        skipped: &mut Vec<(String, String)>,
    ) -> Result<Arc<dyn Dataset>> {
        let labels: Vec<Option<u32>> = self.labels.iter().map(|label| classes.number(label)).collect();
        if self.encoded() > reading.budget / 2 {
            return Ok(Arc::new(Groups::new(split, self.files, labels, reading.into())));
        }
        let mut images = Vec::new();
        for file in &self.files {
            for group in 0..file.file.groups() {
                file.images(group, &mut images)?;
            }
        }
        let rows =
            labels.into_iter().zip(images).enumerate().map(|(row, (label, bytes))| Encoded { row, label, bytes });
        hold(split, rows.collect(), reading, skipped)
    }
}
