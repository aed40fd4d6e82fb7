//! Tiny-ImageNet's official tree (Stanford CS231N).
//!
//! `wnids.txt` orders the classes, `words.txt` names them; `train/WNID/images/*.JPEG`; `val/images/*.JPEG` with their
//! classes in `val/val_annotations.txt` (tab-separated: file, WNID, box).  Many have moved the validation images into
//! class folders (`val/WNID/*.JPEG`, with or without `images/`): these are found too.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use macrl_bundle::folder::{Reason, Walk};

use super::files::Entry;
use super::folder::{listed, said, splits};
use super::reading::{Reading, Splits, count, lines_of};

/// Reads the tree that holds `wnids.txt`; `None` where there is none.
///
/// # Errors
/// When the lists do not fit the folders, or no training image is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let Some(numbers) = lines_of(&dir.join("wnids.txt")) else { return Ok(None) };
    let words = words(dir);
    let classes = numbers.iter().map(|n| words.get(n).unwrap_or(n).clone()).collect();
    let mut tree = Tree::of(listed(dir)?, &numbers);
    let train = tree.training(&numbers)?;
    let test = tree.validation(dir, &numbers)?;
    let mut splits = splits(train, test, classes, dir, reading)?;
    splits.left_out = tree.left_out();
    Ok(Some(splits))
}

/// WordNet number -> the first of its words.
fn words(dir: &Path) -> HashMap<String, String> {
    let lines = lines_of(&dir.join("words.txt")).unwrap_or_default();
    let pair = |line: &String| {
        let (number, words) = line.split_once('\t')?;
        Some((number.to_string(), words.split(',').next()?.trim().to_string()))
    };
    lines.iter().filter_map(pair).collect()
}

/// The images by folder.
struct Tree {
    walk: Walk,
    /// Below `train/WNID`, by class.
    train: Vec<Vec<PathBuf>>,
    /// Below `val`, with the class of their folder.
    validation: Vec<(PathBuf, Option<u32>)>,
    test: usize,
    elsewhere: usize,
}

impl Tree {
    fn of(mut walk: Walk, numbers: &[String]) -> Self {
        // The lists of words, classes and boxes.
        walk.summary.forget(Reason::Other);
        let labels: HashMap<&str, u32> = numbers.iter().map(String::as_str).zip(0..).collect();
        let (mut train, mut validation) = (vec![Vec::new(); numbers.len()], Vec::new());
        let (mut test, mut elsewhere) = (0, 0);
        for image in &walk.images {
            let parts: Vec<&OsStr> = image.relative().iter().collect();
            let label = parts.get(1).and_then(|name| labels.get(name.to_str()?)).copied();
            match (parts.first().and_then(|name| name.to_str()), label) {
                (Some("train"), Some(label)) => train[label as usize].push(image.path.clone()),
                (Some("val"), label) => validation.push((image.path.clone(), label)),
                (Some("test"), _) => test += 1,
                _ => elsewhere += 1,
            }
        }
        Tree { walk, train, validation, test, elsewhere }
    }

    /// The training images, taking the classes in turn, so that the first n are spread over them.
    fn training(&mut self, numbers: &[String]) -> Result<Vec<Entry>> {
        if let Some((missing, _)) = numbers.iter().zip(&self.train).find(|(_, files)| files.is_empty()) {
            bail!("wnids.txt names {missing}, and train/{missing} does not exist or holds no images");
        }
        let ranked = self
            .train
            .drain(..)
            .zip(0..)
            .flat_map(|(files, label)| files.into_iter().enumerate().map(move |(rank, path)| (rank, label, path)));
        let mut ranked: Vec<(usize, u32, PathBuf)> = ranked.collect();
        ranked.sort();
        Ok(ranked.into_iter().map(|(_, label, path)| Entry { path, label: Some(label) }).collect())
    }

    /// The validation images: those that the annotations name, in their order, then those in class folders.
    fn validation(&mut self, dir: &Path, numbers: &[String]) -> Result<Option<Vec<Entry>>> {
        let mut by_name: HashMap<OsString, PathBuf> = HashMap::new();
        for (path, _) in &self.validation {
            by_name.entry(path.file_name().unwrap_or_default().into()).or_insert_with(|| path.clone());
        }
        // A missing file is reported when it is loaded.
        let annotated = annotations(&dir.join("val/val_annotations.txt"), numbers)?.into_iter().map(|(file, label)| {
            let path = by_name.get(OsStr::new(&file)).cloned().unwrap_or_else(|| dir.join("val/images").join(&file));
            Entry { path, label: Some(label) }
        });
        let mut entries: Vec<Entry> = annotated.collect();
        let listed: HashSet<PathBuf> = entries.iter().map(|entry| entry.path.clone()).collect();
        let rest = self.validation.drain(..).filter(|(path, _)| !listed.contains(path));
        let (foldered, nowhere): (Vec<_>, Vec<_>) = rest.partition(|(_, label)| label.is_some());
        self.elsewhere += nowhere.len();
        entries.extend(foldered.into_iter().map(|(path, label)| Entry { path, label }));
        Ok((!entries.is_empty()).then_some(entries))
    }

