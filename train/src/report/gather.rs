//! Computes what a report shows of the network: reconstructions of the run's held-out samples, their nearest neighbours among
//! training images, and features.

use anyhow::Result;
use candle_core::Tensor;
use image::{Rgb, RgbImage};
use macrl_bundle::config::{Config, LossOn, Pooling};
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::probe::Probe;
use macrl_nn::ops::graph::with_values;
use macrl_nn::vit::Encoder;

use super::content::{Neighbour, Neighbourhood, Reconstruction, ReportContent};
use crate::data::{Data, Dataset};
use crate::encode::{load_encoder, stream};
use crate::evaluate::{Features, knn};
use crate::run::Run;
use crate::samples;
use crate::state::State;
use crate::views::{Batch, Scratch, View, ViewPipeline};

/// Number of images whose reconstructions are shown.
const RECONSTRUCTED: usize = 6;
/// Number of images in the projection.
const PROJECTED: usize = 2000;
/// Number of training images in the look-up set, as in the demo's neighbours.png for ten classes.
const GALLERY: usize = 2000;
/// Number of queries, and of neighbours of each.
const QUERIES: usize = 10;
const NEIGHBOURS: usize = 8;
/// Colour of removed patches.
const REMOVED: Rgb<u8> = Rgb([128, 128, 128]);

/// The run's encoder with its preprocessing and pooling.
struct FeatureExtractor {
    encoder: Encoder,
    preprocess: Preprocess,
    pooling: Pooling,
}

impl FeatureExtractor {
    /// Features and labels of these images of a split, and the indices of those that could be read.
    fn features(&self, split: &dyn Dataset, chosen: &[usize]) -> Result<(Features, Vec<usize>)> {
        let dim = self.encoder.config().width;
        let (mut all, mut indices) = (Features { values: Vec::new(), labels: Vec::new(), dim }, Vec::new());
        stream(split, chosen, &self.encoder, &self.preprocess, |images| {
            let features = images.encode(&self.encoder, &self.preprocess, self.pooling)?;
            all.values.extend(features.values);
            all.labels.extend(features.labels);
            indices.extend_from_slice(&images.indices);
            Ok(())
        })?;
        Ok((all, indices))
    }
}

/// Uses the run's best checkpoint, or its last one where there is no best.  Without `data`, the samples replace the training
/// images, also in the projection.
///
/// # Errors
/// A missing or damaged checkpoint or samples.safetensors.
pub fn gather(run: &Run, data: Option<&Data>) -> Result<ReportContent> {
    let path = if run.best().exists() { run.best() } else { run.last() };
    let (encoder, config, step) = load_encoder(&path)?;
    let extractor =
        FeatureExtractor { encoder, preprocess: Preprocess::from_config(&config), pooling: config.evaluate.pooling };
    let (samples, known) = samples::read(run, &config)?;
    let images = as_images(&samples.pixels, config.encoder.image_size);
    let shown = &images[..images.len().min(RECONSTRUCTED)];
    let (strong, weak) = reconstructions(&State::load(&path)?.0, &config, shown)?;
    let features = samples.encode(&extractor.encoder, &extractor.preprocess, extractor.pooling)?;
    let queries = Queries { images: &images, features: &features, labels: &known };
    let (neighbours, gallery) = match data {
        Some(data) => queries.among_training(&extractor, data)?,
        None => queries.among_themselves(),
    };
    let held = data.and_then(|data| data.test.as_ref());
    let projected = match held {
        Some(test) => extractor.features(test.as_ref(), &samples::draw(test.as_ref(), PROJECTED))?.0,
        None => features,
    };
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
    let unlabelled = known.iter().all(Option::is_none);
    Ok(ReportContent { strong, weak, neighbours, gallery, projected: Some(projected), unlabelled, labels, provenance })
}

/// The samples as queries.
struct Queries<'a> {
    images: &'a [RgbImage],
    features: &'a Features,
    labels: &'a [Option<u32>],
}

