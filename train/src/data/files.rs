//! Image files that are decoded when they are first used, and kept while there is room.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use image::RgbImage;
use macrl_bundle::folder::text;
use macrl_bundle::regular;

use super::dataset::Dataset;
use super::reading::{Decoding, Reading};

/// One image file with its class.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Path of the file.
    pub path: PathBuf,
    /// Index into the class names.
    pub label: Option<u32>,
}

/// A split of files.  Photographs are kept as they were decoded, at a part of their size: within the budget each is decoded
/// once, the first epoch begins at once, and those that come later are decoded each time they are used.
pub(super) struct Files {
    entries: Vec<Entry>,
    root: PathBuf,
    how: Decoding,
    kept: Vec<OnceLock<RgbImage>>,
    /// Bytes that may still be kept.
    room: AtomicU64,
}

impl Files {
    pub(super) fn new(entries: Vec<Entry>, root: &Path, reading: &Reading) -> Self {
        let kept = entries.iter().map(|_| OnceLock::new()).collect();
        Files { entries, root: root.to_path_buf(), how: reading.into(), kept, room: AtomicU64::new(reading.budget) }
    }

    /// Takes room for an image, where there is as much.
    fn take(&self, image: &RgbImage) -> bool {
        let bytes = image.as_raw().len() as u64;
        let less = |room: u64| room.checked_sub(bytes);
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// Reads and decodes one file.
pub(super) fn decode_file(path: &Path, how: Decoding) -> Result<RgbImage> {
    Ok(how.decode(&regular::read_up_to(path, regular::MAX_IMAGE).context("cannot be read")?)?)
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.entries.get(index)?.label
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let missing = || format!("no image {index}");
        let (entry, kept) = self.entries.get(index).zip(self.kept.get(index)).with_context(missing)?;
        if let Some(image) = kept.get() {
            return Ok(Cow::Borrowed(image));
        }
        let image = decode_file(&entry.path, self.how).with_context(|| text(&entry.path))?;
        if !self.take(&image) {
            return Ok(Cow::Owned(image));
        }
        // Two threads at once make the same image; one of them is dropped.
        Ok(Cow::Borrowed(kept.get_or_init(|| image)))
    }

    fn name(&self, index: usize) -> String {
        let path = self.entries.get(index).map(|e| e.path.as_path()).unwrap_or(Path::new(""));
        text(path.strip_prefix(&self.root).unwrap_or(path))
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn what_fits_is_decoded_once() {
        let dir = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> = (0..3)
            .map(|i| {
                let path = dir.path().join(format!("{i}.png"));
                RgbImage::from_pixel(10, 10, Rgb([i; 3])).save(&path).unwrap();
                Entry { path, label: None }
            })
            .collect();
        // Room for two of 300 bytes.
        let files = Files::new(entries.clone(), dir.path(), &Reading::plain(None, 700));
        for index in [2, 0, 1, 2] {
            assert_eq!(files.image(index).unwrap().get_pixel(3, 3), &Rgb([index as u8; 3]));
        }
        entries.iter().for_each(|entry| std::fs::remove_file(&entry.path).unwrap());
        assert!(files.image(0).is_ok() && files.image(2).is_ok());
        assert!(files.image(1).unwrap_err().to_string().contains("1.png"));
    }
}
