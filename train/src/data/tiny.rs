//! Tiny-ImageNet's official tree (Stanford CS231N).
//!
//! `wnids.txt` orders the classes, `words.txt` names them; `train/WNID/images/*.JPEG`; `val/images/*.JPEG` with their
//! classes in `val/val_annotations.txt` (tab-separated: file, WNID, box).

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::folder::{Entry, images_below, splits};
use super::{Reading, Splits, lines_of};

/// Reads the tree that holds `wnids.txt`; `None` where there is none.
///
/// # Errors
/// When the lists do not fit the folders, or no training image is readable.
pub fn read(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let Some(numbers) = lines_of(&dir.join("wnids.txt")) else { return Ok(None) };
    let words = words(dir);
    let classes = numbers.iter().map(|n| words.get(n).unwrap_or(n).clone()).collect();
    let train = train(dir, &numbers)?;
    let test = validation(dir, &numbers)?;
    splits(train, test, classes, dir, reading).map(Some)
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

/// The classes in turn, so that the first n images are spread over them.
fn train(dir: &Path, numbers: &[String]) -> Result<Vec<Entry>> {
    let mut ranked = Vec::new();
    for (label, number) in numbers.iter().enumerate() {
        let folder = dir.join("train").join(number);
        if !folder.is_dir() {
            bail!("wnids.txt names {number}, and train/{number} does not exist");
        }
        let files = images_below(&folder)?;
        ranked.extend(files.into_iter().enumerate().map(|(rank, path)| (rank, label as u32, path)));
    }
    ranked.sort();
    Ok(ranked.into_iter().map(|(_, label, path)| Entry { path, label: Some(label) }).collect())
}

fn validation(dir: &Path, numbers: &[String]) -> Result<Option<Vec<Entry>>> {
    let list = dir.join("val/val_annotations.txt");
    if !list.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let labels: HashMap<&str, u32> = numbers.iter().zip(0..).map(|(n, label)| (n.as_str(), label)).collect();
    let entry = |(i, line): (usize, &str)| -> Result<Entry> {
        let mut fields = line.split('\t');
        let (Some(file), Some(number)) = (fields.next(), fields.next()) else {
            bail!("val_annotations.txt line {}: expected file, tab, class; found {line:?}", i + 1);
        };
        let Some(label) = labels.get(number.trim()) else {
            bail!("val_annotations.txt line {}: class {number} is not in wnids.txt", i + 1);
        };
        Ok(Entry { path: dir.join("val/images").join(file), label: Some(*label) })
    };
    text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(entry).collect::<Result<_>>().map(Some)
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
        let reading = Reading { pad_to: None, budget: u64::MAX };
        let splits = read(dir.path(), &reading).unwrap().unwrap();
        assert_eq!(splits.classes, ["n2", "goldfish"]);
        assert_eq!((splits.train.label(0), splits.train.label(1)), (Some(0), Some(1)));
        let test = splits.test.unwrap();
        assert_eq!((test.len(), test.label(0), test.image(0).unwrap().get_pixel(3, 3).0), (1, Some(1), [200; 3]));
        std::fs::write(&annotations, "val_0.JPEG\tn3\n").unwrap();
        let message = read(dir.path(), &reading).err().unwrap().to_string();
        assert_eq!(message, "val_annotations.txt line 1: class n3 is not in wnids.txt");
        std::fs::write(at("wnids.txt"), "n9\n").unwrap();
        assert!(read(dir.path(), &reading).err().unwrap().to_string().contains("train/n9 does not exist"));
    }
}
