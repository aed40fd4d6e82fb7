//! `samples.safetensors`: some held-out images after the evaluation transform, kept with the run.  The export checks its
//! parity on them, and the report shows them.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use macrl_bundle::atomic;
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::checkpoint;

use crate::data::{Data, Dataset};
use crate::encode::PreparedImages;
use crate::evaluate::draw::stratified;
use crate::run::Run;

/// Number of images kept.
const SAMPLES: usize = 64;
/// Label in the file of an image without one.
const UNKNOWN: i64 = -1;

/// Writes a fixed random choice of the held-out images (of the training images where nothing is held out), spread over the
/// classes: `pixels` (n, S, S, 3) u8 after the evaluation transform, `labels` (n) i64, -1 where there is none.
///
/// # Errors
/// The file cannot be written.
pub fn write(run: &Run, config: &Config, data: &Data) -> Result<()> {
    let size = config.encoder.image_size;
    let split = data.test.as_ref().unwrap_or(&data.train);
    let chosen = draw(split.as_ref(), SAMPLES);
    let images = PreparedImages::read_chosen(split.as_ref(), &chosen, &Preprocess::from_config(config));
    let labels: Vec<i64> = images.indices.iter().map(|i| split.label(*i).map_or(UNKNOWN, i64::from)).collect();
    let count = labels.len();
    let tensors = [
        ("pixels".to_string(), Tensor::from_vec(images.pixels, (count, size, size, 3), &Device::Cpu)?),
        ("labels".to_string(), Tensor::from_vec(labels, count, &Device::Cpu)?),
    ];
    let bytes = checkpoint::to_bytes(&tensors, HashMap::new())?;
    atomic::write_file(&run.samples(), &bytes).with_context(|| format!("cannot write {}", run.samples().display()))?;
    Ok(())
}

/// Indices of at most `count` of a split's images: a fixed random choice, spread over the classes where there are any.
pub fn draw(split: &dyn Dataset, count: usize) -> Vec<usize> {
    let labels: Vec<Option<u32>> = (0..split.len()).map(|i| split.label(i)).collect();
    stratified(&labels, count, 1)
}

/// Reads the images that [`write`] has written, and their labels where there are any.
///
/// # Errors
/// A missing or damaged file, or one of another configuration.
pub fn read(run: &Run, config: &Config) -> Result<(PreparedImages, Vec<Option<u32>>)> {
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
    let known: Vec<Option<u32>> = labels.iter().map(|label| u32::try_from(*label).ok()).collect();
    let images = PreparedImages {
        pixels: pixels.flatten_all()?.to_vec1().with_context(named)?,
        labels: known.iter().map(|label| label.unwrap_or(0)).collect(),
        indices: (0..n).collect(),
        labelled: known.iter().all(Option::is_some),
    };
    Ok((images, known))
}
