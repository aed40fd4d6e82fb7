//! What a report shows of the network itself: reconstructions of the run's held-out samples, and their features.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use macrl_models::config::{Config, LossOn};
use macrl_models::ops::graph::with_values;
use macrl_models::preprocess::Preprocess;
use macrl_models::probe::Probe;

use super::{Material, Reconstruction, Samples};
use crate::data::Data;
use crate::encode::{Images, load_encoder};
use crate::run::Run;
use crate::state::State;
use crate::views::{Batch, Recipe, Scratch, View};

/// Images whose reconstructions are shown.
const RECONSTRUCTED: usize = 12;
/// Images in the projection.
const PROJECTED: usize = 2000;
/// Stands for removed patches.
const REMOVED: Rgb<u8> = Rgb([128, 128, 128]);

/// Looks at the run's best checkpoint (its last one where there is no best).  Without `data` the projection shows
/// the samples only.
///
/// # Errors
/// A missing or damaged checkpoint or samples.safetensors.
pub fn gather(run: &Run, data: Option<&Data>) -> Result<Material> {
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, config, step) = load_encoder(&path)?;
    let preprocess = Preprocess::from_config(&config);
    let samples = read_samples(run, &config)?;
    let images = as_images(&samples.pixels, config.encoder.image_size);
    let shown = &images[..images.len().min(RECONSTRUCTED)];
    let (strong, weak) = reconstructions(&State::load(&path)?.0, &config, shown)?;
    let pooling = config.evaluate.pooling;
    let features = samples.encode(&encoder, &preprocess, pooling)?;
    let projected = data
        .and_then(|data| data.test.as_ref())
        // Without labels there is nothing to colour by: the samples will do.
        .and_then(|test| Images::read(test.as_ref(), PROJECTED, &preprocess).ok())
        .map(|images| images.encode(&encoder, &preprocess, pooling))
        .transpose()?;
    let labels = match run.probe() {
        path if path.exists() => Probe::read(&path)?.labels,
        _ => data.map(|data| data.classes.clone()).unwrap_or_default(),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut provenance = vec![("checkpoint".to_string(), format!("{name}, step {step}"))];
    if let Some(data) = data {
        provenance.push(("data".into(), format!("{}, {} training images", data.format, data.train.len())));
    }
    provenance.push(("network computed on".into(), format!("CPU, {} threads", rayon::current_num_threads())));
    Ok(Material { strong, weak, samples: Some(Samples { images, features }), projected, labels, provenance })
}

/// The images that the run put aside when it began; those without a label count as class 0.
fn read_samples(run: &Run, config: &Config) -> Result<Images> {
    let path = run.samples();
    let named = || format!("cannot read {}", path.display());
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).with_context(named)?;
    let tensor = |name: &str| tensors.get(name).with_context(|| format!("{}: no tensor `{name}`", path.display()));
    let (pixels, labels) = (tensor("pixels")?, tensor("labels")?.to_vec1::<i64>().with_context(named)?);
    let (n, size) = (labels.len(), config.encoder.image_size);
    let found = pixels.dims();
    ensure!(
        n > 0 && found == [n, size, size, 3],
        "{}: expected `pixels` of shape [{n}, {size}, {size}, 3], found {found:?}",
        path.display()
    );
    Ok(Images {
        pixels: pixels.flatten_all()?.to_vec1().with_context(named)?,
        labels: labels.iter().map(|label| u32::try_from(*label).unwrap_or(0)).collect(),
        indices: (0..n).collect(),
    })
}

/// (n, S, S, 3) u8 -> n images.
fn as_images(pixels: &[u8], size: usize) -> Vec<RgbImage> {
    let edge = size as u32;
    pixels.chunks_exact(3 * size * size).filter_map(|p| RgbImage::from_raw(edge, edge, p.to_vec())).collect()
}

type Branches = (Vec<Reconstruction>, Vec<Reconstruction>);

/// Every image through both branches as in the first epoch; nothing where the run has no decoder.
fn reconstructions(state: &State, config: &Config, images: &[RgbImage]) -> Result<Branches> {
    let (strong, weak) = (Recipe::strong(config), Recipe::weak(config));
    let batch = Batch {
        indices: (0..images.len() as u32).collect(),
        strong: views(&strong, images),
        weak: views(&weak, images),
    };
    let Some([strong, weak]) = state.method.predictions(&batch)? else { return Ok(Branches::default()) };
    Ok((pictures(config, &batch.strong, &strong)?, pictures(config, &batch.weak, &weak)?))
}

