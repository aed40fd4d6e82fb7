//! What the readers of all formats share: what they are told, what they give back, and how they word it.

use std::path::Path;
use std::sync::Arc;

use macrl_bundle::config::{Config, Fit};
use macrl_bundle::decode::DecodeLimits;

use super::dataset::Dataset;
use super::memory;

/// What a reader gives back, before the splits are completed.
pub struct Splits {
    /// Training images.
    pub train: Arc<dyn Dataset>,
    /// The data's own evaluation images, where it has some.
    pub test: Option<Arc<dyn Dataset>>,
    /// Class names by label.
    pub classes: Vec<String>,
    /// Files left out and why.
    pub skipped: Vec<(String, String)>,
    /// See [`Data::notes`].
    pub notes: Vec<String>,
    /// See [`Data::left_out`].
    pub left_out: Vec<String>,
}

impl Splits {
    /// Nothing left out.
    pub fn new(train: Arc<dyn Dataset>, test: Option<Arc<dyn Dataset>>, classes: Vec<String>) -> Self {
        Splits { train, test, classes, skipped: Vec::new(), notes: Vec::new(), left_out: Vec::new() }
    }
}

/// How readers bring images into memory.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Images with both edges at most this are centred on black squares of this edge (`data.fit = "pad"`).
    pub pad_to: Option<u32>,
    /// Bytes of decoded pixels that a split may hold.
    pub budget: u64,
    /// What an image may cost (`data.max_pixels`).
    pub limits: DecodeLimits,
    /// Parquet's columns.
    pub columns: Columns,
}

/// Columns of Parquet files that the configuration names; an empty name is for the reader to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// `data.image_column`
    pub image: String,
    /// `data.label_column`
    pub label: String,
}

/// The configuration does not fit the data, or must say which of its parts is meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unclear(pub String);

impl Reading {
    /// Nothing but what is needed to read images.
    pub const fn plain(pad_to: Option<u32>, budget: u64) -> Self {
        let columns = Columns { image: String::new(), label: String::new() };
        Reading { pad_to, budget, limits: DecodeLimits::DEFAULT, columns }
    }

    /// As the configuration says, with a share of this machine's memory.
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
