//! CIFAR-10 and CIFAR-100 in the official binary layout (Krizhevsky 2009).
//!
//! A record is one label byte (CIFAR-100: coarse, then fine) and 32 x 32 pixels as three planes R, G, B.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use image::RgbImage;

use super::memory::{Memory, pad};
use super::names;
use super::reading::{Reading, Splits, class_names};

const EDGE: usize = 32;
const PIXELS: usize = 3 * EDGE * EDGE;

/// CIFAR-10: `data_batch_1.bin` .. `data_batch_5.bin` (those that are there) and `test_batch.bin`.
///
/// # Errors
/// When a file cannot be read, is not a whole number of records, or holds a label above 9.
pub fn read_10(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let Some(dir) = find(dir, "cifar-10-batches-bin", "data_batch_1.bin") else {
        return refuse_pickles(dir, "cifar-10-batches-py", "data_batch_1");
    };
    let batches: Vec<PathBuf> =
        (1..=5).map(|i| dir.join(format!("data_batch_{i}.bin"))).filter(|p| p.exists()).collect();
    let layout = Layout { label_bytes: 1, classes: 10 };
    let classes = class_names(&dir, &["batches.meta.txt"], names::owned(&names::CIFAR_10), 9);
    Ok(Some(layout.splits(&batches, &dir.join("test_batch.bin"), classes, reading)?))
}

/// CIFAR-100 with its fine labels: `train.bin` and `test.bin`.
///
/// # Errors
/// When a file cannot be read, is not a whole number of records, or holds a label above 99.
pub fn read_100(dir: &Path, reading: &Reading) -> Result<Option<Splits>> {
    let Some(dir) = find(dir, "cifar-100-binary", "train.bin") else {
        return refuse_pickles(dir, "cifar-100-python", "meta");
    };
    let layout = Layout { label_bytes: 2, classes: 100 };
    let classes = class_names(&dir, &["fine_label_names.txt"], Vec::new(), 99);
    Ok(Some(layout.splits(&[dir.join("train.bin")], &dir.join("test.bin"), classes, reading)?))
}

/// `dir` itself or the folder that the official archive unpacks to.
fn find(dir: &Path, archive: &str, file: &str) -> Option<PathBuf> {
    [dir.to_path_buf(), dir.join(archive)].into_iter().find(|d| d.join(file).is_file())
}

/// The Python version of the same data is a common mistake, and gets a message of its own.
fn refuse_pickles(dir: &Path, archive: &str, file: &str) -> Result<Option<Splits>> {
    if find(dir, archive, file).is_some_and(|d| d.join("batches.meta").is_file() || d.ends_with(archive)) {
        bail!(
            "found the Python version of the data; the binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) is needed"
        );
    }
    Ok(None)
}

struct Layout {
    label_bytes: usize,
    classes: u8,
}

impl Layout {
    fn splits(&self, train: &[PathBuf], test: &Path, classes: Vec<String>, reading: &Reading) -> Result<Splits> {
        let test = match test.is_file() {
            true => Some(Arc::new(self.read("test", &[test.to_path_buf()], reading)?) as _),
            false => None,
        };
        Ok(Splits::new(Arc::new(self.read("train", train, reading)?), test, classes))
    }

    fn read(&self, split: &'static str, files: &[PathBuf], reading: &Reading) -> Result<Memory> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for file in files {
            let name = file.display();
            let bytes = macrl_bundle::regular::read(file).with_context(|| format!("cannot read {name}"))?;
            let record = self.label_bytes + PIXELS;
            if bytes.is_empty() || bytes.len() % record != 0 {
                bail!("{name} is damaged: expected a multiple of {record} bytes, found {}", bytes.len());
            }
            for (i, record) in bytes.chunks_exact(record).enumerate() {
                let label = record[self.label_bytes - 1];
                if label >= self.classes {
                    bail!("{name} is damaged: expected labels below {}, found {label} in record {i}", self.classes);
                }
                labels.push(Some(label.into()));
                images.push(pad(interleave(&record[self.label_bytes..]), reading.pad_to));
            }
        }
        Ok(Memory::new(split, images, labels))
    }
}

/// Planes R, G, B -> R G B per pixel.
fn interleave(planes: &[u8]) -> RgbImage {
    let plane = EDGE * EDGE;
    RgbImage::from_fn(EDGE as u32, EDGE as u32, |x, y| {
        let i = y as usize * EDGE + x as usize;
        image::Rgb([planes[i], planes[plane + i], planes[2 * plane + i]])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading = Reading::plain(None, u64::MAX);

    /// One record: label bytes, then planes with value `base + plane` but for the first red pixel.
    fn record(labels: &[u8], base: u8) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        bytes.extend((0..PIXELS).map(|i| base + (i / 1024) as u8));
        bytes[labels.len()] = 200;
        bytes
    }

    #[test]
    fn reads_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("data_batch_1.bin"), [record(&[3], 10), record(&[9], 20)].concat()).unwrap();
        std::fs::write(sub.join("test_batch.bin"), record(&[0], 30)).unwrap();
        let splits = read_10(dir.path(), &READING).unwrap().unwrap();
        assert_eq!((splits.train.len(), splits.test.unwrap().len()), (2, 1));
        assert_eq!((splits.train.label(0), splits.train.label(1)), (Some(3), Some(9)));
        assert_eq!(splits.classes[9], "truck");
        let image = splits.train.image(1).unwrap();
        assert_eq!((image.get_pixel(0, 0).0, image.get_pixel(31, 31).0), ([200, 21, 22], [20, 21, 22]));

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("train.bin"), record(&[19, 99], 10)).unwrap();
        let splits = read_100(dir.path(), &READING).unwrap().unwrap();
        assert_eq!(splits.train.label(0), Some(99));
        assert!(splits.test.is_none());
        assert_eq!(splits.classes.len(), 100);
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data_batch_1.bin");
        std::fs::write(&file, &record(&[3], 10)[..3000]).unwrap();
        let message = read_10(dir.path(), &READING).err().unwrap().to_string();
        assert!(
            message.ends_with("data_batch_1.bin is damaged: expected a multiple of 3073 bytes, found 3000"),
            "{message}"
        );
        std::fs::write(&file, record(&[10], 10)).unwrap();
        let message = read_10(dir.path(), &READING).err().unwrap().to_string();
        assert!(message.ends_with("expected labels below 10, found 10 in record 0"), "{message}");
    }

    #[test]
    fn the_python_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("cifar-10-batches-py");
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("data_batch_1"), b"pickle").unwrap();
        assert!(read_10(dir.path(), &READING).err().unwrap().to_string().contains("Python version"));
    }
}
