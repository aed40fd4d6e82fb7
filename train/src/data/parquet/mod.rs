//! Parquet as the Hugging Face hub serves it, and as others write it: a column of encoded images (bytes, or structs
//! {bytes, path}), a label column, perhaps class names in the file's metadata.
//!
//! What fits the memory budget is kept in memory, decoded or else encoded.  Larger sets are read a row group at a time
//! (`held.rs`).

mod columns;
mod file;
mod held;
mod labels;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use macrl_bundle::folder::{Split, is_system, text, walk};

use super::dataset::Dataset;
use super::reading::{Reading, Splits, count, without_labels};
use columns::{Chosen, choose, listed};
use file::{ImageFile, ParquetFile};
use held::{EncodedRow, RowGroups, hold};
use labels::{Classes, Label};

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
    let Some(ImageFiles { sources, without_images }) = ImageFiles::of(&files, dir, reading)? else { return Ok(None) };
    let mut parts = SplitTables::of(sources, dir)?;
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
            // The walk over images reports a sub-folder that cannot be listed.
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
struct ImageFiles {
    sources: Vec<ImageFile>,
    without_images: Vec<String>,
}

impl ImageFiles {
    /// `None` where the files have no images, and there may be image files beside them.
    fn of(files: &[PathBuf], dir: &Path, reading: &Reading) -> Result<Option<Self>> {
        let mut opening = ImageFiles { sources: Vec::new(), without_images: Vec::new() };
        let mut found = None;
        for path in files {
            match choose(ParquetFile::open(path)?, &reading.columns)? {
                Chosen::ImageFile(source) => opening.sources.push(source),
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
struct SplitTables {
    tables: BTreeMap<Split, Table>,
    notes: Vec<String>,
    left_out: Vec<String>,
}

impl SplitTables {
    /// Files whose path names no split are used for training, where no other file is.
    fn of(sources: Vec<ImageFile>, dir: &Path) -> Result<Self> {
        let mut by_split: BTreeMap<Option<Split>, Vec<ImageFile>> = BTreeMap::new();
        for source in sources {
            by_split.entry(split_of(&source.file.path, dir)).or_default().push(source);
        }
        let mut parts = SplitTables { tables: BTreeMap::new(), notes: Vec::new(), left_out: Vec::new() };
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

    /// Notes that no label column was found, if other columns might be one.
    fn note_unlabelled(&mut self) {
        let Some(first) = self.tables.get(&Split::Train).and_then(|t| t.files.first()) else { return };
        let others = first.file.columns().iter().map(|c| c.name()).filter(|name| *name != first.image.name());
        let others = others.collect::<Vec<_>>().join(", ");
        if first.label.is_none() && !others.is_empty() {
            self.notes.push(format!("no label column among {others}; `data.label_column` names one"));
        }
    }

    /// The split for evaluation: validation, or else test; in either case only if it has a class that was trained on.
    fn held(&mut self) -> Option<Split> {
        let classes = |split| -> BTreeSet<&Label> {
            let table: Option<&Table> = self.tables.get(&split);
            // -1 marks hidden labels.
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

/// The split that the file's name or else the nearest folder's name mentions.
fn split_of(file: &Path, root: &Path) -> Option<Split> {
    let below = file.strip_prefix(root).unwrap_or(file).with_extension("");
    below.iter().rev().find_map(|name| Split::mentioned(&name.to_string_lossy()))
}

/// The files of one split.
struct Table {
    files: Vec<ImageFile>,
    labels: Vec<Option<Label>>,
}

impl Table {
    fn open(files: Vec<ImageFile>, notes: &mut Vec<String>) -> Result<Self> {
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

    /// Bytes of the encoded images.
    fn encoded(&self) -> u64 {
        self.files.iter().map(ImageFile::encoded).sum()
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
            return Ok(Arc::new(RowGroups::new(split, self.files, labels, reading.into())));
        }
        let mut images = Vec::new();
        for file in &self.files {
            for group in 0..file.file.groups() {
                file.images(group, &mut images)?;
            }
        }
        let rows =
            labels.into_iter().zip(images).enumerate().map(|(row, (label, bytes))| EncodedRow { row, label, bytes });
        hold(split, rows.collect(), reading, skipped)
    }
}
