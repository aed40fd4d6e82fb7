//! What the readers of all formats share: their settings, their result, and helpers for messages.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use macrl_bundle::config::{Config, Fit, ViewConfig};
use macrl_bundle::decode::{DecodeError, DecodeLimits, decode_to};
use macrl_bundle::preprocess::Preprocess;

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
    /// Pixels that the shorter edge of a large JPEG must keep when it is decoded; `None`: all (`data.exact_decoding`).
    pub shortest: Option<u32>,
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
        Reading { pad_to, budget, shortest: None, limits: DecodeLimits::DEFAULT, columns }
    }

    /// The settings of a configuration, with a share of this machine's memory as the budget.
    pub fn from_config(config: &Config) -> Self {
        let pad = config.data.fit == Fit::Pad;
        let columns = Columns { image: config.data.image_column.clone(), label: config.data.label_column.clone() };
        let limits = DecodeLimits::of_pixels(config.data.max_pixels);
        let pad_to = pad.then_some(config.encoder.image_size as u32);
        Reading { columns, limits, shortest: shortest(config), ..Reading::plain(pad_to, memory::budget()) }
    }
}

/// How one image is decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoding {
    pad_to: Option<u32>,
    shortest: Option<u32>,
    limits: DecodeLimits,
}

impl From<&Reading> for Decoding {
    fn from(reading: &Reading) -> Self {
        Decoding { pad_to: reading.pad_to, shortest: reading.shortest, limits: reading.limits }
    }
}

impl Decoding {
    /// Pixels of an image file's bytes.
    ///
    /// # Errors
    /// What keeps them from being decoded.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        Ok(memory::pad(decode_to(bytes, &self.limits, self.shortest)?, self.pad_to))
    }

    /// Limits of one image.
    pub(super) fn limits(&self) -> &DecodeLimits {
        &self.limits
    }
}

/// As many pixels as the evaluation transform asks for, and as the smallest crop needs for a view of `encoder.image_size`.
fn shortest(config: &Config) -> Option<u32> {
    let evaluated = Preprocess::from_config(config).shortest()?;
    let crop = |view: &ViewConfig| {
        let narrow = view.crop_ratio[0].min(1.0 / view.crop_ratio[1]);
        // A crop of this part of the area and this ratio has at least so much of the image's shorter edge.
        (view.crop_scale[0] * narrow).sqrt()
    };
    let smallest = crop(&config.views.strong).min(crop(&config.views.weak)).max(f64::MIN_POSITIVE);
    let viewed = (config.encoder.image_size as f64 / smallest).ceil().min(f64::from(u32::MAX)) as u32;
    Some(evaluated.max(viewed))
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
    let text = macrl_bundle::regular::read_text(path).ok()?;
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
