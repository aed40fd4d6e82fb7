//! Folders of images in any format that [`macrl_models::decode`] reads.
//!
//! Three shapes: `train/` beside `val/` or `test/` (ImageNet, Imagenette), class sub-folders, or flat and unlabelled.
//! Sub-folder names are the labels; anything below them belongs to their class.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use image::{ImageReader, RgbImage};
use macrl_models::decode::{DecodeLimits, decode};
use rayon::prelude::*;

use super::memory::{Memory, pad};
use super::{Dataset, Reading, Splits, names};

/// Endings of image files; others are passed over in silence (a folder may hold notes and lists too).
const ENDINGS: [&str; 14] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"];
/// Names of the evaluation split beside `train`, the first that exists counts.
const TEST_FOLDERS: [&str; 4] = ["val", "validation", "test", "valid"];

/// One image file with its class.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// Index into the class names.
    pub label: Option<u32>,
}

/// Reads a tree of images; `None` where there is none.
///
/// # Errors
/// When a folder cannot be listed, or not one image is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let train = dir.join("train");
    if !train.is_dir() {
        let classes = class_folders(dir)?;
        return of_entries(list(dir, &classes)?, None, &classes, dir, reading);
    }
    let test = TEST_FOLDERS.iter().map(|n| dir.join(n)).find(|d| d.is_dir());
    let mut classes = class_folders(&train)?;
    if let Some(test) = &test {
        classes.extend(class_folders(test)?);
        classes.sort();
        classes.dedup();
    }
    let entries = list(&train, &classes)?;
    let held = test.map(|t| list(&t, &classes)).transpose()?;
    of_entries(entries, held, &classes, dir, reading)
}

fn of_entries(
    train: Vec<Entry>,
    test: Option<Vec<Entry>>,
    classes: &[String],
    dir: &Path,
    reading: &Reading,
) -> Result<Option<Splits>> {
    if train.is_empty() {
        return Ok(None);
    }
    let classes = classes.iter().map(|c| names::of_folder(c)).collect();
    splits(train, test, classes, dir, reading).map(Some)
}

/// Lists of files -> splits; shared by all formats that are lists of files.
///
/// # Errors
/// When not one training image is readable.
pub fn splits(
    train: Vec<Entry>,
    test: Option<Vec<Entry>>,
    classes: Vec<String>,
    dir: &Path,
    reading: &Reading,
) -> Result<Splits> {
    let mut skipped = Vec::new();
    let (train, count) = (load("train", train, dir, reading, &mut skipped)?, skipped.len());
    if train.is_empty() {
        let (file, why) = skipped.first().cloned().unwrap_or_default();
        bail!("none of {count} images is readable; the first, {file}: {why}");
    }
    let test = match test {
        Some(entries) if !entries.is_empty() => Some(load("test", entries, dir, reading, &mut skipped)?),
        _ => None,
    };
    Ok(Splits { train, test, classes, skipped })
}

/// Names of the sub-folders that hold images, sorted.
fn class_folders(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in children(dir)? {
        if path.is_dir() && !files_below(&path)?.is_empty() {
            found.push(name_of(&path));
        }
    }
    found.sort();
    Ok(found)
}

/// Image files of a split: those of the classes in turn (first of each, second of each, ...), so that the first n of
/// them are spread over the classes; then those without a class.
fn list(dir: &Path, classes: &[String]) -> Result<Vec<Entry>> {
    let mut ranked = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let folder = dir.join(class);
        let files = if folder.is_dir() { files_below(&folder)? } else { Vec::new() };
        ranked.extend(files.into_iter().enumerate().map(|(rank, path)| (rank, Some(label as u32), path)));
    }
    let flat = children(dir)?.into_iter().filter(|p| p.is_file() && is_image(p));
    ranked.extend(flat.map(|path| (usize::MAX, None, path)));
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, label, path)| Entry { path, label }).collect())
}

/// All image files at any depth, sorted.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in children(&folder)? {
            match path.is_dir() {
                // A link to a folder may lead back up: it is not followed.
                true if !path.is_symlink() => folders.push(path),
                false if is_image(&path) => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What a folder holds, hidden things left out, sorted.
fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths: std::io::Result<Vec<PathBuf>> = list.map(|entry| entry.map(|e| e.path())).collect();
    let mut paths = paths.with_context(|| format!("cannot list {}", dir.display()))?;
    paths.retain(|p| !name_of(p).starts_with('.'));
    paths.sort();
    Ok(paths)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

/// Decodes all files into memory where they fit the budget, else keeps the list of those with a readable header.
fn load(
    split: &'static str,
    entries: Vec<Entry>,
    dir: &Path,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let sizes: Vec<Result<u64>> = entries.par_iter().map(|e| decoded_bytes(&e.path)).collect();
    let total: u64 = sizes.iter().flatten().sum();
    let relative = |e: &Entry| e.path.strip_prefix(dir).unwrap_or(&e.path).display().to_string();
    if total > reading.budget {
        let mut kept = Vec::new();
        for (entry, size) in entries.into_iter().zip(sizes) {
            match size {
                Ok(_) => kept.push(entry),
                Err(why) => skipped.push((relative(&entry), format!("{why:#}"))),
            }
        }
        return Ok(Arc::new(Files { entries: kept, root: dir.to_path_buf(), pad_to: reading.pad_to }));
    }
    let decoded: Vec<Result<RgbImage>> = entries.par_iter().map(|e| decode_file(&e.path, reading.pad_to)).collect();
    let (mut images, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, image) in entries.iter().zip(decoded) {
        match image {
            Ok(image) => {
                images.push(image);
                labels.push(entry.label);
                names.push(relative(entry));
            }
            Err(why) => skipped.push((relative(entry), format!("{why:#}"))),
        }
    }
    Ok(Arc::new(Memory::named(split, images, labels, names)))
}

/// Bytes that an image takes as RGB8, from its header.
fn decoded_bytes(path: &Path) -> Result<u64> {
    let reader = ImageReader::open(path).context("cannot be opened")?;
    let (width, height) = reader.with_guessed_format().context("cannot be read")?.into_dimensions()?;
    Ok(3 * u64::from(width) * u64::from(height))
}

fn decode_file(path: &Path, pad_to: Option<u32>) -> Result<RgbImage> {
    let bytes = std::fs::read(path).context("cannot be read")?;
    Ok(pad(decode(&bytes, &DecodeLimits::default())?, pad_to))
}

/// Images that are decoded each time they are asked for.
struct Files {
    entries: Vec<Entry>,
    root: PathBuf,
    pad_to: Option<u32>,
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.entries.get(index)?.label
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let entry = self.entries.get(index).with_context(|| format!("no image {index}"))?;
        let image = decode_file(&entry.path, self.pad_to).with_context(|| entry.path.display().to_string())?;
        Ok(Cow::Owned(image))
    }

    fn name(&self, index: usize) -> String {
        let path = self.entries.get(index).map(|e| e.path.as_path()).unwrap_or(Path::new(""));
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}