    fn left_out(&self) -> Vec<String> {
        let counted = |number: usize, why: &str| (number > 0).then(|| format!("{} {why}", count(number, "image")));
        let test = counted(self.test, "of the test split (no labels)");
        let elsewhere = counted(self.elsewhere, "in no class of wnids.txt");
        [test, elsewhere, said(&self.walk)].into_iter().flatten().collect()
    }
}

/// File and label of each line; empty where there is no such list.
fn annotations(list: &Path, numbers: &[String]) -> Result<Vec<(String, u32)>> {
    if !list.is_file() {
        return Ok(Vec::new());
    }
    let text = macrl_bundle::regular::read_text(list).with_context(|| format!("cannot read {}", list.display()))?;
    let labels: HashMap<&str, u32> = numbers.iter().zip(0..).map(|(n, label)| (n.as_str(), label)).collect();
    let entry = |(i, line): (usize, &str)| -> Result<(String, u32)> {
        let mut fields = line.split('\t');
        let (Some(file), Some(number)) = (fields.next(), fields.next()) else {
            bail!("val_annotations.txt line {}: expected file, tab, class; found {line:?}", i + 1);
        };
        let Some(label) = labels.get(number.trim()) else {
            bail!("val_annotations.txt line {}: class {number} is not in wnids.txt", i + 1);
        };
        Ok((file.to_string(), *label))
    };
    text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_wnids_and_annotations() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["train/n2/images", "train/n1/images", "val/images"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for (i, file) in
            ["train/n2/images/n2_0.JPEG", "train/n1/images/n1_0.JPEG", "val/images/val_0.JPEG"].iter().enumerate()
        {
            let grey = image::GrayImage::from_pixel(8, 8, image::Luma([100 * i as u8]));
            grey.save_with_format(at(file), image::ImageFormat::Jpeg).unwrap();
        }
        std::fs::write(at("wnids.txt"), "n2\nn1\n").unwrap();
        std::fs::write(at("words.txt"), "n1\tgoldfish, Carassius auratus\n").unwrap();
        let annotations = at("val/val_annotations.txt");
        std::fs::write(&annotations, "val_0.JPEG\tn1\t0\t0\t7\t7\n").unwrap();
        let reading = Reading::plain(None, u64::MAX);
        let splits = read(dir.path(), &reading).unwrap().unwrap();
        assert_eq!(splits.classes, ["n2", "goldfish"]);
        assert_eq!((splits.train.label(0), splits.train.label(1)), (Some(0), Some(1)));
        let test = splits.test.unwrap();
        assert_eq!((test.len(), test.label(0), test.image(0).unwrap().get_pixel(3, 3).0), (1, Some(1), [200; 3]));
        // The validation image is moved into its class's folder, and then the list is gone, too.
        std::fs::create_dir_all(at("val/n1")).unwrap();
        std::fs::rename(at("val/images/val_0.JPEG"), at("val/n1/val_0.JPEG")).unwrap();
        for listed in [true, false] {
            if !listed {
                std::fs::rename(&annotations, at("val/list")).unwrap();
            }
            let splits = read(dir.path(), &reading).unwrap().unwrap();
            let test = splits.test.unwrap();
            assert_eq!((test.len(), test.label(0), test.image(0).unwrap().get_pixel(3, 3).0), (1, Some(1), [200; 3]));
        }
        std::fs::create_dir_all(at("test/images")).unwrap();
        std::fs::copy(at("val/n1/val_0.JPEG"), at("test/images/test_0.JPEG")).unwrap();
        std::fs::copy(at("val/n1/val_0.JPEG"), at("val/images/other.JPEG")).unwrap();
        let left_out = read(dir.path(), &reading).unwrap().unwrap().left_out;
        let expected = ["1 image of the test split (no labels)", "1 image in no class of wnids.txt"];
        assert_eq!(left_out, expected);
        std::fs::write(&annotations, "val_0.JPEG\tn3\n").unwrap();
        let message = read(dir.path(), &reading).err().unwrap().to_string();
        assert_eq!(message, "val_annotations.txt line 1: class n3 is not in wnids.txt");
        std::fs::write(at("wnids.txt"), "n9\n").unwrap();
        assert!(read(dir.path(), &reading).err().unwrap().to_string().contains("train/n9 does not exist"));
    }
}
