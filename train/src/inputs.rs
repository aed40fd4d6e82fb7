//! A batch as the method's operators take it.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use macrl_bundle::config::Config;
use macrl_nn::ops::tokens::{Kept, VisiblePatches};

use crate::ops::contrast::KeyImages;
use crate::ops::reconstruction::Target;
use crate::views::{Batch, View};

/// The input of one branch.
#[derive(Debug, Clone)]
pub struct Input {
    /// The patches that the mask keeps, for the encoder.
    pub seen: VisiblePatches,
    /// All patches, where the key branch encodes whole views (`contrast.key_mask = "none"`).
    pub whole: Option<VisiblePatches>,
    /// The pixels that the decoder is to predict.
    pub target: Target,
}

/// The inputs of both branches.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// (B): index of each image in the training split.
    pub images: KeyImages,
    /// The strong branch, which gives the queries.
    pub strong: Input,
    /// The weak branch, which gives the keys.
    pub weak: Input,
}

impl Inputs {
    /// Makes the operators' inputs from a batch on the CPU.
    ///
    /// # Errors
    /// A batch that does not fit the configuration.
    pub fn new(batch: &Batch, config: &Config) -> Result<Self> {
        let input = |view: &View| -> Result<Input> {
            let (b, p) = (batch.indices.len(), config.encoder.patch_values());
            let k = view.kept.len() / b.max(1);
            let seen = |patches: &[f32], k: usize, kept: Vec<u32>| -> Result<VisiblePatches> {
                let patches = Tensor::from_slice(patches, (b, k, p), &Device::Cpu)?;
                Ok(VisiblePatches { patches, kept: Kept::Host(Arc::new(kept)) })
            };
            let n = config.encoder.patches();
            let all = || (0..b).flat_map(|_| 0..n as u32).collect();
            Ok(Input {
                seen: seen(&view.patches, k, view.kept.clone())?,
                whole: (!view.whole.is_empty()).then(|| seen(&view.whole, n, all())).transpose()?,
                target: Target::Host(Arc::new(view.target.clone())),
            })
        };
        let images = KeyImages::Host(batch.indices.clone());
        Ok(Inputs { images, strong: input(&batch.strong)?, weak: input(&batch.weak)? })
    }
}
