//! `config.json`: the encoder's geometry and the source of its weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::names::FORMAT;
use crate::config::{Config, EncoderConfig, Pooling};
use crate::preprocess::Preprocess;

/// The content of `config.json`: the geometry under the names of Hugging Face's ViT, and the source of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// `["ViTForImageClassification"]` with class names, otherwise `["ViTModel"]`.
    pub architectures: Vec<String>,
    /// Always `vit`.
    pub model_type: String,
    /// S, height and width of the input in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// Always 3 (R, G, B).
    pub num_channels: usize,
    /// D, values per token.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// H, attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Hidden width of a block's MLP; a multiple of `hidden_size`.
    pub intermediate_size: usize,
    /// Always `gelu`: the exact GELU, not its tanh approximation.
    pub hidden_act: String,
    /// Always 1e-6.
    pub layer_norm_eps: f64,
    /// Always true: the joint query, key and value layer has a bias.
    pub qkv_bias: bool,
    /// How `pooler_output` is computed from the tokens.
    pub pooling: Pooling,
    /// Class index (as text) -> class name; empty without labels.
    #[serde(default)]
    pub id2label: BTreeMap<String, String>,
    /// Class name -> class index; the inverse of `id2label`.
    #[serde(default)]
    pub label2id: BTreeMap<String, usize>,
    /// The source of the weights.
    pub macrl: Provenance,
    /// Entries that only other programs read (see [`ModelConfig::with_clients`]), and unknown ones.
    #[serde(flatten)]
    pub clients: Map<String, Value>,
}

/// The source of a bundle's weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the bundle format, see [`FORMAT`]; 1 if the entry is missing.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Name of the model: the name of the run's folder.
    pub name: String,
    /// Version of the program that wrote the bundle.
    pub version: String,
    /// SHA-256 of `model.safetensors`, hexadecimal.
    pub weights_sha256: String,
    /// SHA-256 of `model.safetensors` as it is without a classifier: another classifier leaves the features, and an index
    /// of them, as they were.  `None` in bundles of version 0.1.0, whose weights have no classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_sha256: Option<String>,
    /// SHA-256 of the other files that hold numbers ([`HASHED`](super::HASHED)), hexadecimal, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files_sha256: BTreeMap<String, String>,
    /// The run's resolved configuration, TOML.
    pub config: String,
    /// Number of optimiser steps that the weights were trained for.
    #[serde(default)]
    pub steps: u64,
    /// Unknown entries, kept when the file is written again.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Provenance {
    /// The name by which indexes recognise the encoder that made their vectors.
    pub fn encoder(&self) -> &str {
        self.encoder_sha256.as_deref().unwrap_or(&self.weights_sha256)
    }
}

fn first_format() -> u32 {
    1
}

impl ModelConfig {
    /// The `config.json` of a run; `labels` are in the order of the probe's rows.
    pub fn new(config: &Config, labels: &[String], provenance: Provenance) -> Self {
        let e = &config.encoder;
        Self {
            architectures: vec![if labels.is_empty() { "ViTModel" } else { "ViTForImageClassification" }.into()],
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
            clients: Map::new(),
        }
        .with_clients(&Preprocess::from_config(config))
    }

    /// The geometry in the form that the network uses.
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

    /// Checks that this version supports the configuration and that its entries agree; the error says what was expected
    /// and what was found.
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
