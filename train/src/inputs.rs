//! A batch as the method's operators take it.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use macrl_models::config::Config;
use macrl_models::ops::tokens::{Images, Kept, Seen, Target};

use crate::views::{Batch, View};

/// One branch.
#[derive(Debug, Clone)]
pub struct Input {
    /// What the encoder sees.
    pub seen: Seen,
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
            let patches = Tensor::from_slice(&view.patches, (b, k, p), &Device::Cpu)?;
            let seen = Seen { patches, kept: Kept::Host(Arc::new(view.kept.clone())) };
            Ok(Input { seen, target: Target::Host(Arc::new(view.target.clone())) })
        };
        let images = Images::Host(batch.indices.clone());
        Ok(Inputs { images, strong: input(&batch.strong)?, weak: input(&batch.weak)? })
    }
}
