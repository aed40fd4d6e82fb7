//! Embedded ICC profiles: pixels of another colour space -> sRGB, as Pillow's `ImageCms` does with its default intent.
//!
//! A profile that is sRGB up to rounding changes nothing, so that most images pass as they are.  Profiles of another
//! kind than the decoded pixels (CMYK, which the decoder has converted already), damaged ones and those of more than
//! [`LARGEST`] bytes are not applied.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use moxcms::{ColorProfile, DataColorSpace, Layout, RenderingIntent, TransformExecutor, TransformOptions};

/// Bytes of a profile that is looked at; those of scanners with large tables have two million.
const LARGEST: usize = 4 << 20;

/// Profiles that are kept ready.  The images of one folder mostly have one or two.
const KEPT: usize = 8;

/// Pixels that are converted at a time.
const CHUNK: usize = 4096;

/// Largest difference, in grey levels, at which a profile counts as sRGB itself.
const SAME: u8 = 1;

type Executor = Arc<dyn TransformExecutor<u8> + Send + Sync>;

/// From one profile's colour space to sRGB.
#[derive(Clone)]
enum Conversion {
    /// The profile is sRGB, or cannot be applied.
    Nothing,
    /// R, G, B -> R, G, B.
    Color(Executor),
    /// Grey -> R, G, B.
    Gray(Executor),
}

/// The last profiles, most recent first.
static READY: Mutex<Vec<(Vec<u8>, Conversion)>> = Mutex::new(Vec::new());

/// Converts an image to sRGB; samples of more than 8 bits are rounded to 8 first.
pub(super) fn to_srgb(image: DynamicImage, profile: &[u8]) -> DynamicImage {
    if profile.is_empty() || profile.len() > LARGEST {
        return image;
    }
    let gray = !image.color().has_color();
    match (conversion(profile), gray, image.color().has_alpha()) {
        (Conversion::Color(by), false, false) => {
            let mut rgb = image.into_rgb8();
            convert_in_place(&by, 3, &mut rgb);
            DynamicImage::ImageRgb8(rgb)
        }
        (Conversion::Color(by), false, true) => {
            let rgba = image.into_rgba8();
            let mut rgb = RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
                let [r, g, b, _] = rgba.get_pixel(x, y).0;
                image::Rgb([r, g, b])
            });
            convert_in_place(&by, 3, &mut rgb);
            DynamicImage::ImageRgba8(with_alpha(&rgb, &rgba))
        }
        (Conversion::Gray(by), true, false) => DynamicImage::ImageRgb8(gray_to_rgb(&by, &image.into_luma8())),
        (Conversion::Gray(by), true, true) => {
            let rgb = gray_to_rgb(&by, &image.to_luma8());
            DynamicImage::ImageRgba8(with_alpha(&rgb, &image.into_rgba8()))
        }
        _ => image,
    }
}

fn with_alpha(rgb: &RgbImage, alpha: &RgbaImage) -> RgbaImage {
    RgbaImage::from_fn(rgb.width(), rgb.height(), |x, y| {
        let [r, g, b] = rgb.get_pixel(x, y).0;
        image::Rgba([r, g, b, alpha.get_pixel(x, y).0[3]])
    })
}

fn convert_in_place(by: &Executor, channels: usize, samples: &mut [u8]) {
    let mut before = vec![0; CHUNK * channels];
    for chunk in samples.chunks_mut(CHUNK * channels) {
        let before = &mut before[..chunk.len()];
        before.copy_from_slice(chunk);
        if by.transform(before, chunk).is_err() {
            // Only a length that is no whole number of pixels is refused, and the chunks' lengths are.
            chunk.copy_from_slice(before);
        }
    }
}

fn gray_to_rgb(by: &Executor, gray: &GrayImage) -> RgbImage {
    let mut rgb = RgbImage::new(gray.width(), gray.height());
    for (from, to) in gray.chunks(CHUNK).zip(rgb.chunks_mut(3 * CHUNK)) {
        if by.transform(from, to).is_err() {
            to.chunks_exact_mut(3).zip(from).for_each(|(to, from)| to.fill(*from));
        }
    }
    rgb
}

fn conversion(profile: &[u8]) -> Conversion {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = ready.iter().position(|(bytes, _)| bytes == profile) {
        ready[..=at].rotate_right(1);
        return ready[0].1.clone();
    }
    drop(ready);
    // Somebody else's code reads bytes from anywhere: its panic is a damaged profile.
    let made = catch_unwind(AssertUnwindSafe(|| make(profile))).ok().flatten().unwrap_or(Conversion::Nothing);
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    ready.truncate(KEPT - 1);
    ready.insert(0, (profile.to_vec(), made.clone()));
    made
}

fn make(profile: &[u8]) -> Option<Conversion> {
    let source = ColorProfile::new_from_slice(profile).ok()?;
    let options = TransformOptions { rendering_intent: RenderingIntent::Perceptual, ..Default::default() };
    let executor = |layout| source.create_transform_8bit(layout, &ColorProfile::new_srgb(), Layout::Rgb, options).ok();
    match source.color_space {
        DataColorSpace::Rgb => {
            let by = executor(Layout::Rgb)?;
            let colors = samples();
            Some(if changes(&by, &colors, &colors) { Conversion::Color(by) } else { Conversion::Nothing })
        }
        DataColorSpace::Gray => {
            let by = executor(Layout::Gray)?;
            let grays: Vec<u8> = (0..=255).collect();
            let same: Vec<u8> = grays.iter().flat_map(|g| [*g; 3]).collect();
            Some(if changes(&by, &grays, &same) { Conversion::Gray(by) } else { Conversion::Nothing })
        }
        _ => None,
    }
}

/// A grid of colours and all grey levels.
fn samples() -> Vec<u8> {
    let level = |i: usize| (i * 255 / 8) as u8;
    let grid = (0..9 * 9 * 9).flat_map(|i| [level(i / 81), level(i / 9 % 9), level(i % 9)]);
    grid.chain((0..=255).flat_map(|g| [g; 3])).collect()
}

fn changes(by: &Executor, from: &[u8], same: &[u8]) -> bool {
    let mut to = vec![0; same.len()];
    by.transform(from, &mut to).is_ok() && to.iter().zip(same).any(|(a, b)| a.abs_diff(*b) > SAME)
}