impl Queries<'_> {
    /// The nearest neighbours among a fixed random choice of training images, and a description of these images.
    fn among_training(&self, extractor: &FeatureExtractor, data: &Data) -> Result<(Vec<Neighbourhood>, String)> {
        let train = data.train.as_ref();
        let (gallery, indices) = extractor.features(train, &samples::draw(train, GALLERY))?;
        let near = |query: &RgbImage, index: u32| {
            let i = *indices.get(index as usize)?;
            let image = extractor.preprocess.fit(&*train.image(i).ok()?);
            // Where nothing is held out, the samples are training images, and a query must not find itself.
            (data.test.is_some() || image != *query).then(|| (image, train.label(i)))
        };
        Ok((self.nearest(&gallery, near), format!("{} training images", indices.len())))
    }

    /// The nearest neighbours among the samples.
    fn among_themselves(&self) -> (Vec<Neighbourhood>, String) {
        let near = |query: &RgbImage, index: u32| {
            let (image, label) = (self.images.get(index as usize)?, self.labels.get(index as usize)?);
            (image != query).then(|| (image.clone(), *label))
        };
        (self.nearest(self.features, near), format!("{} held-out images", self.images.len()))
    }

    fn nearest(
        &self,
        gallery: &Features,
        near: impl Fn(&RgbImage, u32) -> Option<(RgbImage, Option<u32>)>,
    ) -> Vec<Neighbourhood> {
        let chosen = spread(self.labels, QUERIES);
        let queries = self.features.select(&chosen);
        // One of them may be the query itself.
        let found = knn::neighbours(&gallery.values, &queries.values, gallery.dim, NEIGHBOURS + 4);
        let rows = chosen.into_iter().zip(found).filter_map(|(i, found)| {
            let query = self.images.get(i)?.clone();
            let seen = found.into_iter().filter_map(|n| {
                let (image, label) = near(&query, n.index)?;
                Some(Neighbour { image, label, similarity: n.similarity })
            });
            let near = seen.take(NEIGHBOURS).collect();
            Some(Neighbourhood { query, label: self.labels.get(i).copied().flatten(), near })
        });
        rows.collect()
    }
}

/// The indices of at most `count` images: one of each class before a second of any class.
fn spread(labels: &[Option<u32>], count: usize) -> Vec<usize> {
    let mut seen = std::collections::HashMap::new();
    let mut order: Vec<(usize, usize)> = labels
        .iter()
        .enumerate()
        .map(|(i, label)| {
            let rank = seen.entry(*label).and_modify(|n| *n += 1).or_insert(0usize);
            (*rank, i)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().take(count).map(|(_, i)| i).collect()
}

/// (n, S, S, 3) u8 -> n images.
fn as_images(pixels: &[u8], size: usize) -> Vec<RgbImage> {
    let edge = size as u32;
    pixels.chunks_exact(3 * size * size).filter_map(|p| RgbImage::from_raw(edge, edge, p.to_vec())).collect()
}

type Branches = (Vec<Reconstruction>, Vec<Reconstruction>);

/// The images in both branches, with the views of the first epoch; empty where the run has no decoder.
fn reconstructions(state: &State, config: &Config, images: &[RgbImage]) -> Result<Branches> {
    let (strong, weak) = (ViewPipeline::strong(config), ViewPipeline::weak(config));
    let batch = Batch {
        indices: (0..images.len() as u32).collect(),
        strong: views(&strong, images),
        weak: views(&weak, images),
    };
    let Some([strong, weak]) = state.method.predictions(&batch)? else { return Ok(Branches::default()) };
    Ok((pictures(config, &batch.strong, &strong)?, pictures(config, &batch.weak, &weak)?))
}

fn views(pipeline: &ViewPipeline, images: &[RgbImage]) -> View {
    let mut view = pipeline.empty_view(images.len());
    let mut scratch = Scratch::default();
    for (i, (slot, image)) in pipeline.slots(&mut view).iter_mut().zip(images).enumerate() {
        pipeline.make(image, 0, i as u32, &mut scratch, slot);
    }
    view
}

/// One branch's target, input and prediction (B, 1 + N, P) as images.
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
            // The first of the 1 + N rows belongs to the class token.
            put(
                &mut reconstructed,
                config,
                &predicted[(b * (n + 1) + 1) * values..(b + 1) * (n + 1) * values],
                &everything,
            );
            if config.reconstruction.loss_on == LossOn::Masked {
                // The loss ignores predictions of kept patches, so they have no meaning; the input is shown instead.
                put(&mut reconstructed, config, seen_values, seen);
            }
            pictures.push(Reconstruction { input, corrupted, reconstructed });
        }
        Ok(())
    })?;
    Ok(pictures)
}

/// Writes normalised patches (K, P), each 3 x p x p, into the image.
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
    fn every_class_comes_before_a_second_of_any() {
        assert_eq!(spread(&[0, 0, 0, 1, 2, 1].map(Some), 4), [0, 3, 4, 1]);
        assert_eq!(spread(&[None; 3], 2), [0, 1]);
    }

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
