//! One run's configuration: TOML file and `--set` overrides -> one validated, immutable [`Config`].
//!
//! Every key has a default here, so a file in `configs/` holds only what it changes.  Unknown keys are errors that
//! name the nearest known one.  Values marked *ours* are not the paper's: its abstract names the parts
//! (arXiv 2211.06012), not their numbers.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// What is wrong with a configuration; always a mistake that its writer can mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file named by the user.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin} is not valid TOML: {message}")]
    Syntax {
        /// File name or `--set` argument.
        origin: String,
        /// The parser's first line.
        message: String,
    },
    /// A key that no configuration has.
    #[error("unknown key `{key}` in {origin}; {hint}")]
    UnknownKey {
        /// Dotted path of the key.
        key: String,
        /// File name or `--set` argument.
        origin: String,
        /// The nearest known key.
        hint: String,
    },
    /// A known key with a value of the wrong type or range.
    #[error("`{key}` {expected}, found {found}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        found: String,
    },
}

/// How an image becomes `image_size` x `image_size` pixels for evaluation and serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Shortest edge to `image_size` (antialiased), then the centre square.
    Resize,
    /// An image that is no larger than `image_size` is centred on black; a larger one is resized as above.
    Pad,
}

/// Where keys come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyBranch {
    /// The query network itself, gradient stopped.
    Shared,
    /// An exponential moving average of the query network.
    Momentum,
}

/// What the decoders predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The view after its geometry and before its photometric corruption.
    Clean,
    /// The view as the encoder sees it.
    View,
}

/// Which patches the reconstruction loss is taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Those that were removed.
    Masked,
    /// All of them.
    All,
}

/// What stands for an image among its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The class token.
    Cls,
    /// The mean of the patch tokens.
    Mean,
}

/// Arithmetic of the training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit throughout.
    F32,
    /// bfloat16 activations, 32-bit master weights (CUDA only).
    Bf16,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataConfig {
    /// Use only the first so many training images; 0: all.
    pub limit: usize,
    /// How images are brought to `encoder.image_size`.
    pub fit: Fit,
    /// Per-channel mean of pixels in [0, 1] (R, G, B).
    pub mean: [f32; 3],
    /// Per-channel standard deviation of pixels in [0, 1].
    pub std: [f32; 3],
}

/// `[encoder]`: the ViT that is kept after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// Input edge in pixels.
    pub image_size: usize,
    /// Patch edge in pixels.
    pub patch_size: usize,
    /// D, values per token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// H, attention heads; divides `width`.
    pub heads: usize,
    /// Hidden width of a block's MLP as a multiple of `width`.
    pub mlp_ratio: usize,
}

/// `[decoder]`: thrown away after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Values per token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
}

/// `[projector]`: MLP on the pooled feature; thrown away after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectorConfig {
    /// Hidden width.
    pub hidden: usize,
    /// Width of queries and keys.
    pub dim: usize,
}

/// `[views.strong]` and `[views.weak]`: one branch's corruption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewConfig {
    /// Share of patches removed, in [0, 1).
    pub mask_ratio: f64,
    /// Range of the crop's area as a share of the image's.
    pub crop_scale: [f64; 2],
    /// Range of the crop's width over height.
    pub crop_ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Largest change of brightness, contrast, saturation (factors 1 +- x) and hue (turns, up to 0.5).
    pub jitter: [f64; 4],
    /// Probability of the colour jitter.
    pub jitter_probability: f64,
    /// Probability of turning grey.
    pub grayscale: f64,
    /// Probability of a Gaussian blur.
    pub blur: f64,
    /// Probability of solarising (inverting pixels above one half).
    pub solarize: f64,
}

/// `[views]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewsConfig {
    /// The query's view.
    pub strong: ViewConfig,
    /// The key's view.
    pub weak: ViewConfig,
}

/// `[contrast]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContrastConfig {
    /// w_c; 0 leaves the contrastive branch out.
    pub weight: f64,
    /// tau.
    pub temperature: f64,
    /// Past keys kept as negatives; 0: none.
    pub bank_size: usize,
    /// Whether the other keys of the batch are negatives too.
    pub batch_negatives: bool,
    /// Where keys come from.
    pub key_branch: KeyBranch,
    /// Moving average's momentum at the start; it rises to 1 along a half cosine.
    pub momentum: f64,
}

