//! Rows whose images are encoded: held in memory, or read a row group at a time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use image::RgbImage;
use macrl_bundle::decode::{DecodeLimits, announced, decode};
use macrl_bundle::progress::Progress;
use parquet::data_type::ByteArray;
use rayon::prelude::*;

use super::source::Source;
use crate::data::dataset::Dataset;
use crate::data::memory::{Memory, pad};
use crate::data::reading::Reading;

/// Row groups of a large set that are held at once.
const GROUPS_HELD: usize = 8;

/// One row whose image is in memory as it came.
pub(super) struct Encoded {
    pub(super) row: usize,
    pub(super) label: Option<u32>,
    pub(super) bytes: Option<ByteArray>,
}

impl Encoded {
    fn decode(&self, how: &How) -> Result<RgbImage> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        Ok(pad(decode(bytes.data(), &how.limits)?, how.pad_to))
    }

    /// Bytes that the image takes as RGB8, from its header.
    fn decoded_bytes(&self, how: &How) -> Result<u64> {
        let bytes = self.bytes.as_ref().context("the row has no image bytes")?;
        Ok(3 * announced(std::io::Cursor::new(bytes.data()), &how.limits)?)
    }
}

/// How a row is decoded.
#[derive(Clone, Copy)]
pub(super) struct How {
    pad_to: Option<u32>,
    limits: DecodeLimits,
}

impl From<&Reading> for How {
    fn from(reading: &Reading) -> Self {
        How { pad_to: reading.pad_to, limits: reading.limits }
    }
}

/// Decodes all rows where they fit, else keeps them encoded; unreadable ones are listed and keep their number, as they
/// do in [`Groups`].
pub(super) fn hold(
    split: &'static str,
    rows: Vec<Encoded>,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let how = How::from(reading);
    let sizes: Vec<Result<u64>> = rows.par_iter().map(|row| row.decoded_bytes(&how)).collect();
    let name = |row: &Encoded| format!("{split}[{}]", row.row);
    if sizes.iter().flatten().sum::<u64>() > reading.budget {
        let broken = rows.iter().zip(&sizes).filter_map(|(row, size)| Some((row, size.as_ref().err()?)));
        skipped.extend(broken.map(|(row, why)| (name(row), format!("{why:#}"))));
        return Ok(Arc::new(Held { split, rows, how }));
    }
    let progress = Progress::new(format!("reading {split} images"), rows.len());
    let decode = |row: &Encoded| {
        let image = row.decode(&how);
        progress.add(1);
        (name(row), row.label, image)
    };
    let decoded = rows.par_iter().map(decode).collect();
    let memory = Memory::decoded(split, decoded, skipped);
    Ok(if memory.is_unreadable() { Arc::new(Memory::new(split, Vec::new(), Vec::new())) } else { Arc::new(memory) })
}

/// Encoded images in memory, decoded each time they are asked for.
struct Held {
    split: &'static str,
    rows: Vec<Encoded>,
    how: How,
}

impl Dataset for Held {
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

/// Encoded images of one row group.
type Rows = Arc<Vec<Option<ByteArray>>>;

/// A set too large to hold: row groups are read as they are asked for, the last few stay.
///
/// Bounded in memory, and as slow as reading a row group per image where the order is random and groups are large.
pub(super) struct Groups {
    split: &'static str,
    files: Vec<Source>,
    labels: Vec<Option<u32>>,
    /// First row of each (file, group).
    starts: Vec<(usize, usize, usize)>,
    held: Mutex<VecDeque<(usize, Rows)>>,
    how: How,
}

impl Groups {
    pub(super) fn new(split: &'static str, files: Vec<Source>, labels: Vec<Option<u32>>, how: How) -> Self {
        let (mut starts, mut row) = (Vec::new(), 0);
        for (f, file) in files.iter().enumerate() {
            for group in 0..file.file.groups() {
                starts.push((row, f, group));
                row += file.file.rows(group);
            }
        }
        Groups { split, files, labels, starts, held: Mutex::new(VecDeque::new()), how }
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

impl Dataset for Groups {
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
        let row = Encoded { row: index, label: None, bytes };
        row.decode(&self.how).with_context(|| self.name(index)).map(Cow::Owned)
    }

    fn name(&self, index: usize) -> String {
        format!("{}[{index}]", self.split)
    }
}
