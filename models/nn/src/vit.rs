//! The encoder: a Vision Transformer (arXiv 2010.11929) that can leave out removed patches, as in MAE
//! (arXiv 2111.06377).
//!
//! Patch embedding, class token, fixed 2-D sine-cosine positions, pre-norm blocks, final norm.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use macrl_bundle::config::{EncoderConfig, Pooling};
use macrl_bundle::parameters::EncoderLayout;

use crate::ops::attention::Heads;
use crate::ops::block::Block;
use crate::ops::tokens::{Kept, Positions, Seen, Tokens, embed};
use crate::params::{Group, Layout};

/// A stack of blocks of one width; encoder and decoder both have one.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// One group of parameters per block.
    pub groups: Vec<Group>,
    heads: usize,
    width: usize,
    hidden: usize,
}

impl Blocks {
    /// A stack over groups made from [`macrl_bundle::parameters::blocks`].
    pub fn new(groups: Vec<Group>, heads: usize, width: usize, hidden: usize) -> Self {
        Blocks { groups, heads, width, hidden }
    }

    /// The same stack with every group replaced.
    ///
    /// # Errors
    /// The first that `f` gives.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        Ok(Blocks { groups: self.groups.into_iter().map(f).collect::<Result<_>>()?, ..self })
    }

    /// # Shapes
    /// Tokens (B, T, D) of each view.
    ///
    /// # Errors
    /// A width that is not the stack's.
    pub fn forward(&self, tokens: &Tokens) -> Result<Tokens> {
        let (heads, width, hidden) = (self.heads, self.width, self.hidden);
        tokens.blocks(&self.groups, |tokens| Block { at: Heads { tokens, heads, width }, hidden })
    }
}

/// The ViT that is kept after training.
#[derive(Debug, Clone)]
pub struct Encoder {
    config: EncoderConfig,
    embed: Group,
    blocks: Blocks,
    norm: Group,
    positions: Positions,
}

impl Encoder {
    /// Fresh weights, a function of the seed alone.
    ///
    /// # Errors
    /// Candle's.
    pub fn init(config: &EncoderConfig, seed: u64) -> Result<Self> {
        Self::build(config, &|layout| Group::init(layout, seed))
    }

    /// Weights under timm's names, with `prefix` in front of each (a training checkpoint: `encoder.`).
    ///
    /// # Errors
    /// A missing tensor, or one of another shape: both named.
    pub fn from_tensors(config: &EncoderConfig, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Self> {
        Self::build(config, &|layout| Group::load(layout, tensors, prefix))
    }

    fn build(config: &EncoderConfig, make: &dyn Fn(&Layout) -> Result<Group>) -> Result<Self> {
        let (d, hidden) = (config.width, config.width * config.mlp_ratio);
        let EncoderLayout { embed, blocks, norm } = EncoderLayout::new(config);
        let blocks = blocks.iter().map(make).collect::<Result<_>>()?;
        Ok(Encoder {
            config: config.clone(),
            embed: make(&embed)?,
            blocks: Blocks::new(blocks, config.heads, d, hidden),
            norm: make(&norm)?,
            positions: Positions::new(positions(config.grid(), d), d),
        })
    }

    /// The geometry.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// All parameters, in a fixed order.
    pub fn groups(&self) -> Vec<&Group> {
        std::iter::once(&self.embed).chain(&self.blocks.groups).chain([&self.norm]).collect()
    }

    /// The same encoder with every group replaced.
    ///
    /// # Errors
    /// The first that `f` gives.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        Ok(Encoder { embed: f(self.embed)?, blocks: self.blocks.map(&f)?, norm: f(self.norm)?, ..self })
    }

    /// Every weight under timm's name.
    ///
    /// # Errors
    /// Candle's.
    pub fn named(&self) -> Result<Vec<(String, Tensor)>> {
        self.groups().into_iter().map(Group::named).collect::<Result<Vec<_>>>().map(|named| named.concat())
    }

