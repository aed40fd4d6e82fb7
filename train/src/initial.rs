//! Weights that a run starts from instead of random ones: a bundle of ours, a checkpoint, or a ViT with timm's names and fixed
//! sine-cosine positions, as MAE's.
//!
//! Only the encoder is taken; decoder and projector start from random weights.  Positions are computed and not read, so the
//! image size may differ.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use macrl_bundle::bundle::Bundle;
use macrl_bundle::checkpoint::CheckpointFile;
use macrl_bundle::config::{EncoderConfig, Fit};
use macrl_bundle::parameters::EncoderLayout;
use macrl_nn::vit::{Encoder, positions};

/// Prefix of the encoder's tensors in a training checkpoint.
const PREFIX: &str = "encoder.";
/// Largest difference at which stored positions are ours; files in halves have rounded them.
const SAME: f32 = 2e-3;

/// An encoder's weights, and what is known of it.
pub struct Initial {
    tensors: HashMap<String, Tensor>,
    /// Keys of the configuration that the weights fix, as `section.key=value`.
    pub settings: Vec<String>,
    /// Names of tensors that an encoder does not have.
    pub left: Vec<String>,
}

impl Initial {
    /// Reads weights.
    ///
    /// # Errors
    /// A file that is not an encoder of this kind: one sentence says why.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::from_bundle(path);
        }
        if let Ok(file) = CheckpointFile::read(path) {
            let all = candle_core::safetensors::load(path, &Device::Cpu)?;
            let own =
                all.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(PREFIX)?.to_string(), tensor)));
            let mut settings = geometry(&file.config.encoder);
            settings.extend(transform(&file.config.data.mean, &file.config.data.std, file.config.data.fit));
            return Self::new(own.collect(), settings);
        }
        let all = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{} is neither a bundle nor a safetensors file", path.display()))?;
        let settings = measured(&all).with_context(|| path.display().to_string())?;
        Self::new(all, settings)
    }

    fn from_bundle(path: &Path) -> Result<Self> {
        let bundle = Bundle::open(path)?;
        let all = candle_core::safetensors::load(&bundle.weights, &Device::Cpu)?;
        let mut settings = geometry(&bundle.config.encoder());
        let p = &bundle.preprocess;
        settings.extend(transform(&p.mean, &p.std, p.fit));
        Self::new(all, settings)
    }

    fn new(mut tensors: HashMap<String, Tensor>, settings: Vec<String>) -> Result<Self> {
        if let Some(stored) = tensors.remove("pos_embed") {
            check_positions(&stored)?;
        }
        let depth = depth(&tensors);
        let known = |name: &str| {
            name == "cls_token"
                || ["patch_embed.proj.", "norm."].iter().any(|start| name.starts_with(start))
                || name.strip_prefix("blocks.").is_some_and(|rest| {
                    let parts = rest.split_once('.');
                    parts.is_some_and(|(block, rest)| block.parse().is_ok_and(|b: usize| b < depth) && in_block(rest))
                })
        };
        let mut left: Vec<String> = tensors.keys().filter(|name| !known(name)).cloned().collect();
        left.sort();
        // A part of the blocks that we do not have would be lost without a word: layer scale, for example.
        if let Some(name) = left.iter().find(|name| name.starts_with("blocks.") || name.contains("reg_token")) {
            bail!("{name} is a part that this encoder does not have");
        }
        tensors.retain(|name, _| known(name));
        Ok(Initial { tensors, settings, left })
    }

    /// Number of tensors that are taken.
    pub fn taken(&self) -> usize {
        self.tensors.len()
    }

    /// The encoder in a configuration's geometry.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape; the message names it.
    pub fn encoder(&self, config: &EncoderConfig) -> Result<Encoder> {
        let expected = EncoderLayout::new(config).parameters().count();
        let encoder = Encoder::from_tensors(config, &self.tensors, "")?;
        ensure!(
            self.taken() == expected,
            "expected {expected} tensors for encoder.depth = {}, found {}",
            config.depth,
            self.taken()
        );
        Ok(encoder)
    }
}

/// Whether a block of ours has a tensor of this name.
fn in_block(name: &str) -> bool {
    let parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"];
    name.rsplit_once('.').is_some_and(|(layer, kind)| parts.contains(&layer) && ["weight", "bias"].contains(&kind))
}

fn depth(tensors: &HashMap<String, Tensor>) -> usize {
    (0..).take_while(|i| tensors.contains_key(&format!("blocks.{i}.norm1.weight"))).count()
}

fn geometry(e: &EncoderConfig) -> Vec<String> {
    vec![
        format!("encoder.image_size={}", e.image_size),
        format!("encoder.patch_size={}", e.patch_size),
        format!("encoder.width={}", e.width),
        format!("encoder.depth={}", e.depth),
        format!("encoder.heads={}", e.heads),
        format!("encoder.mlp_ratio={}", e.mlp_ratio),
    ]
}

/// The normalisation that the weights were trained with.
fn transform(mean: &[f32; 3], std: &[f32; 3], fit: Fit) -> Vec<String> {
    let fit = if fit == Fit::Pad { "pad" } else { "resize" };
    vec![format!("data.mean={mean:?}"), format!("data.std={std:?}"), format!("data.fit={fit}")]
}

/// The geometry as the shapes of timm's tensors say it; they do not say the number of heads, which is 64 values wide in all of
/// timm's ViTs.
fn measured(tensors: &HashMap<String, Tensor>) -> Result<Vec<String>> {
    let shape =
        |name: &str| tensors.get(name).map(|t| t.dims().to_vec()).with_context(|| format!("tensor {name} is missing"));
    let patches = shape("patch_embed.proj.weight")?;
    let &[width, 3, patch, _] = patches.as_slice() else { bail!("patch_embed.proj.weight has shape {patches:?}") };
    let hidden = shape("blocks.0.mlp.fc1.weight")?.first().copied().unwrap_or_default();
    ensure!(hidden > 0 && hidden.is_multiple_of(width), "the MLP's width {hidden} is no multiple of {width}");
    let tokens = shape("pos_embed")?.get(1).copied().unwrap_or_default();
    let grid = tokens.saturating_sub(1).isqrt();
    let config = EncoderConfig {
        image_size: grid * patch,
        patch_size: patch,
        width,
        depth: depth(tensors),
        heads: (width / 64).max(1),
        mlp_ratio: hidden / width,
    };
    Ok(geometry(&config))
}

/// Learned positions are refused: this encoder's are computed, and others would change every feature.
fn check_positions(stored: &Tensor) -> Result<()> {
    let stored = stored.to_dtype(candle_core::DType::F32)?;
    let &[1, tokens, width] = stored.dims() else { bail!("pos_embed has shape {:?}", stored.dims()) };
    let grid = tokens.saturating_sub(1).isqrt();
    let values = stored.flatten_all()?.to_vec1::<f32>()?;
    let fixed = if grid * grid + 1 == tokens && width % 4 == 0 { positions(grid, width) } else { Vec::new() };
    let same = fixed.len() == values.len() && fixed.iter().zip(&values).all(|(a, b)| (a - b).abs() <= SAME);
    ensure!(
        same,
        "pos_embed holds learned positions; this encoder has fixed sine-cosine positions, as MAE's: other weights cannot be taken"
    );
    Ok(())
}
