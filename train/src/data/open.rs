//! A folder -> the data set in it, whichever format it has.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use macrl_bundle::config::Config;
use macrl_bundle::folder::{READ, Reason, is_system, text};

use super::dataset::{Data, Dataset};
use super::reading::{Reading, Splits, Unclear, count, without_labels};
use super::{cifar, folder, idx, parquet, split, tiny};

/// A format: its name, the files that it looks for, and its reader, which gives `None` where a folder has another format.
struct Format {
    name: &'static str,
    looks_for: &'static str,
    read: fn(&Path, &Reading) -> Result<Option<Splits>>,
}

/// The formats in the order in which they are tried; folders of images come last, since nearly any folder could be one.
const FORMATS: &[Format] = &[
    Format { name: "CIFAR-10 binary", looks_for: "data_batch_1.bin (CIFAR-10)", read: cifar::read_10 },
    Format { name: "CIFAR-100 binary", looks_for: "train.bin (CIFAR-100)", read: cifar::read_100 },
    Format { name: "IDX", looks_for: "train-images-idx3-ubyte[.gz] (MNIST style)", read: idx::read },
    Format { name: "Tiny-ImageNet", looks_for: "wnids.txt (Tiny-ImageNet)", read: tiny::read },
    Format { name: "Parquet", looks_for: "*.parquet", read: parquet::read },
    Format { name: "image folder", looks_for: "image files", read: folder::read },
];

/// Opens the data set in `dir`, whichever format it has, and completes its splits.
///
/// # Errors
/// When the folder is missing, holds none of the known formats, or its files are damaged.
///
/// # Examples
/// ```
/// use macrl_bundle::Config;
///
/// // Two classes of ten images each: their folders' names are the labels, and a tenth is held out.
/// let dir = tempfile::tempdir()?;
/// for class in ["cat", "dog"] {
///     std::fs::create_dir(dir.path().join(class))?;
///     for image in 0..10 {
///         std::fs::write(dir.path().join(format!("{class}/{image}.ppm")), "P3 1 1 255 9 8 7")?;
///     }
/// }
/// let data = macrl_train::data::open(dir.path(), &Config::default())?;
/// assert_eq!((data.format, data.train.len(), data.test.map(|test| test.len())), ("image folder", 18, Some(2)));
/// assert_eq!(data.classes, ["cat", "dog"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open(dir: &Path, config: &Config) -> Result<Data> {
    open_with(dir, &Reading::from_config(config), config.data.limit)
}

/// [`open`] without a configuration; `limit` 0 keeps all training images.
///
/// # Errors
/// When the folder is missing, holds none of the known formats, or its files are damaged.
pub fn open_with(dir: &Path, reading: &Reading, limit: usize) -> Result<Data> {
    if !dir.exists() {
        bail!("the data folder {} does not exist", text(dir));
    }
    if !dir.is_dir() {
        bail!("--data takes a folder, and {} is a file", text(dir));
    }
    let around = around(dir);
    for format in FORMATS {
        for dir in &around {
            let read = (format.read)(dir, reading).with_context(|| format!("{} in {}", format.name, text(dir)))?;
            if let Some(splits) = read {
                if format.name != "Parquet" && reading.columns != Reading::plain(None, 0).columns {
                    let keys = "`data.image_column` and `data.label_column` are for Parquet";
                    bail!(Unclear(format!("{keys}, and {} holds: {}", text(dir), format.name)));
                }
                return complete(splits, format.name, limit);
            }
        }
    }
    bail!("{}", nothing_found(dir))
}

/// Folders that are tried: the named one, and, as long as a folder holds nothing but one folder, that one too.
fn around(dir: &Path) -> Vec<PathBuf> {
    const DEPTH: usize = 4;
    let mut tried = vec![dir.to_path_buf()];
    while let Some(last) = tried.last().filter(|_| tried.len() <= DEPTH) {
        let entries = std::fs::read_dir(last).into_iter().flatten().flatten();
        let own = entries.filter(|e| !is_system(&e.file_name()) && e.file_type().is_ok_and(|t| t.is_dir()));
        let mut folders = own.map(|e| e.path());
        let (Some(only), None) = (folders.next(), folders.next()) else { break };
        tried.push(only);
    }
    tried
}

