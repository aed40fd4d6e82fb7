//! Rows with encoded images: kept in memory, or read a row group at a time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use image::RgbImage;
use macrl_bundle::decode::announced;
use macrl_bundle::progress::Progress;
use parquet::data_type::ByteArray;
use rayon::prelude::*;

use super::file::ImageFile;
use crate::data::dataset::Dataset;
use crate::data::memory::Memory;
use crate::data::reading::{Decoding, Reading};

/// Row groups of a large set that are kept in memory.
const GROUPS_HELD: usize = 8;

/// One row with its encoded image.
pub(super) struct EncodedRow {
    pub(super) row: usize,
    pub(super) label: Option<u32>,
    pub(super) bytes: Option<ByteArray>,
}

impl EncodedRow {
    fn decode(&self, how: &Decoding) -> Result<RgbImage> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        Ok(how.decode(bytes.data())?)
    }

    /// Bytes of the image as RGB8, from its header.
    fn decoded_bytes(&self, how: &Decoding) -> Result<u64> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        Ok(3 * announced(std::io::Cursor::new(bytes.data()), how.limits())?)
    }
}

/// Decodes all rows where they fit into memory, else keeps them encoded.  Unreadable rows are listed and keep their index, as in
/// [`RowGroups`].
pub(super) fn hold(
    split: &'static str,
    rows: Vec<EncodedRow>,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let how = Decoding::from(reading);
    let sizes: Vec<Result<u64>> = rows.par_iter().map(|row| row.decoded_bytes(&how)).collect();
    let name = |row: &EncodedRow| format!("{split}[{}]", row.row);
    if sizes.iter().flatten().sum::<u64>() > reading.budget {
        let broken = rows.iter().zip(&sizes).filter_map(|(row, size)| Some((row, size.as_ref().err()?)));
        skipped.extend(broken.map(|(row, why)| (name(row), format!("{why:#}"))));
        return Ok(Arc::new(EncodedSplit { split, rows, how }));
    }
    let progress = Progress::new(format!("reading {split} images"), rows.len());
    let decode = |row: &EncodedRow| {
        let image = row.decode(&how);
        progress.add(1);
        (name(row), row.label, image)
    };
    let decoded = rows.par_iter().map(decode).collect();
    let memory = Memory::decoded(split, decoded, skipped);
    Ok(if memory.is_unreadable() { Arc::new(Memory::new(split, Vec::new(), Vec::new())) } else { Arc::new(memory) })
}

/// EncodedRow images in memory, decoded each time they are used.
struct EncodedSplit {
    split: &'static str,
    rows: Vec<EncodedRow>,
    how: Decoding,
}

impl Dataset for EncodedSplit {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.rows.get(index)?.label
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let row = self.rows.get(index).with_context(|| format!("no image {index} in {}", self.split))?;
        row.decode(&self.how).with_context(|| self.name(index)).map(Cow::Owned)
    }

    fn name(&self, index: usize) -> String {
        self.rows.get(index).map(|r| format!("{}[{}]", self.split, r.row)).unwrap_or_default()
    }
}

/// EncodedRow images of one row group.
type Rows = Arc<Vec<Option<ByteArray>>>;

/// A set too large for memory: row groups are read when they are needed, and the last few are kept.
///
/// Its memory is bounded.  In random order, each image may cost the reading of a whole row group.
pub(super) struct RowGroups {
    split: &'static str,
    files: Vec<ImageFile>,
    labels: Vec<Option<u32>>,
    /// First row of each (file, group).
    starts: Vec<(usize, usize, usize)>,
    held: Mutex<VecDeque<(usize, Rows)>>,
    how: Decoding,
}

impl RowGroups {
    pub(super) fn new(split: &'static str, files: Vec<ImageFile>, labels: Vec<Option<u32>>, how: Decoding) -> Self {
        let (mut starts, mut row) = (Vec::new(), 0);
        for (f, file) in files.iter().enumerate() {
            for group in 0..file.file.groups() {
                starts.push((row, f, group));
                row += file.file.rows(group);
            }
        }
        RowGroups { split, files, labels, starts, held: Mutex::new(VecDeque::new()), how }
    }

    fn group(&self, which: usize) -> Result<Rows> {
        let lock = || self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, rows)) = lock().iter().find(|(w, _)| *w == which) {
            return Ok(rows.clone());
        }
        let (_, file, group) = self.starts[which];
        let mut rows = Vec::new();
        self.files[file].images(group, &mut rows)?;
        let rows = Arc::new(rows);
        let mut held = lock();
        held.push_back((which, rows.clone()));
        if held.len() > GROUPS_HELD {
            held.pop_front();
        }
        Ok(rows)
    }
}

impl Dataset for RowGroups {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied().flatten()
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let which = self.starts.partition_point(|(first, _, _)| *first <= index).checked_sub(1);
        let which = which.filter(|_| index < self.len()).with_context(|| format!("no image {index}"))?;
        let group = self.group(which)?;
        let bytes = group.get(index - self.starts[which].0).cloned().flatten();
        let row = EncodedRow { row: index, label: None, bytes };
        row.decode(&self.how).with_context(|| self.name(index)).map(Cow::Owned)
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.split)
    }
}
