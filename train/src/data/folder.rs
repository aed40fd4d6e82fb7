//! Folders of images in any format that [`macrl_bundle::decode`] reads.
//!
//! [`macrl_bundle::folder`] decides which files are images, and which split and class each belongs to; the server uses it too.
//! This module chooses the evaluation split and reads images into memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use macrl_bundle::decode::{DecodeLimits, announced};
use macrl_bundle::folder::{Arrangement, Excluded, LabelFrom, Split, Walk, arrange, text, walk};
use macrl_bundle::progress::Progress;
use macrl_bundle::regular;
use rayon::prelude::*;

use super::dataset::Dataset;
use super::files::{Entry, Files, decode_file};
use super::memory::Memory;
use super::reading::{Reading, Splits, count, without_labels};

/// Reads a tree of images; `None` where there is none.
///
/// # Errors
/// When the folder cannot be listed, all its images are for evaluation, or not one image is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let found = listed(dir)?;
    if found.images.is_empty() {
        return Ok(None);
    }
    let layout = arrange(&found.images, LabelFrom::First);
    let parts = Parts::of(&layout, &found)?;
    let labels = parts.labels(&layout);
    let entries =
        |split| interleaved(&found, &parts.of[&split], |i| layout.assignments[i].class.and_then(|c| labels.get(&c)));
    let (train, test) = (entries(Split::Train), parts.held.map(entries));
    let classes = labels.keys().filter_map(|class| layout.classes.get(*class as usize).cloned()).collect();
    let mut splits = splits(train, test, classes, dir, reading)?;
    splits.notes = parts.notes;
    splits.left_out = parts.left_out;
    splits.left_out.extend(layout.excluded.iter().map(beside));
    splits.left_out.extend(said(&found));
    Ok(Some(splits))
}

/// The files below a folder.
///
/// # Errors
/// When it cannot be listed.
pub fn listed(dir: &Path) -> Result<Walk> {
    walk(dir).with_context(|| format!("cannot list {}", text(dir)))
}

/// What was left out, in words; `None` where nothing was.
pub fn said(found: &Walk) -> Option<String> {
    (!found.summary.is_empty()).then(|| found.summary.to_string())
}

fn beside(excluded: &Excluded) -> String {
    let Excluded { folder, images } = excluded;
    let images = count(*images, "image");
    match folder {
        Some(folder) => format!("{images} in {folder} (neither a split nor a class)"),
        None => format!("{images} beside the splits"),
    }
}

/// The images of each split, and which split is for evaluation.
struct Parts {
    /// Indices of the images of each split; there is always a training split.
    of: BTreeMap<Split, Vec<usize>>,
    held: Option<Split>,
    notes: Vec<String>,
    left_out: Vec<String>,
}

impl Parts {
    /// Evaluation uses the validation split, or else the test split; in either case only if it has a class that was trained on.
    fn of(layout: &Arrangement, walked: &Walk) -> Result<Self> {
        let mut of: BTreeMap<Split, Vec<usize>> = BTreeMap::new();
        for (number, place) in layout.assignments.iter().enumerate().filter(|(_, place)| !place.excluded) {
            of.entry(place.split.unwrap_or(Split::Train)).or_default().push(number);
        }
        let classes = |split: Split| -> BTreeSet<u32> {
            of.get(&split).into_iter().flatten().filter_map(|i| layout.assignments[*i].class).collect()
        };
        let training = classes(Split::Train);
        if !of.contains_key(&Split::Train) {
            let found: Vec<String> = of
                .iter()
                .map(|(split, images)| format!("{} of a {} split", count(images.len(), "image"), split.name()))
                .collect();
            let left_out = said(walked).map(|said| format!("; left out: {said}")).unwrap_or_default();
            bail!(
                "no training images: found {}; to train on them, give that split's folder{left_out}",
                found.join(", ")
            );
        }
        let (mut held, mut notes, mut left_out) = (None, Vec::new(), Vec::new());
        for split in [Split::Validation, Split::Test] {
            let Some(images) = of.get(&split) else { continue };
            let (name, images) = (split.name(), images.len());
            if let Some(used) = held {
                left_out.push(format!(
                    "{} of the {name} split ({} is used)",
                    count(images, "image"),
                    Split::name(used)
                ));
            } else if training.is_empty() || !training.is_disjoint(&classes(split)) {
                held = Some(split);
            } else {
                notes.push(without_labels(name, images));
                left_out.push(format!("{} of the {name} split (no labels)", count(images, "image")));
            }
        }
        Ok(Parts { of, held, notes, left_out })
    }

