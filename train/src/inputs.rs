//! A batch as the method's operators take it.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use macrl_bundle::config::Config;
use macrl_nn::ops::tokens::{Kept, Seen};

use crate::ops::losses::{Images, Target};
use crate::views::{Batch, View};

/// One branch.
#[derive(Debug, Clone)]
pub struct Input {
    /// What the encoder sees.
    pub seen: Seen,
    /// All patches, where the key branch sees those.
    pub whole: Option<Seen>,
    /// What the decoder predicts.
    pub target: Target,
}

/// Both branches.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// (B) which images these are.
    pub images: Images,
    /// The query's branch.
    pub strong: Input,
    /// The key's branch.
    pub weak: Input,
}

impl Inputs {
    /// A batch on the CPU.
    ///
    /// # Errors
    /// A batch that does not fit the configuration.
    pub fn new(batch: &Batch, config: &Config) -> Result<Self> {
        let input = |view: &View| -> Result<Input> {
            let (b, p) = (batch.indices.len(), config.encoder.patch_values());
            let k = view.kept.len() / b.max(1);
            let seen = |patches: &[f32], k: usize, kept: Vec<u32>| -> Result<Seen> {
                let patches = Tensor::from_slice(patches, (b, k, p), &Device::Cpu)?;
                Ok(Seen { patches, kept: Kept::Host(Arc::new(kept)) })
            };
            let n = config.encoder.patches();
            let all = || (0..b).flat_map(|_| 0..n as u32).collect();
            Ok(Input {
                seen: seen(&view.patches, k, view.kept.clone())?,
                whole: (!view.whole.is_empty()).then(|| seen(&view.whole, n, all())).transpose()?,
                target: Target::Host(Arc::new(view.target.clone())),
            })
        };
        let images = Images::Host(batch.indices.clone());
        Ok(Inputs { images, strong: input(&batch.strong)?, weak: input(&batch.weak)? })
    }
}
