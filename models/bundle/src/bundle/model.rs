//! `config.json`: the network and where its weights come from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::names::FORMAT;
use crate::config::{Config, EncoderConfig, Pooling};

/// `config.json`: the encoder's geometry under the names of Hugging Face's ViT, and where the weights come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// `["ViTModel"]`.
    pub architectures: Vec<String>,
    /// `vit`.
    pub model_type: String,
    /// S, pixels.
    pub image_size: usize,
    /// Pixels.
    pub patch_size: usize,
    /// 3.
    pub num_channels: usize,
    /// D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// Hidden width of a block's MLP.
    pub intermediate_size: usize,
    /// `gelu`, the exact one.
    pub hidden_act: String,
    /// 1e-6.
    pub layer_norm_eps: f64,
    /// True.
    pub qkv_bias: bool,
    /// What `pooler_output` is.
    pub pooling: Pooling,
    /// Class index, as text, -> name; empty without labels.
    #[serde(default)]
    pub id2label: BTreeMap<String, String>,
    /// The inverse.
    #[serde(default)]
    pub label2id: BTreeMap<String, usize>,
    /// Where the weights come from.
    pub macrl: Provenance,
}

/// Where a bundle's weights come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Of the bundle, see [`FORMAT`]; 1 where the file does not say.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Name of the model: the run's folder.
    pub name: String,
    /// Version of the program that wrote the bundle.
    pub version: String,
    /// SHA-256 of `model.safetensors`, hexadecimal.
    pub weights_sha256: String,
    /// The run's resolved configuration, TOML.
    pub config: String,
    /// Optimiser steps behind the weights.
    #[serde(default)]
    pub steps: u64,
    /// More, free.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

fn first_format() -> u32 {
    1
}

impl ModelConfig {
    /// The file's content for a run; `labels` in the order of the probe's rows.
    pub fn new(config: &Config, labels: &[String], provenance: Provenance) -> Self {
        let e = &config.encoder;
        Self {
            architectures: vec!["ViTModel".into()],
            model_type: "vit".into(),
            image_size: e.image_size,
            patch_size: e.patch_size,
            num_channels: 3,
            hidden_size: e.width,
            num_hidden_layers: e.depth,
            num_attention_heads: e.heads,
            intermediate_size: e.width * e.mlp_ratio,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            pooling: config.evaluate.pooling,
            id2label: labels.iter().enumerate().map(|(i, l)| (i.to_string(), l.clone())).collect(),
            label2id: labels.iter().enumerate().map(|(i, l)| (l.clone(), i)).collect(),
            macrl: Provenance { format: FORMAT, ..provenance },
        }
    }

    /// The geometry as the network takes it.
    pub fn encoder(&self) -> EncoderConfig {
        EncoderConfig {
            image_size: self.image_size,
            patch_size: self.patch_size,
            width: self.hidden_size,
            depth: self.num_hidden_layers,
            heads: self.num_attention_heads,
            mlp_ratio: self.intermediate_size / self.hidden_size.max(1),
        }
    }

    /// Class names in index order (C); empty without labels.
    pub fn labels(&self) -> Vec<String> {
        (0..self.id2label.len()).filter_map(|i| self.id2label.get(&i.to_string()).cloned()).collect()
    }

    /// Whether this version can read it, and its entries make sense together; if not, what was expected and found.
    pub(super) fn check(&self) -> Result<(), String> {
        let expect = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
        let format = self.macrl.format;
        expect(
            (1..=FORMAT).contains(&format),
            format!("macrl.format must be in 1..={FORMAT}, found {format}: use a newer version of this program"),
        )?;
        expect(self.model_type == "vit", format!("model_type must be vit, found {}", self.model_type))?;
        expect(self.num_channels == 3, format!("num_channels must be 3, found {}", self.num_channels))?;
        expect(self.hidden_act == "gelu", format!("hidden_act must be gelu, found {}", self.hidden_act))?;
        expect(
            (self.layer_norm_eps - 1e-6).abs() < 1e-12,
            format!("layer_norm_eps must be 1e-6, found {}", self.layer_norm_eps),
        )?;
        expect(self.qkv_bias, "qkv_bias must be true".into())?;
        let (s, p, d, h) = (self.image_size, self.patch_size, self.hidden_size, self.num_attention_heads);
        expect((1..=4096).contains(&s), format!("image_size must be in 1..=4096, found {s}"))?;
        expect(p > 0 && s.is_multiple_of(p), format!("patch_size must divide image_size ({s}), found {p}"))?;
        expect(
            h > 0 && d > 0 && d.is_multiple_of(h),
            format!("num_attention_heads must divide hidden_size ({d}), found {h}"),
        )?;
        expect(self.num_hidden_layers > 0, "num_hidden_layers must be above 0".into())?;
        let m = self.intermediate_size;
        expect(
            m > 0 && m.is_multiple_of(d),
            format!("intermediate_size must be a multiple of hidden_size ({d}), found {m}"),
        )?;
        expect(self.labels().len() == self.id2label.len(), "id2label must number its classes 0, 1, 2 ...".into())
    }
}