/// `[reconstruction]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionConfig {
    /// w_r; 0 leaves both decoders out.
    pub weight: f64,
    /// What the decoders predict.
    pub target: Target,
    /// Where the loss is taken.
    pub loss_on: LossOn,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// B, images per optimiser step.
    pub batch_size: usize,
    /// A step's batch is processed in so many equal parts whose gradients are added up (1: at once).
    pub accumulate: usize,
    /// Learning rate for a batch of 256; see [`TrainConfig::absolute_lr`].
    pub lr: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Linear warm-up, in epochs (fractions allowed).
    pub warmup_epochs: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_norm: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Arithmetic.
    pub precision: Precision,
    /// Steps between checkpoints; 0: at the end of each epoch only.
    pub checkpoint_every: usize,
    /// How many numbered checkpoints are kept beside `last` and `best`.
    pub keep_checkpoints: usize,
    /// Whether TensorBoard's event files are written beside metrics.jsonl.
    pub tensorboard: bool,
}

impl TrainConfig {
    /// The peak learning rate: `lr * batch_size / 256` (linear scaling rule, arXiv 1706.02677).
    pub fn absolute_lr(&self) -> f64 {
        self.lr * self.batch_size as f64 / 256.0
    }
}

/// `[evaluate]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateConfig {
    /// Epochs between online kNN checks; 0: never.
    pub every_epochs: usize,
    /// Neighbours that vote.
    pub k: usize,
    /// Temperature of their votes, exp(cosine / temperature).
    pub temperature: f64,
    /// What stands for an image among its tokens.
    pub pooling: Pooling,
}

/// `[finetune]`: supervised training of the pretrained encoder, `macrl-train finetune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// B, images per step.
    pub batch_size: usize,
    /// Learning rate of the head for a batch of 256, as in `[train]`.
    pub lr: f64,
    /// Factor on the learning rate per layer below the head; 1: all layers learn alike.
    pub layer_decay: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Linear warm-up, in epochs (fractions allowed).
    pub warmup_epochs: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_norm: f64,
    /// Share of each target that is spread over all classes; 0: off.
    pub label_smoothing: f64,
    /// alpha of mixup's Beta(alpha, alpha), up to 1; 0: off.
    pub mixup: f64,
}

/// Everything a run depends on, besides the data itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The images.
    pub data: DataConfig,
    /// The encoder's geometry.
    pub encoder: EncoderConfig,
    /// The decoders' geometry.
    pub decoder: DecoderConfig,
    /// The projector's geometry.
    pub projector: ProjectorConfig,
    /// The two corruptions.
    pub views: ViewsConfig,
    /// The contrastive objective.
    pub contrast: ContrastConfig,
    /// The reconstruction objective.
    pub reconstruction: ReconstructionConfig,
    /// Optimisation.
    pub train: TrainConfig,
    /// Evaluation protocol.
    pub evaluate: EvaluateConfig,
    /// Supervised training afterwards.
    pub finetune: FinetuneConfig,
}

impl Default for Config {
    /// ViT-Tiny/4 on 32 x 32 images; all values are *ours*.
    fn default() -> Self {
        let weak = ViewConfig {
            mask_ratio: 0.25,
            crop_scale: [0.5, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            jitter: [0.0; 4],
            jitter_probability: 0.0,
            grayscale: 0.0,
            blur: 0.0,
            solarize: 0.0,
        };
        let strong = ViewConfig {
            mask_ratio: 0.75,
            crop_scale: [0.2, 1.0],
            jitter: [0.4, 0.4, 0.2, 0.1],
            jitter_probability: 0.8,
            grayscale: 0.2,
            blur: 0.0,
            solarize: 0.1,
            ..weak.clone()
        };
        Config {
            data: DataConfig { limit: 0, fit: Fit::Resize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] },
            encoder: EncoderConfig { image_size: 32, patch_size: 4, width: 192, depth: 12, heads: 3, mlp_ratio: 4 },
            decoder: DecoderConfig { width: 96, depth: 2, heads: 3 },
            projector: ProjectorConfig { hidden: 512, dim: 128 },
            views: ViewsConfig { strong, weak },
            contrast: ContrastConfig {
                weight: 1.0,
                temperature: 0.2,
                bank_size: 16_384,
                batch_negatives: true,
                key_branch: KeyBranch::Momentum,
                momentum: 0.99,
            },
            reconstruction: ReconstructionConfig { weight: 1.0, target: Target::Clean, loss_on: LossOn::Masked },
            train: TrainConfig {
                epochs: 100,
                batch_size: 256,
                accumulate: 1,
                lr: 1.5e-4,
                betas: [0.9, 0.95],
                weight_decay: 0.05,
                warmup_epochs: 5.0,
                clip_norm: 1.0,
                seed: 0,
                precision: Precision::F32,
                checkpoint_every: 0,
                keep_checkpoints: 2,
                tensorboard: false,
            },
            evaluate: EvaluateConfig { every_epochs: 1, k: 20, temperature: 0.07, pooling: Pooling::Mean },
            finetune: FinetuneConfig {
                epochs: 20,
                batch_size: 128,
                lr: 1e-3,
                layer_decay: 0.75,
                betas: [0.9, 0.999],
                weight_decay: 0.05,
                warmup_epochs: 2.0,
                clip_norm: 1.0,
                label_smoothing: 0.0,
                mixup: 0.0,
            },
        }
    }
}

