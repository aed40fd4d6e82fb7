//! `evaluation_images.safetensors`: some labelled images of both splits, kept with the run.  The export measures the 8-bit
//! graph's accuracy on them.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use macrl_bundle::atomic;
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::checkpoint;

use crate::data::{Data, Dataset};
use crate::encode::{PreparedImages, labelled};
use crate::evaluate::draw::stratified;
use crate::run::Run;

/// Images to look up and to classify, at most.
const IMAGES: [usize; 2] = [1200, 800];
/// Bytes of their pixels, at most: fewer images where they are large.
const BYTES: usize = 16 << 20;

/// Writes fixed draws of both splits' labelled images, spread over the classes: `lookup_pixels` and `query_pixels`
/// (n, S, S, 3) u8 after the evaluation transform, `lookup_labels` and `query_labels` (n) i64.
///
/// # Errors
/// No readable images with labels; the file cannot be written.
pub fn write(run: &Run, config: &Config, data: &Data) -> Result<()> {
    let size = config.encoder.image_size;
    let room = BYTES / (3 * size * size).max(1);
    let share = |count: usize| (count.min(room * count / IMAGES.iter().sum::<usize>())).max(1);
    let held = data.test.as_ref().context("the data has nothing to hold out for a test")?;
    let mut tensors = Vec::new();
    for (name, split, count) in [("lookup", &data.train, share(IMAGES[0])), ("query", held, share(IMAGES[1]))] {
        let images =
            PreparedImages::read_chosen(split.as_ref(), &draw(split.as_ref(), count), &Preprocess::from_config(config));
        let labels: Vec<i64> = images.labels.iter().map(|label| i64::from(*label)).collect();
        let n = labels.len();
        let pixels = Tensor::from_vec(images.pixels, (n, size, size, 3), &Device::Cpu)?;
        tensors.push((format!("{name}_pixels"), pixels));
        tensors.push((format!("{name}_labels"), Tensor::from_vec(labels, n, &Device::Cpu)?));
    }
    let bytes = checkpoint::to_bytes(&tensors, HashMap::new())?;
    atomic::write_file(&run.evaluation_images(), &bytes)
        .with_context(|| format!("cannot write {}", run.evaluation_images().display()))
}

/// Whether a file is one that [`write`] wrote.
pub fn is_ours(path: &Path) -> bool {
    candle_core::safetensors::load(path, &Device::Cpu).is_ok_and(|tensors| tensors.contains_key("lookup_pixels"))
}

/// Numbers of at most `count` labelled images.
fn draw(split: &dyn Dataset, count: usize) -> Vec<usize> {
    let known = labelled(split);
    let labels: Vec<Option<u32>> = known.iter().map(|i| split.label(*i)).collect();
    stratified(&labels, count, 1).into_iter().map(|i| known[i]).collect()
}
