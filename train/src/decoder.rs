//! The decoder: a narrower, shallow ViT over all patches, mask tokens where patches were removed, predicting pixels
//! (as in MAE, arXiv 2111.06377).  It is not exported: only training needs it.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use macrl_bundle::config::Config;
use macrl_bundle::parameters::{TOKEN_DEVIATION, blocks};
use macrl_nn::ops::tokens::{Kept, Positions, Tokens};
use macrl_nn::params::{Group, Init, Layout};
use macrl_nn::vit::{Blocks, positions};

/// MLP width of a decoder block as a multiple of its width, as in MAE.
const MLP_RATIO: usize = 4;

/// Encoded tokens -> predicted patches.
#[derive(Debug, Clone)]
pub struct Decoder {
    fill: Group,
    blocks: Blocks,
    norm: Group,
    predict: Group,
    positions: Positions,
    patch_values: usize,
}

impl Decoder {
    /// Initial weights; they depend on the seed alone.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn init(config: &Config, seed: u64) -> Result<Self> {
        Self::build(config, &|layout| Group::init(layout, seed)?.trainable())
    }

    /// Weights from a checkpoint, where each name begins with `prefix`.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn from_tensors(config: &Config, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Self> {
        Self::build(config, &|layout| Group::load(layout, tensors, prefix)?.trainable())
    }

    fn build(config: &Config, make: &dyn Fn(&Layout) -> Result<Group>) -> Result<Self> {
        let (d, e) = (config.encoder.width, config.decoder.width);
        let fill = Layout::new("").with_linear("decoder_embed", &[e, d]).with(
            "mask_token",
            &[1, 1, e],
            Init::Normal(TOKEN_DEVIATION),
        );
        let layouts = blocks("decoder_blocks", config.decoder.depth, e, e * MLP_RATIO);
        let blocks = layouts.iter().map(make).collect::<Result<_>>()?;
        let patch_values = config.encoder.patch_values();
        Ok(Decoder {
            fill: make(&fill)?,
            blocks: Blocks::new(blocks, config.decoder.heads, e, e * MLP_RATIO),
            norm: make(&Layout::new("").with_norm("decoder_norm", e))?,
            predict: make(&Layout::new("").with_linear("decoder_pred", &[patch_values, e]))?,
            positions: Positions::new(positions(config.encoder.grid(), e), e),
            patch_values,
        })
    }

    /// All parameters, in a fixed order.
    pub fn groups(&self) -> Vec<&Group> {
        std::iter::once(&self.fill).chain(&self.blocks.groups).chain([&self.norm, &self.predict]).collect()
    }

    /// The same decoder with every group replaced.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        let (fill, blocks, norm) = (f(self.fill)?, self.blocks.map(&f)?, f(self.norm)?);
        Ok(Decoder { fill, blocks, norm, predict: f(self.predict)?, ..self })
    }

    /// # Shapes
    /// `tokens` (B, 1 + K, D) of each view from the encoder, `kept` (B, K) of each; the result (B, 1 + N, P) of each,
    /// where row 0 belongs to the class token and has no meaning.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, tokens: &Tokens, kept: &[&Kept]) -> Result<Tokens> {
        let x = tokens.fill(&self.fill, kept, &self.positions)?;
        self.blocks.forward(&x)?.norm(&self.norm)?.linear(&self.predict, self.patch_values)
    }
}
