//! Images -> frozen features: what evaluation, the online kNN and the report look at.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use macrl_models::config::{Config, Pooling};
use macrl_models::ops::graph::with_values;
use macrl_models::preprocess::Preprocess;
use macrl_models::progress::Progress;
use macrl_models::vit::Encoder;
use rayon::prelude::*;

use crate::data::Dataset;
use crate::evaluate::Features;

/// Images that pass through the encoder at once.
const BATCH: usize = 256;

/// Images as the encoder sees them before normalisation, with their labels.
pub struct Images {
    /// (n, S, S, 3) u8.
    pub pixels: Vec<u8>,
    /// (n)
    pub labels: Vec<u32>,
    /// Which images of the split these are (n).
    pub indices: Vec<usize>,
}

impl Images {
    /// Reads `count` labelled images spread evenly over a split (all where it has fewer), through the evaluation
    /// transform.  Unreadable ones are left out.
    ///
    /// # Errors
    /// No image is labelled and readable.
    pub fn read(data: &dyn Dataset, count: usize, preprocess: &Preprocess) -> Result<Self> {
        let images = Self::read_with(data, count, preprocess, |i| data.label(i));
        anyhow::ensure!(
            !images.labels.is_empty(),
            "no image with a label: evaluation needs class sub-folders or labels"
        );
        Ok(images)
    }

    /// The same whether they have labels or not; all count as class 0.
    pub fn read_unlabelled(data: &dyn Dataset, count: usize, preprocess: &Preprocess) -> Self {
        Self::read_with(data, count, preprocess, |_| Some(0))
    }

    fn read_with(
        data: &dyn Dataset,
        count: usize,
        preprocess: &Preprocess,
        label: impl Fn(usize) -> Option<u32> + Sync,
    ) -> Self {
        let total = data.len();
        let count = count.min(total);
        let chosen: Vec<usize> = (0..count).map(|i| i * total / count.max(1)).collect();
        let progress = Progress::new("reading images to judge the encoder by", chosen.len());
        let fitted: Vec<(usize, u32, Vec<u8>)> = chosen
            .into_par_iter()
            .inspect(|_| progress.add(1))
            .filter_map(|i| Some((i, label(i)?, preprocess.fit(&*data.image(i).ok()?).into_raw())))
            .collect();
        drop(progress);
        let mut images = Images { pixels: Vec::new(), labels: Vec::new(), indices: Vec::new() };
        for (i, label, pixels) in fitted {
            images.pixels.extend(pixels);
            images.labels.push(label);
            images.indices.push(i);
        }
        images
    }

    /// Pooled features of all of them.
    ///
    /// # Errors
    /// Candle's.
    pub fn encode(&self, encoder: &Encoder, preprocess: &Preprocess, pooling: Pooling) -> Result<Features> {
        let size = encoder.config().image_size;
        let mut values = Vec::with_capacity(self.labels.len() * encoder.config().width);
        for pixels in self.pixels.chunks(BATCH * size * size * 3) {
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

/// Normalised images.
///
/// # Shapes
/// `pixels` (B, S, S, 3) u8, the result (B, 3, S, S) f32.
///
/// # Errors
/// Candle's.
pub fn pixels_to_tensor(pixels: &[u8], size: usize, preprocess: &Preprocess) -> Result<Tensor> {
    let each = 3 * size * size;
    let mut values = vec![0f32; pixels.len()];
    values.par_chunks_mut(each).zip(pixels.par_chunks(each)).for_each(|(out, rgb)| preprocess.normalize(rgb, out));
    Ok(Tensor::from_vec(values, (pixels.len() / each, 3, size, size), &Device::Cpu)?)
}

/// An encoder without gradients, from a checkpoint of training.
///
/// # Errors
/// A damaged checkpoint.
pub fn load_encoder(path: &std::path::Path) -> Result<(Encoder, Config, u64)> {
    let checkpoint = macrl_models::checkpoint::load(path)?;
    let encoder = Encoder::from_tensors(&checkpoint.config.encoder, &checkpoint.tensors, "encoder.")
        .with_context(|| format!("checkpoint {}", path.display()))?;
    let step = checkpoint.notes.get("step").and_then(|s| s.parse().ok()).unwrap_or_default();
    Ok((encoder, checkpoint.config, step))
}
