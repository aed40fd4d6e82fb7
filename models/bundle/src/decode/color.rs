//! Embedded ICC profiles: converts pixels to sRGB, as Pillow's `ImageCms` does with its default intent.
//!
//! A profile that equals sRGB up to rounding is skipped, so most images pass unchanged.  Not applied are: profiles for
//! another colour model than the decoded pixels' (CMYK, which the decoder has converted already), grey profiles that
//! encode lightness instead of luminance, damaged profiles, and those of more than [`LARGEST`] bytes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use image::DynamicImage;
use moxcms::{ColorProfile, DataColorSpace, Layout, RenderingIntent, TransformExecutor, TransformOptions};

/// Largest profile that is read, in bytes; scanner profiles with large tables have two million.
const LARGEST: usize = 4 << 20;

/// Number of cached profiles.  The images of one folder mostly share one or two.
const KEPT: usize = 8;

/// Pixels that are converted in one call.
const CHUNK: usize = 4096;

/// Largest difference in grey levels at which a profile counts as sRGB.
const SAME: u8 = 1;

type Executor = Arc<dyn TransformExecutor<u8> + Send + Sync>;

/// A conversion from one profile's colour space to sRGB.
#[derive(Clone)]
struct Conversion {
    /// Maps (R, G, B) to (R, G, B).
    by: Executor,
    /// Whether the profile is for grey images; then R, G and B all hold the grey value.
    gray: bool,
}

/// The cached profiles, most recently used first; `None` if the profile is sRGB or cannot be applied.
static READY: Mutex<Vec<(Vec<u8>, Option<Conversion>)>> = Mutex::new(Vec::new());

/// Converts an image to sRGB; samples of more than 8 bits are rounded to 8 first.
pub(super) fn to_srgb(image: DynamicImage, profile: &[u8]) -> DynamicImage {
    if profile.is_empty() || profile.len() > LARGEST {
        return image;
    }
    let gray = !image.color().has_color();
    let Some(conversion) = conversion(profile).filter(|c| c.gray == gray) else { return image };
    if !image.color().has_alpha() {
        let mut rgb = image.into_rgb8();
        convert(&conversion.by, &mut rgb);
        return DynamicImage::ImageRgb8(rgb);
    }
    let mut rgba = image.into_rgba8();
    let mut rgb: Vec<u8> = rgba.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect();
    convert(&conversion.by, &mut rgb);
    rgba.pixels_mut().zip(rgb.chunks_exact(3)).for_each(|(pixel, rgb)| pixel.0[..3].copy_from_slice(rgb));
    DynamicImage::ImageRgba8(rgba)
}

/// Converts (n, 3) samples in place.
fn convert(by: &Executor, samples: &mut [u8]) {
    let mut before = vec![0; CHUNK * 3];
    for chunk in samples.chunks_mut(CHUNK * 3) {
        let before = &mut before[..chunk.len()];
        before.copy_from_slice(chunk);
        if by.transform(before, chunk).is_err() {
            // `transform` refuses only lengths that are not whole pixels; the chunks are whole pixels.
            chunk.copy_from_slice(before);
        }
    }
}

fn conversion(profile: &[u8]) -> Option<Conversion> {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = ready.iter().position(|(bytes, _)| bytes == profile) {
        ready[..=at].rotate_right(1);
        return ready[0].1.clone();
    }
    drop(ready);
    // The parser is foreign code that reads untrusted bytes: a panic counts as a damaged profile.
    let made = catch_unwind(AssertUnwindSafe(|| make(profile))).ok().flatten();
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    ready.truncate(KEPT - 1);
    ready.insert(0, (profile.to_vec(), made.clone()));
    made
}

fn make(profile: &[u8]) -> Option<Conversion> {
    let mut source = ColorProfile::new_from_slice(profile).ok()?;
    let gray = source.color_space == DataColorSpace::Gray;
    if gray {
        // The curve must map to luminance; a curve to lightness is not supported.
        let curve = source.gray_trc.take().filter(|_| source.pcs == DataColorSpace::Xyz)?;
        source = ColorProfile::new_srgb();
        (source.red_trc, source.green_trc, source.blue_trc) = (Some(curve.clone()), Some(curve.clone()), Some(curve));
        // Otherwise the CICP code points, which name sRGB, override the curves.
        source.cicp = None;
    } else if source.color_space != DataColorSpace::Rgb {
        return None;
    }
    let options = TransformOptions { rendering_intent: RenderingIntent::Perceptual, ..Default::default() };
    let by = source.create_transform_8bit(Layout::Rgb, &ColorProfile::new_srgb(), Layout::Rgb, options).ok()?;
    let (from, mut to) = (samples(), samples());
    convert(&by, &mut to);
    let changes = to.iter().zip(&from).any(|(a, b)| a.abs_diff(*b) > SAME);
    changes.then_some(Conversion { by, gray })
}

/// Test colours: a grid over the colour cube and all grey levels.
fn samples() -> Vec<u8> {
    let level = |i: usize| (i * 255 / 8) as u8;
    let grid = (0..9 * 9 * 9).flat_map(|i| [level(i / 81), level(i / 9 % 9), level(i % 9)]);
    grid.chain((0..=255).flat_map(|g| [g; 3])).collect()
}
