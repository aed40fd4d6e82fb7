//! The decoder: a narrower, shallow ViT over all patches, mask tokens where patches were removed, predicting pixels
//! (as in MAE, arXiv 2111.06377).  Thrown away after training.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use macrl_models::config::Config;
use macrl_models::ops::graph;
use macrl_models::params::{Group, Init, Layout};
use macrl_models::vit::{Blocks, TOKEN_DEVIATION, positions};

/// MLP width of a decoder block as a multiple of its width, as in MAE.
const MLP_RATIO: usize = 4;

/// Encoded tokens -> predicted patches.
#[derive(Debug, Clone)]
pub struct Decoder {
    fill: Group,
    blocks: Blocks,
    norm: Group,
    predict: Group,
    positions: Arc<Vec<f32>>,
    patch_values: usize,
}

impl Decoder {
    /// Fresh weights, a function of the seed alone.
    ///
    /// # Errors
    /// Candle's.
    pub fn init(config: &Config, seed: u64) -> Result<Self> {
        Self::build(config, &|layout| layout.init(seed)?.trainable())
    }

    /// Weights from a checkpoint, names with `prefix` in front.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn from_tensors(config: &Config, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Self> {
        Self::build(config, &|layout| layout.load(tensors, prefix)?.trainable())
    }

    fn build(config: &Config, make: &dyn Fn(Layout) -> Result<Group>) -> Result<Self> {
        let (d, e) = (config.encoder.width, config.decoder.width);
        let fill = Layout::new("").with_linear("decoder_embed", &[e, d]).with(
            "mask_token",
            &[1, 1, e],
            Init::Normal(TOKEN_DEVIATION),
        );
        let layouts = Blocks::layouts("decoder_blocks", config.decoder.depth, e, e * MLP_RATIO);
        let blocks = layouts.into_iter().map(make).collect::<Result<_>>()?;
        let patch_values = config.encoder.patch_values();
        Ok(Decoder {
            fill: make(fill)?,
            blocks: Blocks::new(blocks, config.decoder.heads, e, e * MLP_RATIO),
            norm: make(Layout::new("").with_norm("decoder_norm", e))?,
            predict: make(Layout::new("").with_linear("decoder_pred", &[patch_values, e]))?,
            positions: Arc::new(positions(config.encoder.grid(), e)),
            patch_values,
        })
    }

    /// All parameters, in a fixed order.
    pub fn groups(&self) -> Vec<&Group> {
        std::iter::once(&self.fill).chain(&self.blocks.groups).chain([&self.norm, &self.predict]).collect()
    }

    /// # Shapes
    /// `tokens` (B, 1 + K, D) from the encoder, `kept` (B, K); the result (B, 1 + N, P), where row 0 is the class
    /// token's and means nothing.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, tokens: &Tensor, kept: Arc<Vec<u32>>) -> Result<Tensor> {
        let x = graph::fill(tokens, self.fill.values(), kept, self.positions.clone())?;
        let x = graph::norm(&self.blocks.forward(x)?, self.norm.values())?;
        graph::linear(&x, self.predict.values(), self.patch_values, false)
    }
}