    /// Encodes kept patches only, of one or two views of a batch side by side.
    ///
    /// # Shapes
    /// Patches (B, K, P) of each view, normalised pixels in (channel, row, column) order; the result (B, 1 + K, D) of
    /// each view, normed.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, views: &[&Seen]) -> Result<Tokens> {
        let tokens = embed(views, &self.embed, &self.positions)?;
        self.blocks.forward(&tokens)?.norm(&self.norm)
    }

    /// Encodes whole images: what evaluation and serving compute.
    ///
    /// # Shapes
    /// `pixels` (B, 3, S, S) normalised; the result, last_hidden_state, (B, 1 + N, D).
    ///
    /// # Errors
    /// Another image size than the configuration's.
    pub fn forward_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode(pixels)?.single()
    }

    /// What stands for each of whole images.
    ///
    /// # Shapes
    /// `pixels` as in [`Encoder::forward_pixels`]; the result (B, D).
    ///
    /// # Errors
    /// As [`Encoder::forward_pixels`].
    pub fn features(&self, pixels: &Tensor, pooling: Pooling) -> Result<Tensor> {
        self.encode(pixels)?.pool(0, pooling)
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tokens> {
        let (b, channels, height, width) = pixels.dims4()?;
        let s = self.config.image_size;
        if (channels, height, width) != (3, s, s) {
            bail!("expected images of (3, {s}, {s}), got ({channels}, {height}, {width})")
        }
        let values = pixels.flatten_all()?.to_vec1::<f32>()?;
        let (n, p) = (self.config.patches(), self.config.patch_values());
        let patches = patchify(&values, s, self.config.patch_size);
        let kept = (0..b).flat_map(|_| 0..n as u32).collect();
        let view = self.whole(&patches, (b, n, p), kept)?;
        self.forward(&[&view])
    }

    /// All patches of images, where the weights are.
    fn whole(&self, patches: &[f32], shape: (usize, usize, usize), kept: Vec<u32>) -> Result<Seen> {
        #[cfg(feature = "cuda")]
        if let Some(place) = self.embed.on_device() {
            let device = self.embed.values().device();
            let real = if place.half.is_some() { crate::cuda::Real::Bf16 } else { crate::cuda::Real::F32 };
            let kept = Tensor::from_vec(kept, (shape.0, shape.1), device)?;
            let patches = crate::cuda::memory::upload(device, real, patches, shape)?;
            return Ok(Seen { patches, kept: Kept::Device { sources: kept.clone(), kept } });
        }
        let patches = Tensor::from_slice(patches, shape, &Device::Cpu)?;
        Ok(Seen { patches, kept: Kept::Host(Arc::new(kept)) })
    }
}

/// Cuts images into patches, row by row over the grid.
///
/// # Shapes
/// `pixels` (B, 3, S, S), the result (B, N, P) with P in (channel, row, column) order.
pub fn patchify(pixels: &[f32], size: usize, patch: usize) -> Vec<f32> {
    let grid = size / patch;
    let mut out = Vec::with_capacity(pixels.len());
    for image in pixels.chunks_exact(3 * size * size) {
        for (row, column) in (0..grid * grid).map(|n| (n / grid * patch, n % grid * patch)) {
            for (channel, y) in (0..3 * patch).map(|i| (i / patch, i % patch)) {
                let start = (channel * size + row + y) * size + column;
                out.extend_from_slice(&image[start..start + patch]);
            }
        }
    }
    out
}

/// Fixed 2-D sine-cosine positions, as MAE has them: half of the width for the column, half for the row, each half
/// sines then cosines of frequencies 10000^(-4 i / D).  Row 0 is the class token's and zero.
///
/// # Shapes
/// The result (1 + grid^2, `width`), flat.
pub fn positions(grid: usize, width: usize) -> Vec<f32> {
    let quarter = width / 4;
    let mut out = vec![0f32; width];
    for (row, column) in (0..grid * grid).map(|n| (n / grid, n % grid)) {
        for coordinate in [column, row] {
            let angle = |i: usize| coordinate as f64 / 10_000f64.powf(i as f64 / quarter as f64);
            out.extend((0..quarter).map(|i| angle(i).sin() as f32));
            out.extend((0..quarter).map(|i| angle(i).cos() as f32));
        }
    }
    out
}
