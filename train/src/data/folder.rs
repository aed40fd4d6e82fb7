//! Folders of images in any format that [`macrl_models::decode`] reads.
//!
//! Three shapes: `train/` beside `val/` or `test/` (ImageNet, Imagenette), class sub-folders, or flat and unlabelled.
//! Sub-folder names are the labels; anything below them belongs to their class.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use image::{ImageReader, RgbImage};
use macrl_models::decode::{DecodeLimits, decode};
use macrl_models::progress::Progress;
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
        if path.is_dir() && !images_below(&path)?.is_empty() {
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
        let files = if folder.is_dir() { images_below(&folder)? } else { Vec::new() };
        ranked.extend(files.into_iter().enumerate().map(|(rank, path)| (rank, Some(label as u32), path)));
    }
    let flat = children(dir)?.into_iter().filter(|p| p.is_file() && is_image(p));
    ranked.extend(flat.map(|path| (usize::MAX, None, path)));
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, label, path)| Entry { path, label }).collect())
}

/// All image files at any depth, sorted.
///
/// # Errors
/// When a folder cannot be listed.
pub fn images_below(dir: &Path) -> Result<Vec<PathBuf>> {
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

/// The files with a readable header, in their order: decoded into memory where they fit the budget, else each time they
/// are asked for.
fn load(
    split: &'static str,
    entries: Vec<Entry>,
    dir: &Path,
    reading: &Reading,
    skipped: &mut Vec<(String, String)>,
) -> Result<Arc<dyn Dataset>> {
    let sizes: Vec<Result<u64>> = counted("looking at", split, &entries, |e| decoded_bytes(&e.path));
    let total: u64 = sizes.iter().flatten().sum();
    let relative = |e: &Entry| e.path.strip_prefix(dir).unwrap_or(&e.path).display().to_string();
    let mut kept = Vec::new();
    for (entry, size) in entries.into_iter().zip(sizes) {
        match size {
            Ok(_) => kept.push(entry),
            Err(why) => skipped.push((relative(&entry), format!("{why:#}"))),
        }
    }
    if total > reading.budget {
        return Ok(Arc::new(Files { entries: kept, root: dir.to_path_buf(), pad_to: reading.pad_to }));
    }
    let decode = |e: &Entry| (relative(e), e.label, decode_file(&e.path, reading.pad_to));
    let decoded = counted("reading", split, &kept, decode);
    let memory = Memory::decoded(split, decoded, skipped);
    Ok(if memory.is_unreadable() { Arc::new(Memory::new(split, Vec::new(), Vec::new())) } else { Arc::new(memory) })
}

/// Does something with every file on all threads, and shows how far it is.
fn counted<T: Send>(doing: &str, split: &str, entries: &[Entry], each: impl Fn(&Entry) -> T + Sync) -> Vec<T> {
    let progress = Progress::new(format!("{doing} {split} images"), entries.len());
    let one = |entry: &Entry| {
        let done = each(entry);
        progress.add(1);
        done
    };
    entries.par_iter().map(one).collect()
}

/// Bytes that an image takes as RGB8, from its header.
fn decoded_bytes(path: &Path) -> Result<u64> {
    let reader = ImageReader::open(path).context("cannot be opened")?;
    let reader = reader.with_guessed_format().context("cannot be read")?;
    // The text of these errors holds their source's already.
    let (width, height) = reader.into_dimensions().map_err(|e| anyhow!(e.to_string()))?;
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

#[cfg(test)]
mod tests {
    use macrl_models::config::Config;

    use super::*;
    use crate::data::{open_with, unpack};

    const READING: Reading = Reading { pad_to: None, budget: u64::MAX };

    fn write(path: PathBuf, shade: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(5, 4, image::Rgb([shade; 3])).save(path).unwrap();
    }

    fn shades(split: &Arc<dyn Dataset>) -> Vec<(Option<u32>, u8)> {
        (0..split.len()).map(|i| (split.label(i), split.image(i).unwrap().get_pixel(0, 0)[0])).collect()
    }

    #[test]
    fn class_folders_are_interleaved_and_damage_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(at("b/1.png"), 11);
        write(at("b/deep/2.bmp"), 12);
        write(at("a/1.PNG"), 1);
        std::fs::write(at("a/broken.jpg"), b"\xff\xd8\xff\xe0 no image").unwrap();
        std::fs::write(at("a/notes.txt"), b"passed over").unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        for budget in [u64::MAX, 0] {
            let splits = read(dir.path(), &Reading { budget, ..READING }).unwrap().unwrap();
            assert_eq!(splits.classes, ["a", "b"]);
            assert_eq!(shades(&splits.train), [(Some(0), 1), (Some(1), 11), (Some(1), 12)], "budget {budget}");
            assert_eq!(splits.skipped.len(), 1);
            assert_eq!(splits.skipped[0].0, "a/broken.jpg");
            assert_eq!(splits.train.name(2), "b/deep/2.bmp");
        }
    }

    #[test]
    fn free_memory_does_not_change_which_number_an_image_has() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for i in 0..12 {
            write(at(&format!("{i:02}.png")), 20 * i);
        }
        // A whole header, and then nothing.
        let whole = std::fs::read(at("03.png")).unwrap();
        std::fs::write(at("03.png"), &whole[..whole.len() - 20]).unwrap();
        let open = |budget| open_with(dir.path(), &Reading { budget, ..READING }, 0).unwrap();
        let (held, streamed) = (open(u64::MAX), open(0));
        assert_eq!(crate::data::identity::identity(&held), crate::data::identity::identity(&streamed));
        assert_eq!((held.skipped.len(), streamed.skipped.len()), (1, 0));
        let config = Config::parse("[train]\nbatch_size = 4\n[encoder]\nimage_size = 8\n", "test", &[]).unwrap();
        let batches = |data: &crate::data::Data| -> Vec<_> {
            let source = crate::loader::Batches::new(data.train.clone(), &config).unwrap();
            (0..6).map(|step| source.make(step).unwrap()).collect()
        };
        assert_eq!(batches(&held), batches(&streamed));
        let unreadable =
            |data: &crate::data::Data| (0..data.train.len()).filter(|i| data.train.image(*i).is_err()).count();
        assert_eq!((unreadable(&held), unreadable(&streamed)), (1, 1));
    }

    #[test]
    fn other_images_are_another_data_set() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        (0..9).for_each(|i| write(at(&format!("{i}.png")), i));
        let identity = || crate::data::identity::identity(&open_with(dir.path(), &READING, 0).unwrap());
        let before = identity();
        assert!(before.starts_with("image folder, 8 training images, 0 classes, digest "), "{before}");
        assert_eq!(before, identity());
        std::fs::rename(at("4.png"), at("4b.png")).unwrap();
        let renamed = identity();
        std::fs::rename(at("4b.png"), at("4.png")).unwrap();
        (0..9).for_each(|i| write(at(&format!("{i}.png")), 100 + i));
        let repainted = identity();
        write(at("a/0.png"), 1);
        assert_eq!(std::collections::BTreeSet::from([before, renamed, repainted, identity()]).len(), 4);
    }

    #[test]
    fn trees_with_splits_share_their_classes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("train/n01440764/x.png"), 1);
        write(dir.path().join("train/zebra/x.png"), 2);
        write(dir.path().join("val/zebra/y.png"), 3);
        let splits = read(dir.path(), &READING).unwrap().unwrap();
        assert_eq!(splits.classes, ["tench", "zebra"]);
        assert_eq!(shades(&splits.test.unwrap()), [(Some(1), 3)]);
        assert_eq!(splits.train.len(), 2);
    }

    #[test]
    fn flat_folders_are_unlabelled_and_a_tenth_is_held_out() {
        let dir = tempfile::tempdir().unwrap();
        (0..25).for_each(|i| write(dir.path().join(format!("{i:02}.png")), i));
        let data = open_with(dir.path(), &READING, 0).unwrap();
        let (train, test) = (shades(&data.train), shades(&data.test.unwrap()));
        assert_eq!((train.len(), test.len(), data.classes.len()), (23, 2, 0));
        assert_eq!(data.notes, ["no test split: 2 of 25 images are held out for evaluation"]);
        let mut all: Vec<u8> = train.iter().chain(&test).map(|s| s.1).collect();
        all.sort_unstable();
        assert_eq!(all, (0..25).collect::<Vec<u8>>());
        assert_eq!(open_with(dir.path(), &READING, 7).unwrap().train.len(), 7);
    }

    #[test]
    fn one_image_is_a_data_set_and_none_readable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("only.png"), 5);
        assert!(open_with(dir.path(), &READING, 0).unwrap().test.is_none());
        std::fs::write(dir.path().join("only.png"), b"nothing").unwrap();
        let message = format!("{:#}", open_with(dir.path(), &READING, 0).err().unwrap());
        assert!(message.contains("none of 1 images is readable; the first, only.png:"), "{message}");
        assert_eq!(message.lines().count(), 1);
    }

    #[test]
    fn wrong_folders_get_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let message = |path: &Path| open_with(path, &READING, 0).err().unwrap().to_string();
        assert!(message(dir.path()).ends_with("found nothing"));
        for name in ["a.txt", "b.txt", "c.txt", "d.txt", "e.txt"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let found = message(dir.path());
        assert!(
            found.contains("looked for data_batch_1.bin") && found.ends_with("found a.txt, b.txt, c.txt and 2 more")
        );
        assert!(message(&dir.path().join("a.txt")).ends_with("a.txt is a file"));
        assert!(message(&dir.path().join("gone")).ends_with("gone does not exist"));
    }

    #[test]
    fn unpacked_images_come_back_as_they_were() {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (i, class) in ["a/b", "c"].iter().enumerate() {
            (0..3).for_each(|k| write(dir.path().join(format!("{class}/{k}.png")), (10 * i + k) as u8));
        }
        let data = read(dir.path(), &READING).unwrap().unwrap();
        let classes = vec!["a/b".to_string(), "c".into()];
        assert_eq!(unpack::unpack(data.train.as_ref(), &classes, 2, out.path()).unwrap(), (4, vec![]));
        let back = read(out.path(), &READING).unwrap().unwrap();
        assert_eq!(back.classes, ["a_b", "c"]);
        assert_eq!(shades(&back.train), [(Some(0), 0), (Some(1), 10), (Some(0), 1), (Some(1), 11)]);
    }
}
