//! Splits that are small enough to be kept decoded in memory, as u8 pixels.

use std::borrow::Cow;

use anyhow::{Context, Result, anyhow};
use image::{RgbImage, imageops};

use super::dataset::Dataset;

/// Share of the free memory that a split's decoded images may take; training needs the rest.
const SHARE: f64 = 0.25;
/// Budget where the free memory is not known.
const FALLBACK: u64 = 1 << 30;

/// A decoded split in memory.
///
/// An image that could not be decoded keeps its index, as in a split that is read from disk: the free memory must not change the
/// index of an image.
pub struct Memory {
    split: &'static str,
    images: Vec<Result<RgbImage, String>>,
    labels: Vec<Option<u32>>,
    names: Vec<String>,
}

impl Memory {
    /// Images and labels of the same number; `split` names them in messages.
    pub fn new(split: &'static str, images: Vec<RgbImage>, labels: Vec<Option<u32>>) -> Self {
        debug_assert_eq!(images.len(), labels.len());
        Memory { split, images: images.into_iter().map(Ok).collect(), labels, names: Vec::new() }
    }

    /// Keeps what was decoded: name, label, and image or error.  The names and errors of images that could not be decoded are added
    /// to `skipped`.
    pub fn decoded(
        split: &'static str,
        decoded: Vec<(String, Option<u32>, Result<RgbImage>)>,
        skipped: &mut Vec<(String, String)>,
    ) -> Self {
        let mut memory = Memory::new(split, Vec::new(), Vec::new());
        for (name, label, image) in decoded {
            let image = image.map_err(|why| format!("{why:#}"));
            if let Err(why) = &image {
                skipped.push((name.clone(), why.clone()));
            }
            memory.images.push(image);
            memory.labels.push(label);
            memory.names.push(name);
        }
        memory
    }

    /// Whether no image could be decoded.
    pub fn is_unreadable(&self) -> bool {
        self.images.iter().all(Result::is_err)
    }
}

impl Dataset for Memory {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied().flatten()
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        let image = self.images.get(index).with_context(|| format!("no image {index} in {}", self.split))?;
        image.as_ref().map(Cow::Borrowed).map_err(|why| anyhow!("{}: {why}", self.name(index)))
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).cloned().unwrap_or_else(|| format!("{}[{index}]", self.split))
    }
}

/// Centres an image whose edges are both at most `edge` on a black square of that edge; others stay as they are.
pub fn pad(image: RgbImage, edge: Option<u32>) -> RgbImage {
    let (width, height) = image.dimensions();
    match edge {
        Some(edge) if width <= edge && height <= edge && (width, height) != (edge, edge) => {
            let mut square = RgbImage::new(edge, edge);
            // Where `Preprocess::fit` puts it, so that evaluation sees the same pixels.
            imageops::replace(&mut square, &image, at(edge, width), at(edge, height));
            square
        }
        _ => image,
    }
}

fn at(edge: u32, side: u32) -> i64 {
    (edge - side).div_ceil(2).into()
}

/// Bytes of decoded pixels that may be kept on this machine: a quarter of the free memory.
pub fn budget() -> u64 {
    let free = [available(), cgroup_left()].into_iter().flatten().min();
    free.map_or(FALLBACK, |bytes| (bytes as f64 * SHARE) as u64)
}

/// Linux's estimate of the memory that can be used without swapping.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory that the container's limit leaves.
fn cgroup_left() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_images_are_centred_and_large_ones_left() {
        let white = RgbImage::from_pixel(3, 2, image::Rgb([255; 3]));
        let padded = pad(white.clone(), Some(8));
        assert_eq!(padded.dimensions(), (8, 8));
        let lit: Vec<_> = padded.enumerate_pixels().filter(|p| p.2.0 == [255; 3]).map(|p| (p.0, p.1)).collect();
        assert_eq!(lit, [(3, 3), (4, 3), (5, 3), (3, 4), (4, 4), (5, 4)]);
        let mut config = macrl_bundle::config::Config::default();
        (config.data.fit, config.encoder.image_size) = (macrl_bundle::config::Fit::Pad, 8);
        assert_eq!(macrl_bundle::preprocess::Preprocess::from_config(&config).fit(&white), padded);
        assert_eq!(pad(white.clone(), Some(2)).dimensions(), (3, 2));
        assert_eq!(pad(white, None).dimensions(), (3, 2));
    }
}
