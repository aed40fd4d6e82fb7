//! What the readers of all formats share: their settings, their result, and helpers for messages.

use std::path::Path;
use std::sync::Arc;

use macrl_bundle::config::{Config, Fit};
use macrl_bundle::decode::DecodeLimits;

use super::dataset::Dataset;
use super::memory;

/// The result of a reader, before the splits are completed.
pub struct Splits {
    /// The training images.
    pub train: Arc<dyn Dataset>,
    /// The evaluation images of the data itself, where it has some.
    pub test: Option<Arc<dyn Dataset>>,
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Files that could not be read, and why.
    pub skipped: Vec<(String, String)>,
    /// See [`Data::notes`].
    pub notes: Vec<String>,
    /// See [`Data::left_out`].
    pub left_out: Vec<String>,
}

impl Splits {
    /// Splits of which nothing was left out.
    pub fn new(train: Arc<dyn Dataset>, test: Option<Arc<dyn Dataset>>, classes: Vec<String>) -> Self {
        Splits { train, test, classes, skipped: Vec::new(), notes: Vec::new(), left_out: Vec::new() }
    }
}

/// Settings of the readers.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Images with both edges at most this are centred on black squares of this edge (`data.fit = "pad"`).
    pub pad_to: Option<u32>,
    /// Bytes of decoded pixels that a split may keep in memory.
    pub budget: u64,
    /// Limits of one image (`data.max_pixels`).
    pub limits: DecodeLimits,
    /// The columns of Parquet files.
    pub columns: Columns,
}

/// Columns of Parquet files that the configuration names.  The reader chooses a column whose name is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// `data.image_column`: the column with the images.
    pub image: String,
    /// `data.label_column`: the column with the labels.
    pub label: String,
}

/// The configuration does not fit the data, or has to say which part of the data is meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(pub String);

impl Reading {
    /// Settings with default limits and no named columns.
    pub const fn plain(pad_to: Option<u32>, budget: u64) -> Self {
        let columns = Columns { image: String::new(), label: String::new() };
        Reading { pad_to, budget, limits: DecodeLimits::DEFAULT, columns }
    }

    /// The settings of a configuration, with a share of this machine's memory as the budget.
    pub fn from_config(config: &Config) -> Self {
        let pad = config.data.fit == Fit::Pad;
        let columns = Columns { image: config.data.image_column.clone(), label: config.data.label_column.clone() };
        let limits = DecodeLimits::of_pixels(config.data.max_pixels);
        let pad_to = pad.then_some(config.encoder.image_size as u32);
        Reading { columns, limits, ..Reading::plain(pad_to, memory::budget()) }
    }
}

/// `1 image`, `2 images`.
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn without_labels(split: &str, images: usize) -> String {
    format!("the {split} split ({}) has no label that occurs in training, and is not used", count(images, "image"))
}

/// Lines of a small text file beside the data (class names), empty lines left out; `None` where it is missing.
pub(super) fn lines_of(path: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    (!lines.is_empty()).then_some(lines)
}

/// Class names from the first of `files` that exists, else `known`, checked against the labels that occur.
pub(super) fn class_names(dir: &Path, files: &[&str], known: Vec<String>, highest: u32) -> Vec<String> {
    let mut names = files.iter().find_map(|f| lines_of(&dir.join(f))).unwrap_or(known);
    for label in names.len()..=highest as usize {
        names.push(label.to_string());
    }
    names
}
