//! One run's configuration: TOML file and `--set` overrides -> one validated, immutable [`Config`].
//!
//! The keys and their defaults are here, named values in `choices.rs`, reading in `load.rs`, what values may be in
//! `validate.rs`.
//!
//! Every key has a default here, so a file in `configs/` holds only what it changes.  Unknown keys are errors that
//! name the nearest known one.  Values marked *ours* are not the paper's: its abstract names the parts
//! (arXiv 2211.06012), not their numbers.

mod choices;
mod compare;
mod error;
mod load;
mod validate;

use serde::{Deserialize, Serialize};

use crate::decode::DecodeLimits;
use crate::tokens::TokenLayout;

pub use choices::{Fit, KeyBranch, KeyMask, LossOn, Optimizer, Pooling, Precision, Target};
pub use compare::Difference;
pub use error::ConfigError;

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
    /// Pixels (width x height) above which an image is left out.
    pub max_pixels: u64,
    /// Parquet: the column of images; empty: found by itself.
    pub image_column: String,
    /// Parquet: the column of labels; empty: found by itself.
    pub label_column: String,
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
    /// Whether the weak view's queries are compared with the strong view's keys too, each way at half the weight.
    pub symmetric: bool,
    /// Where keys come from.
    pub key_branch: KeyBranch,
    /// What the key branch sees of a view.
    pub key_mask: KeyMask,
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
    /// What updates the matrices of the transformer blocks.
    pub optimizer: Optimizer,
    /// AdamW's learning rate for a batch of 256; see [`TrainConfig::absolute_lr`].
    pub lr: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// Muon's learning rate at the peak, whatever the batch; it follows the same schedule.
    pub muon_lr: f64,
    /// Share of Muon's momentum that a step keeps.
    pub muon_momentum: f64,
    /// Decoupled weight decay, on matrices only; with either optimiser.
    pub weight_decay: f64,
    /// Linear warm-up, in epochs (fractions allowed).
    pub warmup_epochs: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub clip_norm: f64,
    /// Seed of every draw.
    pub seed: u64,
    /// Arithmetic.
    pub precision: Precision,
    /// Steps between checkpoints; 0: at the end of each epoch, and as `checkpoint_minutes` says.
    pub checkpoint_every: usize,
    /// Longest time between two checkpoints, in minutes; 0: no limit.
    pub checkpoint_minutes: f64,
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
            mask_ratio: 0.5,
            crop_scale: [0.2, 1.0],
            jitter: [0.4, 0.4, 0.2, 0.1],
            jitter_probability: 0.8,
            grayscale: 0.2,
            blur: 0.0,
            solarize: 0.1,
            ..weak.clone()
        };
        Config {
            data: DataConfig {
                limit: 0,
                fit: Fit::Resize,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                max_pixels: DecodeLimits::DEFAULT.max_pixels,
                image_column: String::new(),
                label_column: String::new(),
            },
            encoder: EncoderConfig { image_size: 32, patch_size: 4, width: 192, depth: 12, heads: 3, mlp_ratio: 4 },
            decoder: DecoderConfig { width: 96, depth: 2, heads: 3 },
            projector: ProjectorConfig { hidden: 512, dim: 128 },
            views: ViewsConfig { strong, weak },
            contrast: ContrastConfig {
                weight: 1.0,
                temperature: 0.1,
                bank_size: 16_384,
                batch_negatives: true,
                symmetric: true,
                key_branch: KeyBranch::Momentum,
                key_mask: KeyMask::View,
                momentum: 0.99,
            },
            reconstruction: ReconstructionConfig { weight: 1.0, target: Target::Clean, loss_on: LossOn::All },
            train: TrainConfig {
                epochs: 100,
                batch_size: 256,
                accumulate: 1,
                optimizer: Optimizer::Adamw,
                lr: 1.5e-4,
                betas: [0.9, 0.95],
                muon_lr: 0.02,
                muon_momentum: 0.95,
                weight_decay: 0.05,
                warmup_epochs: 5.0,
                clip_norm: 1.0,
                seed: 0,
                precision: Precision::F32,
                checkpoint_every: 0,
                checkpoint_minutes: 10.0,
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

    /// The tokens of a whole image.
    pub fn tokens(&self) -> TokenLayout {
        TokenLayout::of_patches(self.patches())
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
    /// Whether both describe the same pretraining: they compute the same numbers.
    pub fn same_run(&self, other: &Config) -> bool {
        self.differences(other).is_empty()
    }

    /// Keys that the memory bank holds after so many steps: each step brings a batch of them, the oldest go.
    pub fn bank_keys(&self, steps: u64) -> usize {
        if self.contrast.weight == 0.0 {
            return 0;
        }
        let pushed = steps.saturating_mul(self.train.batch_size as u64);
        usize::try_from(pushed).unwrap_or(usize::MAX).min(self.contrast.bank_size)
    }
}
