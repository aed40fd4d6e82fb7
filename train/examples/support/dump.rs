//! Files that both step benchmarks write for PyTorch: the initial state and a few batches.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use image::RgbImage;
use macrl_bundle::config::Config;
use macrl_kernels::rng::Rng;
use macrl_nn::checkpoint::to_bytes;
use macrl_train::data::Dataset;
use macrl_train::data::memory::Memory;
use macrl_train::state::State;
use macrl_train::views::{Batch, View};

/// Steps in an epoch, for the schedule.
pub(crate) const EPOCH: u64 = 1000;

/// Random images for `batches` batches.
pub(crate) fn noise(config: &Config, batches: usize) -> Arc<dyn Dataset> {
    let size = config.encoder.image_size as u32;
    let count = batches * config.train.batch_size;
    let image = |i: usize| {
        let mut rng = Rng::new([0, i as u64, 0, 0]);
        let pixels = (0..3 * size * size).map(|_| rng.bits() as u8).collect();
        RgbImage::from_raw(size, size, pixels).unwrap_or_else(|| RgbImage::new(size, size))
    };
    Arc::new(Memory::new("noise", (0..count).map(image).collect(), vec![None; count]))
}

pub(crate) fn write(dir: &Path, config: &Config, state: &State, batches: &[Batch]) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    state.save(&dir.join("state.safetensors"), config)?;
    let size = config.train.batch_size;
    let mut tensors = Vec::new();
    for (i, batch) in batches.iter().enumerate() {
        tensors.push((format!("{i}.images"), Tensor::from_slice(&batch.indices, size, &Device::Cpu)?));
        for (name, view) in [("strong", &batch.strong), ("weak", &batch.weak)] {
            let View { kept, patches, whole, target } = view;
            let p = config.encoder.patch_values();
            let (k, n) = (kept.len() / size, config.encoder.patches());
            tensors.push((format!("{i}.{name}.kept"), Tensor::from_slice(kept, (size, k), &Device::Cpu)?));
            tensors.push((format!("{i}.{name}.patches"), Tensor::from_slice(patches, (size, k, p), &Device::Cpu)?));
            if !whole.is_empty() {
                tensors.push((format!("{i}.{name}.whole"), Tensor::from_slice(whole, (size, n, p), &Device::Cpu)?));
            }
            tensors.push((format!("{i}.{name}.target"), Tensor::from_slice(target, (size, n, p), &Device::Cpu)?));
        }
    }
    std::fs::write(dir.join("batches.safetensors"), to_bytes(&tensors, Default::default())?)?;
    Ok(())
}