    /// The label of each class that occurs, by its number in the layout.
    fn labels(&self, layout: &Arrangement) -> BTreeMap<u32, u32> {
        let used =
            [Some(Split::Train), self.held].into_iter().flatten().filter_map(|split| self.of.get(&split)).flatten();
        let classes: BTreeSet<u32> = used.filter_map(|i| layout.assignments[*i].class).collect();
        classes.into_iter().zip(0..).collect()
    }
}

/// Orders the images by taking the classes in turn (first of each, second of each, ...), so that the first n are spread over
/// the classes.  Images without a class come last.
fn interleaved<'l>(found: &Walk, numbers: &[usize], label: impl Fn(usize) -> Option<&'l u32>) -> Vec<Entry> {
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    let ranked = numbers.iter().map(|i| {
        let label = label(*i).copied();
        let rank = label.map_or(usize::MAX, |label| {
            let next = seen.entry(label).or_default();
            *next += 1;
            *next
        });
        (rank, label, *i)
    });
    // The images are in the order of their paths.
    let mut ranked: Vec<(usize, Option<u32>, usize)> = ranked.collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, label, i)| Entry { path: found.images[i].path.clone(), label }).collect()
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
    Ok(Splits { skipped, ..Splits::new(train, test, classes) })
}

/// Opens the files with a readable header.  They are decoded into memory where they fit the budget at their full size, else
/// when they are used.
fn load(
    split: &'static str,
    entries: Vec<Entry>,
    dir: &Path,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let sizes: Vec<Result<u64>> = counted("looking at", split, &entries, |e| decoded_bytes(&e.path, &reading.limits));
    let total: u64 = sizes.iter().flatten().sum();
    let relative = |e: &Entry| text(e.path.strip_prefix(dir).unwrap_or(&e.path));
    let mut kept = Vec::new();
    for (entry, size) in entries.into_iter().zip(sizes) {
        match size {
            Ok(_) => kept.push(entry),
            Err(why) => skipped.push((relative(&entry), format!("{why:#}"))),
        }
    }
    if total > reading.budget {
        return Ok(Arc::new(Files::new(kept, dir, reading)));
    }
    let decode = |e: &Entry| (relative(e), e.label, decode_file(&e.path, reading.into()));
    let decoded = counted("reading", split, &kept, decode);
    let memory = Memory::decoded(split, decoded, skipped);
    Ok(if memory.is_unreadable() { Arc::new(Memory::new(split, Vec::new(), Vec::new())) } else { Arc::new(memory) })
}

/// Calls `each` for every file, on all threads, and shows the progress.
fn counted<T: Send>(doing: &str, split: &str, entries: &[Entry], each: impl Fn(&Entry) -> T + Sync) -> Vec<T> {
    let progress = Progress::new(format!("{doing} {split} images"), entries.len());
    let one = |entry: &Entry| {
        let done = each(entry);
        progress.add(1);
        done
    };
    entries.par_iter().map(one).collect()
}

/// Bytes of an image as RGB8, from its header.
fn decoded_bytes(path: &Path, limits: &DecodeLimits) -> Result<u64> {
    let file = regular::open(path).context("cannot be opened")?;
    Ok(3 * announced(BufReader::new(file), limits)?)
}

#[cfg(test)]
mod tests;
