//! Ranges of single values, and conditions between values.

use super::error::{ConfigError, require};
use super::{Config, ViewConfig};

impl Config {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let e = &self.encoder;
        for (key, value) in [
            ("encoder.image_size", e.image_size),
            ("encoder.patch_size", e.patch_size),
            ("encoder.width", e.width),
            ("encoder.depth", e.depth),
            ("encoder.heads", e.heads),
            ("encoder.mlp_ratio", e.mlp_ratio),
            ("decoder.width", self.decoder.width),
            ("decoder.depth", self.decoder.depth),
            ("decoder.heads", self.decoder.heads),
            ("projector.hidden", self.projector.hidden),
            ("projector.dim", self.projector.dim),
            ("train.epochs", self.train.epochs),
            ("train.batch_size", self.train.batch_size),
            ("train.accumulate", self.train.accumulate),
            ("evaluate.k", self.evaluate.k),
            ("finetune.epochs", self.finetune.epochs),
            ("finetune.batch_size", self.finetune.batch_size),
        ] {
            require(value > 0, key, "must be at least 1", value)?;
        }
        require(self.data.max_pixels > 0, "data.max_pixels", "must be at least 1", self.data.max_pixels)?;
        require(
            e.image_size.is_multiple_of(e.patch_size),
            "encoder.patch_size",
            &format!("must divide encoder.image_size ({})", e.image_size),
            e.patch_size,
        )?;
        for (key, heads, width) in
            [("encoder.heads", e.heads, e.width), ("decoder.heads", self.decoder.heads, self.decoder.width)]
        {
            require(width % heads == 0, key, &format!("must divide the width ({width})"), heads)?;
        }
        for (key, width) in [("encoder.width", e.width), ("decoder.width", self.decoder.width)] {
            require(width % 4 == 0, key, "must be a multiple of 4 (2-D sine-cosine positions)", width)?;
        }
        require(
            self.train.batch_size.is_multiple_of(self.train.accumulate),
            "train.accumulate",
            &format!("must divide train.batch_size ({})", self.train.batch_size),
            self.train.accumulate,
        )?;
        for (name, view) in [("strong", &self.views.strong), ("weak", &self.views.weak)] {
            view.validate(name)?;
        }
        for (key, value, low, high) in [
            ("contrast.weight", self.contrast.weight, 0.0, f64::MAX),
            ("contrast.temperature", self.contrast.temperature, 1e-3, f64::MAX),
            ("contrast.momentum", self.contrast.momentum, 0.0, 1.0),
            ("reconstruction.weight", self.reconstruction.weight, 0.0, f64::MAX),
            ("train.lr", self.train.lr, 0.0, f64::MAX),
            ("train.muon_lr", self.train.muon_lr, 0.0, f64::MAX),
            ("train.weight_decay", self.train.weight_decay, 0.0, f64::MAX),
            ("train.warmup_epochs", self.train.warmup_epochs, 0.0, f64::MAX),
            ("train.clip_norm", self.train.clip_norm, 0.0, f64::MAX),
            ("train.checkpoint_minutes", self.train.checkpoint_minutes, 0.0, f64::MAX),
            ("evaluate.temperature", self.evaluate.temperature, 1e-3, f64::MAX),
            ("finetune.lr", self.finetune.lr, 0.0, f64::MAX),
            ("finetune.layer_decay", self.finetune.layer_decay, 0.0, 1.0),
            ("finetune.weight_decay", self.finetune.weight_decay, 0.0, f64::MAX),
            ("finetune.warmup_epochs", self.finetune.warmup_epochs, 0.0, f64::MAX),
            ("finetune.clip_norm", self.finetune.clip_norm, 0.0, f64::MAX),
            ("finetune.label_smoothing", self.finetune.label_smoothing, 0.0, 1.0),
            ("finetune.mixup", self.finetune.mixup, 0.0, 1.0),
        ] {
            require_range(key, value, low, high)?;
        }
        for (key, betas) in [("train.betas", self.train.betas), ("finetune.betas", self.finetune.betas)] {
            for beta in betas {
                require((0.0..1.0).contains(&beta), key, "must be in [0, 1)", beta)?;
            }
        }
        let momentum = self.train.muon_momentum;
        require((0.0..1.0).contains(&momentum), "train.muon_momentum", "must be in [0, 1)", momentum)?;
        require(
            self.contrast.weight > 0.0 || self.reconstruction.weight > 0.0,
            "contrast.weight",
            "and reconstruction.weight cannot both be 0",
            "0",
        )?;
        require(
            self.contrast.weight == 0.0 || self.contrast.bank_size > 0 || self.contrast.batch_negatives,
            "contrast.bank_size",
            "must be above 0 where contrast.batch_negatives is false",
            self.contrast.bank_size,
        )?;
        require(self.data.std.iter().all(|s| *s > 0.0), "data.std", "must be above 0", format!("{:?}", self.data.std))
    }
}

impl ViewConfig {
    fn validate(&self, name: &str) -> Result<(), ConfigError> {
        let key = |field: &str| format!("views.{name}.{field}");
        require((0.0..1.0).contains(&self.mask_ratio), &key("mask_ratio"), "must be in [0, 1)", self.mask_ratio)?;
        let [low, high] = self.crop_scale;
        require(
            0.0 < low && low <= high && high <= 1.0,
            &key("crop_scale"),
            "must be [low, high] with 0 < low <= high <= 1",
            format!("{:?}", self.crop_scale),
        )?;
        let [low, high] = self.crop_ratio;
        require(
            0.0 < low && low <= high && high.is_finite(),
            &key("crop_ratio"),
            "must be [low, high] with 0 < low <= high",
            format!("{:?}", self.crop_ratio),
        )?;
        for (field, value) in [
            ("flip", self.flip),
            ("jitter_probability", self.jitter_probability),
            ("grayscale", self.grayscale),
            ("blur", self.blur),
            ("solarize", self.solarize),
        ] {
            require_range(&key(field), value, 0.0, 1.0)?;
        }
        let [brightness, contrast, saturation, hue] = self.jitter;
        for value in [brightness, contrast, saturation] {
            require_range(&key("jitter"), value, 0.0, 1.0)?;
        }
        require_range(&key("jitter"), hue, 0.0, 0.5)
    }
}

fn require_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    let expected =
        if high == f64::MAX { format!("must be at least {low}") } else { format!("must be in [{low}, {high}]") };
    require((low..=high).contains(&value), key, &expected, value)
}
