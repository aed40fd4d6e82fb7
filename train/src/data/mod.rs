//! Images on disk -> two splits behind one trait, whatever the format.
//!
//! One file per format; [`open`] recognises which one a folder holds.  Small sets are decoded once and held as u8
//! ([`memory`]), large ones are decoded each time they are asked for ([`folder`]).

pub mod cifar;
pub mod folder;
pub mod identity;
pub mod idx;
pub mod memory;
pub mod names;
pub mod parquet;
pub mod split;
pub mod tiny;
pub mod unpack;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use image::RgbImage;
use macrl_models::config::{Config, Fit};

/// One split of a data set.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of image `index`, an index into [`Data::classes`]; `None` where the data has no label.
    fn label(&self, index: usize) -> Option<u32>;

    /// Pixels of image `index`: u8, row-major, R G B interleaved, any size.
    ///
    /// # Errors
    /// When its file cannot be read or decoded.
    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>>;

    /// What messages call image `index`: its file, or `train[17]`.
    fn name(&self, index: usize) -> String;
}

/// A data set, ready to train on.
pub struct Data {
    /// The training split, cut to `data.limit`.
    pub train: Arc<dyn Dataset>,
    /// The split that evaluation uses; `None` where there is nothing to hold out (a single image).
    pub test: Option<Arc<dyn Dataset>>,
    /// Class names by label; empty where nothing is labelled.
    pub classes: Vec<String>,
    /// What was recognised, for messages.
    pub format: &'static str,
    /// Files left out and why.
    pub skipped: Vec<(String, String)>,
    /// What a user should know about how the splits came about; one sentence each.
    pub notes: Vec<String>,
}

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
}

/// How readers bring images into memory.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Images with both edges at most this are centred on black squares of this edge (`data.fit = "pad"`).
    pub pad_to: Option<u32>,
    /// Bytes of decoded pixels that a split may hold.
    pub budget: u64,
}

impl Reading {
    /// As the configuration says, with a share of this machine's memory.
    pub fn from_config(config: &Config) -> Self {
        let pad = config.data.fit == Fit::Pad;
        Reading { pad_to: pad.then_some(config.encoder.image_size as u32), budget: memory::budget() }
    }
}

/// A format: its name, what it looks for, whether a folder holds it, and its reader.
struct Format {
    name: &'static str,
    looks_for: &'static str,
    read: fn(&Path, &Reading) -> Result<Option<Splits>>,
}

/// In the order they are tried: the specific ones before folders of images, which nearly anything could be.
const FORMATS: &[Format] = &[
    Format { name: "CIFAR-10 binary", looks_for: "data_batch_1.bin (CIFAR-10)", read: cifar::read_10 },
    Format { name: "CIFAR-100 binary", looks_for: "train.bin (CIFAR-100)", read: cifar::read_100 },
    Format { name: "IDX", looks_for: "train-images-idx3-ubyte[.gz] (MNIST style)", read: idx::read },
    Format { name: "Tiny-ImageNet", looks_for: "wnids.txt (Tiny-ImageNet)", read: tiny::read },
    Format { name: "Parquet", looks_for: "train*.parquet", read: parquet::read },
    Format { name: "image folder", looks_for: "image files", read: folder::read },
];

/// Opens the data set in `dir`, whichever format it has, and completes its splits.
///
/// # Errors
/// When the folder is missing, holds none of the known formats, or its files are damaged.
pub fn open(dir: &Path, config: &Config) -> Result<Data> {
    open_with(dir, &Reading::from_config(config), config.data.limit)
}

/// [`open`] without a configuration; `limit` 0 keeps all training images.
///
/// # Errors
/// As [`open`].
pub fn open_with(dir: &Path, reading: &Reading, limit: usize) -> Result<Data> {
    if !dir.exists() {
        bail!("the data folder {} does not exist", dir.display());
    }
    if !dir.is_dir() {
        bail!("--data takes a folder, and {} is a file", dir.display());
    }
    for format in FORMATS {
        let read = (format.read)(dir, reading).with_context(|| format!("{} in {}", format.name, dir.display()))?;
        if let Some(splits) = read {
            return complete(splits, format.name, limit);
        }
    }
    bail!("{}", nothing_found(dir))
}

/// Holds out a test split where there is none and applies the limit.
fn complete(splits: Splits, format: &'static str, limit: usize) -> Result<Data> {
    let Splits { mut train, mut test, classes, skipped } = splits;
    let mut notes = Vec::new();
    if train.is_empty() {
        bail!("{format}: the training split has no image");
    }
    if test.as_ref().is_none_or(|t| t.is_empty()) {
        let (kept, held) = split::hold_out(&train);
        if let Some(held) = &held {
            notes.push(format!("no test split: {} of {} images are held out for evaluation", held.len(), train.len()));
        }
        (train, test) = (kept, held);
    }
    if limit > 0 && limit < train.len() {
        train = Arc::new(split::Subset::new(train, (0..limit as u32).collect()));
    }
    Ok(Data { train, test, classes, format, skipped, notes })
}

/// One sentence: what was looked for, what was found.
fn nothing_found(dir: &Path) -> String {
    let looked = FORMATS.iter().map(|f| f.looks_for).collect::<Vec<_>>().join(", ");
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    found.sort();
    let count = found.len();
    let found = match count {
        0 => "nothing".to_string(),
        1..=4 => found.join(", "),
        _ => format!("{} and {} more", found[..3].join(", "), count - 3),
    };
    format!("no data set in {}: looked for {looked}; found {found}", dir.display())
}

/// Lines of a small text file beside the data (class names), empty lines left out; `None` where it is missing.
fn lines_of(path: &Path) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    (!lines.is_empty()).then_some(lines)
}

/// Class names from the first of `files` that exists, else `known`, checked against the labels that occur.
fn class_names(dir: &Path, files: &[&str], known: Vec<String>, highest: u32) -> Vec<String> {
    let mut names = files.iter().find_map(|f| lines_of(&dir.join(f))).unwrap_or(known);
    for label in names.len()..=highest as usize {
        names.push(label.to_string());
    }
    names
}
