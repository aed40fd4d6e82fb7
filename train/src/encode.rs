//! PreparedImages -> features of a frozen encoder, for evaluation, the online kNN and the report.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use macrl_bundle::config::{Config, Pooling};
use macrl_bundle::preprocess::Preprocess;
use macrl_bundle::progress::Progress;
use macrl_nn::ops::graph::with_values;
use macrl_nn::vit::Encoder;
use rayon::prelude::*;

use crate::data::Dataset;
use crate::evaluate::Features;

/// PreparedImages in a batch of at most [`TOKENS`] patches an image.  PreparedImages with more patches make smaller batches, so that a batch
/// takes about the same memory.
const BATCH: usize = 256;
const TOKENS: usize = 64;

/// PreparedImages after the evaluation transform and before normalisation, with their labels.
pub struct PreparedImages {
    /// (n, S, S, 3) u8.
    pub pixels: Vec<u8>,
    /// (n); 0 where an image has no label.
    pub labels: Vec<u32>,
    /// (n): index of each image in its split.
    pub indices: Vec<usize>,
    /// Whether there is at least one image and all of them have a label.
    pub labelled: bool,
}

impl PreparedImages {
    /// Reads all labelled images of a split through the evaluation transform.  Unreadable ones are left out.
    ///
    /// # Errors
    /// No image is labelled and readable.
    pub fn read(data: &dyn Dataset, preprocess: &Preprocess) -> Result<Self> {
        let images = Self::read_chosen(data, &labelled(data), preprocess);
        anyhow::ensure!(!images.labels.is_empty(), "no readable image has a label");
        Ok(images)
    }

    /// Reads the images of these indices, in this order, whether they have labels or not.  Unreadable ones are left out.
    pub fn read_chosen(data: &dyn Dataset, chosen: &[usize], preprocess: &Preprocess) -> Self {
        read_or_name(
            data,
            chosen,
            preprocess,
            &Progress::new("reading images to evaluate the encoder on", chosen.len()),
        )
        .0
    }

    /// Pooled features of all images.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn encode(&self, encoder: &Encoder, preprocess: &Preprocess, pooling: Pooling) -> Result<Features> {
        let size = encoder.config().image_size;
        let mut values = Vec::with_capacity(self.labels.len() * encoder.config().width);
        for pixels in self.pixels.chunks(batch_of(encoder) * size * size * 3) {
            let batch = pixels_to_tensor(pixels, size, preprocess)?;
            let features = encoder.features(&batch, pooling)?;
            with_values(&features, |f| {
                values.extend_from_slice(f);
                Ok(())
            })?;
        }
        Ok(Features { values, labels: self.labels.clone(), dim: encoder.config().width })
    }
}

/// Name of an image that could not be read, and why.
pub type LeftOut = (String, String);

fn read_or_name(
    data: &dyn Dataset,
    chosen: &[usize],
    preprocess: &Preprocess,
    progress: &Progress,
) -> (PreparedImages, Vec<LeftOut>) {
    let fit = |&i: &usize| {
        progress.add(1);
        (i, data.image(i).map(|image| preprocess.fit(&image).into_raw()))
    };
    let fitted: Vec<(usize, Result<Vec<u8>>)> = chosen.par_iter().map(fit).collect();
    let mut images = PreparedImages {
        pixels: Vec::with_capacity(chosen.len() * preprocess.values()),
        labels: Vec::with_capacity(chosen.len()),
        indices: Vec::with_capacity(chosen.len()),
        labelled: true,
    };
    let mut left_out = Vec::new();
    for (i, pixels) in fitted {
        match pixels {
            Ok(pixels) => {
                images.pixels.extend(pixels);
                images.labels.push(data.label(i).unwrap_or(0));
                images.labelled &= data.label(i).is_some();
                images.indices.push(i);
            }
            Err(why) => left_out.push((data.name(i), format!("{why:#}"))),
        }
    }
    images.labelled &= !images.labels.is_empty();
    (images, left_out)
}

/// Indices of the images that have a label.
pub fn labelled(data: &dyn Dataset) -> Vec<usize> {
    (0..data.len()).filter(|i| data.label(*i).is_some()).collect()
}

/// Batch size for an encoder of this shape.
fn batch_of(encoder: &Encoder) -> usize {
    (BATCH * TOKENS / encoder.config().patches().max(1)).clamp(8, BATCH)
}

/// Reads the images of these indices and passes them to `work` in batches that suit `encoder`; only one batch is in memory
/// at a time.  Returns the images that could not be read.
///
/// # Errors
/// The first error of `work`.
pub fn stream(
    data: &dyn Dataset,
    chosen: &[usize],
    encoder: &Encoder,
    preprocess: &Preprocess,
    mut work: impl FnMut(&PreparedImages) -> Result<()>,
) -> Result<Vec<LeftOut>> {
    let progress = Progress::new("encoding images", chosen.len());
    let mut left_out = Vec::new();
    for chosen in chosen.chunks(batch_of(encoder)) {
        let (images, broken) = read_or_name(data, chosen, preprocess, &progress);
        left_out.extend(broken);
        if !images.labels.is_empty() {
            work(&images)?;
        }
    }
    Ok(left_out)
}

/// Normalises images and puts their channels first.
///
/// # Shapes
/// `pixels` (B, S, S, 3) u8, the result (B, 3, S, S) f32.
///
/// # Errors
/// A tensor operation fails.
pub fn pixels_to_tensor(pixels: &[u8], size: usize, preprocess: &Preprocess) -> Result<Tensor> {
    let each = 3 * size * size;
    let mut values = vec![0f32; pixels.len()];
    values.par_chunks_mut(each).zip(pixels.par_chunks(each)).for_each(|(out, rgb)| preprocess.normalize(rgb, out));
    Ok(Tensor::from_vec(values, (pixels.len() / each, 3, size, size), &Device::Cpu)?)
}

/// Reads a training checkpoint: the encoder without gradients, the configuration, and the number of steps done.
///
/// # Errors
/// The checkpoint is missing or damaged.
pub fn load_encoder(path: &std::path::Path) -> Result<(Encoder, Config, u64)> {
    let checkpoint = macrl_nn::checkpoint::load(path)?;
    let encoder = Encoder::from_tensors(&checkpoint.config.encoder, &checkpoint.tensors, "encoder.")
        .with_context(|| format!("checkpoint {}", path.display()))?;
    let step = checkpoint.notes.get("step").and_then(|s| s.parse().ok()).unwrap_or_default();
    Ok((encoder, checkpoint.config, step))
}
