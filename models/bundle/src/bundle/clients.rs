//! How other programs load a bundle: timm and transformers.js by `config.json`, transformers by `config.0.json`.
//!
//! All of them must compute the server's features and classes.
//!
//! - **timm** (`local-dir:`) reads `architecture`, `model_args` and `pretrained_cfg`; `model.safetensors` has its names.
//! - **transformers** has no ViT whose pooled feature is the mean of the patches, but it can wrap timm's.  transformers.js
//!   does not know that wrapper, only ViT.  So `model_type` is `vit` for transformers.js, and `configuration_files` names
//!   the file that transformers reads instead, for every version from 0 on.
//! - **transformers.js** computes with the ONNX graphs; from `config.json` it needs `model_type` and `id2label`.
//! - Image processors of transformers 4 look into `config.json` if that has a `pretrained_cfg`, those of 5 and of
//!   transformers.js into `preprocessor_config.json`.  The entries are the same.

use serde_json::{Map, Value, json};

use super::model::ModelConfig;
use super::names::TRANSFORMERS;
use crate::config::Pooling;
use crate::preprocess::Preprocess;

impl ModelConfig {
    /// The same configuration with the entries by which timm, transformers and transformers.js load the bundle.
    pub fn with_clients(mut self, preprocess: &Preprocess) -> Self {
        let entries = entries(&self, preprocess);
        self.clients.extend(entries);
        self
    }

    /// The content of `config.0.json`, which transformers reads instead of `config.json`.
    ///
    /// `num_hidden_layers` is null: a class that is not the wrapper, for example `ViTModel`, would find none of its weights and
    /// keep random ones, but fails on this entry first.
    pub fn transformers(&self, preprocess: &Preprocess) -> Value {
        let class = if self.id2label.is_empty() { "TimmWrapperModel" } else { "TimmWrapperForImageClassification" };
        let mut entries = object(&json!({
            "architectures": [class],
            "model_type": "timm_wrapper",
            "dtype": "float32",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": null,
            "id2label": self.id2label,
            "label2id": self.label2id,
        }));
        entries.extend(timm(self, preprocess));
        Value::Object(entries)
    }
}

/// Entries of `config.json` that only other programs read.
fn entries(config: &ModelConfig, preprocess: &Preprocess) -> Map<String, Value> {
    let mut entries = object(&serde_json::to_value(preprocess.to_hugging_face()).unwrap_or_default());
    entries.extend(timm(config, preprocess));
    entries.insert("configuration_files".into(), json!([TRANSFORMERS]));
    entries
}

/// timm's description of the network: its ViT-Tiny with everything that has another size here.
fn timm(config: &ModelConfig, preprocess: &Preprocess) -> Map<String, Value> {
    let (size, classes) = (config.image_size, config.id2label.len());
    let pool = match config.pooling {
        Pooling::Cls => "token",
        Pooling::Mean => "avg",
    };
    object(&json!({
        "architecture": "vit_tiny_patch16_224",
        "num_classes": classes,
        "num_features": config.hidden_size,
        "global_pool": pool,
        "model_args": {
            "img_size": size,
            "patch_size": config.patch_size,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size.max(1),
            "global_pool": pool,
            "fc_norm": false,
        },
        "label_names": config.labels(),
        "pretrained_cfg": {
            "num_classes": classes,
            "input_size": [3, size, size],
            "fixed_input_size": true,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": preprocess.mean,
            "std": preprocess.std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }))
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