fn views(recipe: &Recipe, images: &[RgbImage]) -> View {
    let mut view = recipe.room(images.len());
    let mut scratch = Scratch::default();
    for (i, (slot, image)) in recipe.slots(&mut view).iter_mut().zip(images).enumerate() {
        recipe.make(image, 0, i as u32, &mut scratch, slot);
    }
    view
}

/// One branch's target, input and prediction (B, 1 + N, P) as pictures.
fn pictures(config: &Config, view: &View, predicted: &Tensor) -> Result<Vec<Reconstruction>> {
    let (values, n) = (config.encoder.patch_values(), config.encoder.patches());
    let batch = view.target.len() / (n * values);
    let kept = view.kept.len() / batch.max(1);
    let everything: Vec<u32> = (0..n as u32).collect();
    let blank = || RgbImage::from_pixel(config.encoder.image_size as u32, config.encoder.image_size as u32, REMOVED);
    let mut pictures = Vec::with_capacity(batch);
    with_values(predicted, |predicted| {
        for b in 0..batch {
            let seen = &view.kept[b * kept..(b + 1) * kept];
            let (mut input, mut corrupted, mut reconstructed) = (blank(), blank(), blank());
            let seen_values = &view.patches[b * kept * values..(b + 1) * kept * values];
            put(&mut input, config, &view.target[b * n * values..(b + 1) * n * values], &everything);
            put(&mut corrupted, config, seen_values, seen);
            // The first of the 1 + N is the class token's.
            put(
                &mut reconstructed,
                config,
                &predicted[(b * (n + 1) + 1) * values..(b + 1) * (n + 1) * values],
                &everything,
            );
            if config.reconstruction.loss_on == LossOn::Masked {
                // What the decoder says about patches that it was shown is never asked for, and means nothing.
                put(&mut reconstructed, config, seen_values, seen);
            }
            pictures.push(Reconstruction { input, corrupted, reconstructed });
        }
        Ok(())
    })?;
    Ok(pictures)
}

/// Puts normalised patches (K, P), each 3 x p x p, at their places.
fn put(image: &mut RgbImage, config: &Config, patches: &[f32], which: &[u32]) {
    let (p, grid) = (config.encoder.patch_size, config.encoder.grid());
    for (patch, number) in patches.chunks_exact(3 * p * p).zip(which) {
        let (top, left) = (*number as usize / grid * p, *number as usize % grid * p);
        for (i, value) in patch.iter().enumerate() {
            let (channel, y, x) = (i / (p * p), i / p % p, i % p);
            let pixel = value * config.data.std[channel] + config.data.mean[channel];
            image.get_pixel_mut((left + x) as u32, (top + y) as u32)[channel] =
                (255.0 * pixel).round().clamp(0.0, 255.0) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_turns_back_into_its_image() {
        let mut config = Config::default();
        config.encoder.image_size = 8;
        config.reconstruction.loss_on = LossOn::Masked;
        // A view without a crop, flip or colours shows the image itself.
        for view in [&mut config.views.strong, &mut config.views.weak] {
            (view.crop_scale, view.crop_ratio, view.flip) = ([1.0, 1.0], [1.0, 1.0], 0.0);
            (view.jitter_probability, view.grayscale, view.solarize) = (0.0, 0.0, 0.0);
            view.mask_ratio = 0.5;
        }
        let image = RgbImage::from_fn(8, 8, |x, y| Rgb([x as u8 * 30, y as u8 * 30, (x * y) as u8]));
        let state = State::init(&config).unwrap();
        let (strong, weak) = reconstructions(&state, &config, &[image.clone(), image.clone()]).unwrap();
        assert_eq!((strong.len(), weak.len()), (2, 2));
        for shown in strong.iter().chain(&weak) {
            assert_eq!(shown.input, image);
            let quarter = |x: u32, y: u32| {
                (0..16).all(|i| {
                    let at = (4 * x + i % 4, 4 * y + i / 4);
                    shown.corrupted.get_pixel(at.0, at.1) == image.get_pixel(at.0, at.1)
                })
            };
            let seen = [(0, 0), (1, 0), (0, 1), (1, 1)].iter().filter(|(x, y)| quarter(*x, *y)).count();
            assert_eq!(seen, 2);
            let pasted = shown.corrupted.enumerate_pixels().filter(|(_, _, p)| **p != REMOVED);
            assert!(pasted.into_iter().all(|(x, y, p)| shown.reconstructed.get_pixel(x, y) == p));
            assert_eq!(shown.corrupted.pixels().filter(|p| **p == REMOVED).count(), 32);
        }
    }
}