/// Holds out a test split where the data has none that can be used, and applies the limit.
fn complete(splits: Splits, format: &'static str, limit: usize) -> Result<Data> {
    let Splits { mut train, mut test, classes, skipped, mut notes, mut left_out } = splits;
    if train.is_empty() {
        bail!("{format}: the training split has no image");
    }
    if let Some(unusable) = test.take_if(|test| !test.is_empty() && !is_usable(train.as_ref(), test.as_ref())) {
        notes.push(without_labels("test", unusable.len()));
        left_out.push(format!("{} of the test split (no labels)", count(unusable.len(), "image")));
    }
    if test.as_ref().is_none_or(|t| t.is_empty()) {
        let (kept, held) = split::hold_out(&train);
        if let Some(held) = &held {
            let why = if notes.is_empty() { "no test split: " } else { "" };
            notes.push(format!("{why}{} of {} images are held out for evaluation", held.len(), train.len()));
        }
        (train, test) = (kept, held);
    }
    notes.extend(label_notes(train.as_ref(), test.as_deref(), &classes));
    if limit > 0 && limit < train.len() {
        train = Arc::new(split::Subset::new(train, (0..limit as u32).collect()));
    }
    Ok(Data { train, test, classes, format, skipped, notes, left_out })
}

/// Whether a test split can be used: it has an image of a training class, or the training images have no labels.
fn is_usable(train: &dyn Dataset, test: &dyn Dataset) -> bool {
    let trained: HashSet<u32> = (0..train.len()).filter_map(|i| train.label(i)).collect();
    trained.is_empty() || (0..test.len()).filter_map(|i| test.label(i)).any(|label| trained.contains(&label))
}

/// Notes about labels: training images without a label, and test images of classes without training images.
fn label_notes(train: &dyn Dataset, test: Option<&dyn Dataset>, classes: &[String]) -> Vec<String> {
    let trained: HashSet<u32> = (0..train.len()).filter_map(|i| train.label(i)).collect();
    if trained.is_empty() {
        return Vec::new();
    }
    let mut notes = Vec::new();
    let unlabelled = (0..train.len()).filter(|i| train.label(*i).is_none()).count();
    if unlabelled > 0 {
        notes.push(format!("{unlabelled} of {} training images have no label", train.len()));
    }
    let tested = test.into_iter().flat_map(|test| (0..test.len()).filter_map(|i| test.label(i)));
    let strange: Vec<u32> = tested.filter(|label| !trained.contains(label)).collect();
    if let Some(first) = strange.first() {
        let name = classes.get(*first as usize).map_or("", String::as_str);
        let of = test.map_or(0, |test| test.len());
        let dots = if strange.iter().any(|label| label != first) { ", ..." } else { "" };
        notes.push(format!(
            "{} of {of} test images are of classes that no training image has ({name}{dots})",
            strange.len()
        ));
    }
    notes
}

/// The error message: what was looked for and what was found.
fn nothing_found(dir: &Path) -> String {
    let looked = FORMATS.iter().map(|f| f.looks_for).collect::<Vec<_>>().join(", ");
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    found.sort();
    let entries = found.len();
    let found = match entries {
        0 => "nothing".to_string(),
        1..=4 => found.join(", "),
        _ => format!("{} and {} more", found[..3].join(", "), entries - 3),
    };
    let images = macrl_bundle::folder::walk(dir).map(|walk| walk.summary).unwrap_or_default();
    let unread: Vec<String> = images.iter().filter_map(unread).collect();
    if !unread.is_empty() {
        let (unread, dir) = (unread.join(", "), text(dir));
        return format!("no images that are read in {dir}: found {unread}; the formats that are read are {READ}");
    }
    format!("no data set in {}: looked for {looked}; found {found}", text(dir))
}

/// Number of image files in a format that is not read, in words.
fn unread((reason, files, _): (Reason, usize, &[String])) -> Option<String> {
    let Reason::NotRead(format) = reason else { return None };
    Some(count(files, &format!("{} file", format.name())))
}