impl EncoderConfig {
    /// Patches along one edge.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// N, patches per image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Values in one patch: 3 channels of `patch_size` x `patch_size` pixels.
    pub fn patch_values(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// Patches that a view keeps when `mask_ratio` of them are removed: at least one.
    pub fn kept(&self, mask_ratio: f64) -> usize {
        let removed = (self.patches() as f64 * mask_ratio).round() as usize;
        (self.patches() - removed.min(self.patches())).max(1)
    }
}

impl Config {
    /// Reads a file and the `--set key=value` overrides on top of the defaults, and validates the result.
    ///
    /// # Errors
    /// Every [`ConfigError`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&text, &name, overrides)
    }

    /// [`Config::load`] on text that is already in memory; `origin` is named in errors.
    ///
    /// # Errors
    /// Every [`ConfigError`] but `Read`.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut merged = default_table();
        merge(&mut merged, parse_table(text, origin)?, "", origin)?;
        for argument in overrides {
            let (key, value) = argument.split_once('=').ok_or_else(|| ConfigError::Syntax {
                origin: format!("--set {argument}"),
                message: "expected key=value".into(),
            })?;
            merge(&mut merged, override_table(key.trim(), value.trim()), "", "--set")?;
        }
        let config: Config = Value::Table(merged).try_into().map_err(|e: toml::de::Error| ConfigError::Syntax {
            origin: origin.to_string(),
            message: first_line(e.message()),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Whether both describe the same pretraining: `[finetune]` and the loggers have no part in it.
    pub fn same_run(&self, other: &Config) -> bool {
        let mut other = Config { finetune: self.finetune.clone(), ..other.clone() };
        other.train.tensorboard = self.train.tensorboard;
        *self == other
    }

    /// Keys that the memory bank holds after so many steps: each step brings a batch of them, the oldest go.
    pub fn bank_keys(&self, steps: u64) -> usize {
        if self.contrast.weight == 0.0 {
            return 0;
        }
        let pushed = steps.saturating_mul(self.train.batch_size as u64);
        usize::try_from(pushed).unwrap_or(usize::MAX).min(self.contrast.bank_size)
    }

    /// The resolved configuration as TOML: what `config.toml` of a run holds.
    pub fn to_toml(&self) -> String {
        toml::to_string(&as_table(self)).unwrap_or_default()
    }

    fn validate(&self) -> Result<(), ConfigError> {
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
            ("train.weight_decay", self.train.weight_decay, 0.0, f64::MAX),
            ("train.warmup_epochs", self.train.warmup_epochs, 0.0, f64::MAX),
            ("train.clip_norm", self.train.clip_norm, 0.0, f64::MAX),
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

fn require(holds: bool, key: &str, expected: &str, found: impl ToString) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value { key: key.into(), expected: expected.into(), found: found.to_string() })
}

fn require_range(key: &str, value: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    let expected =
        if high == f64::MAX { format!("must be at least {low}") } else { format!("must be in [{low}, {high}]") };
    require((low..=high).contains(&value), key, &expected, value)
}

fn as_table(config: &Config) -> Table {
    // A struct of plain values always serialises.
    Table::try_from(config).unwrap_or_default()
}

fn default_table() -> Table {
    as_table(&Config::default())
}

fn parse_table(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>()
        .map_err(|e| ConfigError::Syntax { origin: origin.to_string(), message: first_line(e.to_string().trim()) })
}

/// `a.b.c = value`; a value that is not TOML is taken as a string, so that enums need no quotes on the command line.
fn override_table(key: &str, value: &str) -> Table {
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let mut parts = key.split('.').rev();
    let last = parts.next().unwrap_or_default().to_string();
    let mut table = Table::from_iter([(last, value)]);
    for part in parts {
        value = Value::Table(table);
        table = Table::from_iter([(part.to_string(), value)]);
    }
    table
}

fn merge(base: &mut Table, over: Table, prefix: &str, origin: &str) -> Result<(), ConfigError> {
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let Some(slot) = base.get_mut(&key) else {
            return Err(ConfigError::UnknownKey { hint: nearest(&path), key: path, origin: origin.into() });
        };
        match (slot, value) {
            (Value::Table(inner), Value::Table(over)) => merge(inner, over, &path, origin)?,
            (slot @ Value::Float(_), Value::Integer(i)) => *slot = Value::Float(i as f64),
            (Value::Array(base), Value::Array(over)) => {
                require(
                    base.len() == over.len(),
                    &path,
                    &format!("must be a list of {} numbers", base.len()),
                    format!("{} values", over.len()),
                )?;
                for (slot, value) in base.iter_mut().zip(over) {
                    *slot = match value {
                        Value::Integer(i) => Value::Float(i as f64),
                        Value::Float(_) => value,
                        other => return Err(wrong_type(&path, "a list of numbers", &other)),
                    };
                }
            }
            (slot, value) if slot.same_type(&value) => *slot = value,
            (slot, value) => return Err(wrong_type(&path, slot.type_str(), &value)),
        }
    }
    Ok(())
}

fn wrong_type(path: &str, expected: &str, found: &Value) -> ConfigError {
    ConfigError::Value {
        key: path.into(),
        expected: format!("must be of type {expected}"),
        found: format!("{found} ({})", found.type_str()),
    }
}

fn nearest(key: &str) -> String {
    let mut known = Vec::new();
    flatten(&default_table(), "", &mut known);
    let best = known.iter().max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
    best.map(|k| format!("did you mean `{k}`?")).unwrap_or_default()
}

fn flatten(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => {
                out.push(path.clone());
                flatten(inner, &path, out);
            }
            _ => out.push(path),
        }
    }
}

