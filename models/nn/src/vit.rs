//! The encoder: a Vision Transformer (arXiv 2010.11929) that can skip removed patches, as in MAE (arXiv 2111.06377).
//!
//! Patch embedding, class token, fixed 2-D sine-cosine positions, pre-norm blocks, final norm.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use macrl_bundle::config::{EncoderConfig, Pooling};
use macrl_bundle::parameters::EncoderLayout;

use crate::ops::attention::Heads;
use crate::ops::block::Block;
use crate::ops::tokens::{Kept, Positions, Tokens, VisiblePatches, embed};
use crate::params::{Group, Layout};

/// A stack of transformer blocks of equal width; encoder and decoder each have one.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// One group of parameters per block.
    pub groups: Vec<Group>,
    heads: usize,
    width: usize,
    hidden: usize,
}

impl Blocks {
    /// A stack with parameter groups from [`macrl_bundle::parameters::blocks`].
    pub fn new(groups: Vec<Group>, heads: usize, width: usize, hidden: usize) -> Self {
        Blocks { groups, heads, width, hidden }
    }

    /// Replaces every parameter group.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        Ok(Blocks { groups: self.groups.into_iter().map(f).collect::<Result<_>>()?, ..self })
    }

    /// Applies all blocks.
    ///
    /// # Shapes
    /// Tokens and result (B, T, D) of each view.
    ///
    /// # Errors
    /// The tokens have another width than the stack.
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
    /// Initial weights, which depend on the seed only.
    ///
    /// # Errors
    /// A failed Candle allocation.
    pub fn init(config: &EncoderConfig, seed: u64) -> Result<Self> {
        Self::build(config, &|layout| Group::init(layout, seed))
    }

    /// Weights from tensors with timm's names, each with `prefix` in front (`encoder.` in a training checkpoint).
    ///
    /// # Errors
    /// A tensor is missing or has another shape; the message names it.
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

    /// Geometry of the encoder, as configured.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// All parameter groups: embedding, blocks, norm.
    pub fn groups(&self) -> Vec<&Group> {
        std::iter::once(&self.embed).chain(&self.blocks.groups).chain([&self.norm]).collect()
    }

    /// Replaces every parameter group.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        Ok(Encoder { embed: f(self.embed)?, blocks: self.blocks.map(&f)?, norm: f(self.norm)?, ..self })
    }

    /// All weights with timm's names.
    ///
    /// # Errors
    /// A failed copy from the GPU or a failed Candle allocation.
    pub fn named(&self) -> Result<Vec<(String, Tensor)>> {
        self.groups().into_iter().map(Group::named).collect::<Result<Vec<_>>>().map(|named| named.concat())
    }

    /// Encodes the kept patches of one or more views of a batch.
    ///
    /// # Shapes
    /// Patches (B, K, P) of each view, normalised pixels in (channel, row, column) order; the result (B, 1 + K, D) of
    /// each view, after the final norm.
    ///
    /// # Errors
    /// The shapes of the views and the configuration do not match.
    pub fn forward(&self, views: &[&VisiblePatches]) -> Result<Tokens> {
        let tokens = embed(views, &self.embed, &self.positions)?;
        self.blocks.forward(&tokens)?.norm(&self.norm)
    }

    /// Encodes whole images, as evaluation and the server do.
    ///
    /// # Shapes
    /// `pixels` (B, 3, S, S) normalised; the result, last_hidden_state, (B, 1 + N, D).
    ///
    /// # Errors
    /// The images do not have the configuration's size.
    pub fn forward_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode(pixels)?.single()
    }

    /// One feature for each whole image.
    ///
    /// # Shapes
    /// `pixels` as in [`Encoder::forward_pixels`]; the result (B, D).
    ///
    /// # Errors
    /// The images do not have the configuration's size.
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

    /// All patches of images, on the device of the weights.
    fn whole(&self, patches: &[f32], shape: (usize, usize, usize), kept: Vec<u32>) -> Result<VisiblePatches> {
        #[cfg(feature = "cuda")]
        if let Some(place) = self.embed.on_device() {
            let device = self.embed.values().device();
            let scalar =
                if place.half.is_some() { crate::cuda::ScalarType::Bf16 } else { crate::cuda::ScalarType::F32 };
            let kept = Tensor::from_vec(kept, (shape.0, shape.1), device)?;
            let patches = crate::cuda::memory::upload(device, scalar, patches, shape)?;
            return Ok(VisiblePatches { patches, kept: Kept::Device { sources: kept.clone(), kept } });
        }
        let patches = Tensor::from_slice(patches, shape, &Device::Cpu)?;
        Ok(VisiblePatches { patches, kept: Kept::Host(Arc::new(kept)) })
    }
}

/// Divides images into patches, row by row over the grid.
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

/// Fixed 2-D sine-cosine positions, as in MAE: one half of the width encodes the column, the other the row; each half
/// contains sines, then cosines, of the frequencies 10000^(-4 i / D).  Row 0 belongs to the class token and is zero.
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
