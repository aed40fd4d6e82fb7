//! Measures images per second on one core for both augmented views; `bench/views_torchvision.py` measures torchvision.
//!
//! `bench_views --size 32|224 IMAGE_FOLDER [SECONDS]` prints one line of JSON.  The folder's images are decoded first;
//! what is timed is u8 pixels -> two normalised views, first without masking and patches (what torchvision does:
//! all pixels of both views), then as training makes them (only kept patches, and the target).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use image::RgbImage;
use macrl_bundle::config::Config;
use macrl_train::data::{Dataset, Reading, open_with};
use macrl_train::views::{Scratch, View, ViewPipeline};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, size, folder, rest @ ..] = arguments.as_slice() else {
        bail!("usage: bench_views --size 32|224 IMAGE_FOLDER [SECONDS]");
    };
    let (true, Ok(size)) = (flag == "--size", size.parse::<usize>()) else {
        bail!("usage: bench_views --size 32|224 IMAGE_FOLDER [SECONDS]");
    };
    let seconds = rest.first().map_or(Ok(3.0), |s| s.parse()).context("SECONDS must be a number")?;
    let images = read(Path::new(folder))?;
    let whole = rate(&config(size, true)?, &images, seconds);
    let masked = rate(&config(size, false)?, &images, seconds);
    println!("{{\"size\": {size}, \"images\": {}, \"whole\": {whole:.1}, \"masked\": {masked:.1}}}", images.len());
    Ok(())
}

/// The default corruptions, with blur above 48 pixels.  `whole`: without masks and without a target.
fn config(size: usize, whole: bool) -> Result<Config> {
    let mut set = vec![format!("encoder.image_size={size}"), format!("encoder.patch_size={}", size / 8)];
    if size > 48 {
        set =
            vec![format!("encoder.image_size={size}"), "encoder.patch_size=16".into(), "views.strong.blur=0.5".into()];
    }
    if whole {
        set.extend(["views.strong.mask_ratio=0".into(), "views.weak.mask_ratio=0".into()]);
    }
    Ok(Config::parse("", "bench", &set)?)
}

fn read(folder: &Path) -> Result<Vec<RgbImage>> {
    let data = open_with(folder, &Reading::plain(None, u64::MAX), 0)?;
    let splits: Vec<Arc<dyn Dataset>> = [Some(data.train), data.test].into_iter().flatten().collect();
    let all = splits.iter().flat_map(|s| (0..s.len()).map(move |i| Ok(s.image(i)?.into_owned())));
    all.take(2000).collect()
}

/// Images (two views each) per second on the calling thread.
fn rate(config: &Config, images: &[RgbImage], seconds: f64) -> f64 {
    let pipelines = [ViewPipeline::strong(config), ViewPipeline::weak(config)];
    let mut views: Vec<View> = pipelines.iter().map(|p| p.empty_view(1)).collect();
    let mut scratch = Scratch::default();
    let (start, mut done) = (Instant::now(), 0u32);
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        for image in images {
            for (pipeline, view) in pipelines.iter().zip(&mut views) {
                for slot in &mut pipeline.slots(view) {
                    pipeline.make(image, 0, done, &mut scratch, slot);
                }
            }
            done += 1;
            if done.is_multiple_of(16) && start.elapsed() > Duration::from_secs_f64(seconds) {
                break;
            }
        }
    }
    std::hint::black_box(&views);
    f64::from(done) / start.elapsed().as_secs_f64()
}