fn first_line(text: &str) -> String {
    // toml's message is a location, a drawing of the line, then the cause: the ends say it in one line.
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    match lines.last() {
        Some(tail) => format!("{head}: {}", tail.trim()),
        None => head.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_survive_a_round_trip() {
        let config = Config::default();
        assert_eq!(Config::parse(&config.to_toml(), "text", &[]).unwrap(), config);
    }

    #[test]
    fn overrides_win_and_integers_pass_for_floats() {
        let set =
            ["encoder.width=96".into(), "contrast.key_branch=shared".into(), "views.strong.crop_scale=[1, 1]".into()];
        let config = Config::parse("[train]\nlr = 1\n", "text", &set).unwrap();
        assert_eq!(config.encoder.width, 96);
        assert_eq!(config.contrast.key_branch, KeyBranch::Shared);
        assert_eq!(config.views.strong.crop_scale, [1.0, 1.0]);
        assert_eq!(config.train.lr, 1.0);
    }

    #[test]
    fn finetuning_and_loggers_are_not_part_of_a_run() {
        let config = Config::default();
        let set = |text: &str| Config::parse(text, "text", &[]).unwrap();
        assert!(config.same_run(&set("[finetune]\nepochs = 3\n[train]\ntensorboard = true\n")));
        assert!(!config.same_run(&set("[train]\nlr = 1\n")));
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| Config::parse(text, "x.toml", &[]).unwrap_err().to_string();
        assert_eq!(
            message("[encoder]\nwidht = 3"),
            "unknown key `encoder.widht` in x.toml; did you mean `encoder.width`?"
        );
        assert_eq!(message("[encoder]\nwidth = 'a'"), "`encoder.width` must be of type integer, found \"a\" (string)");
        assert_eq!(message("[encoder]\nheads = 5"), "`encoder.heads` must divide the width (192), found 5");
        assert_eq!(message("[contrast]\nkey_branch = 'both'").lines().count(), 1);
        assert_eq!(message("[encoder\n").lines().count(), 1);
        assert!(message("[views.weak]\nmask_ratio = 1.0").contains("views.weak.mask_ratio"));
        assert_eq!(message("[finetune]\nmixup = 2"), "`finetune.mixup` must be in [0, 1], found 2");
        assert!(message("[finetune]\nlayer_dcay = 1").ends_with("did you mean `finetune.layer_decay`?"));
    }
}
