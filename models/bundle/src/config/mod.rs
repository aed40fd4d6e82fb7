//! A run's configuration: TOML file and `--set` overrides -> one validated, immutable [`Config`].
//!
//! Keys and defaults are in this file, enums in `choices.rs`, reading in `load.rs`, range checks in `validate.rs`.
//!
//! Every key has a default, so a file in `configs/` contains only what it changes.  Unknown keys are errors that name
//! the most similar known key.  Values marked *ours* are not from the paper: its abstract (arXiv 2211.06012) names the
//! parts of the method, not their numbers.

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

/// `[data]`: which images are used and how they are normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataConfig {
    /// Use only this many training images, from the first on; 0: all.
    pub limit: usize,
    /// How images are resized to `encoder.image_size`.
    pub fit: Fit,
    /// Per-channel mean of pixels in [0, 1] (R, G, B).
    pub mean: [f32; 3],
    /// Per-channel standard deviation of pixels in [0, 1] (R, G, B).
    pub std: [f32; 3],
    /// Largest number of pixels (width x height); larger images are left out.
    pub max_pixels: u64,
    /// Decode large JPEGs at their full size, not at 1/2, 1/4 or 1/8 of it where that is enough for the views.
    pub exact_decoding: bool,
    /// Parquet column of the images; empty: detected.
    pub image_column: String,
    /// Parquet column of the labels; empty: detected.
    pub label_column: String,
}

/// `[encoder]`: the ViT, which is kept after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// S, height and width of the input in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// D, values per token.
    pub width: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// H, attention heads; divides `width`.
    pub heads: usize,
    /// Hidden width of a block's MLP as a multiple of `width`.
    pub mlp_ratio: usize,
}

/// `[decoder]`: a small ViT per view for reconstruction, not kept after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// E, values per token; a multiple of 4.
    pub width: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
}

/// `[projector]`: an MLP on the pooled feature, not kept after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectorConfig {
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Number of values in a query or key.
    pub dim: usize,
}

/// `[views.strong]` and `[views.weak]`: the random changes of one branch's view.
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
    /// Largest change of brightness, contrast and saturation (factors 1 +- x) and of hue (in turns, at most 0.5).
    pub jitter: [f64; 4],
    /// Probability of the colour jitter.
    pub jitter_probability: f64,
    /// Probability of conversion to grey.
    pub grayscale: f64,
    /// Probability of a Gaussian blur.
    pub blur: f64,
    /// Probability of solarisation (pixels above one half are inverted).
    pub solarize: f64,
}

/// `[views]`: the two views of each image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewsConfig {
    /// The view of the queries.
    pub strong: ViewConfig,
    /// The view of the keys.
    pub weak: ViewConfig,
}

/// `[contrast]`: the contrastive loss (InfoNCE).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContrastConfig {
    /// Weight of the contrastive loss; 0 disables it.
    pub weight: f64,
    /// Temperature of the softmax over similarities.
    pub temperature: f64,
    /// Number of past keys in the memory bank, used as negatives; 0: no bank.
    pub bank_size: usize,
    /// Whether the other keys of the batch are negatives as well.
    pub batch_negatives: bool,
    /// Whether queries of the weak view are also compared with keys of the strong view, each direction at half weight.
    pub symmetric: bool,
    /// The network that computes the keys.
    pub key_branch: KeyBranch,
    /// The patches that the key branch encodes.
    pub key_mask: KeyMask,
    /// Momentum of the moving average at the start; it rises to 1 along a half cosine.
    pub momentum: f64,
}

/// `[reconstruction]`: the reconstruction loss of the decoders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionConfig {
    /// Weight of the reconstruction loss; 0 leaves out both decoders.
    pub weight: f64,
    /// The pixels that the decoders reconstruct.
    pub target: Target,
    /// The patches that the loss is computed on.
    pub loss_on: LossOn,
}

/// `[train]`: optimisation and checkpoints of pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// B, images per optimiser step.
    pub batch_size: usize,
    /// Number of equal parts that a batch is processed in; their gradients are added (1: in one part).
    pub accumulate: usize,
    /// The optimiser of the transformer blocks' matrices.
    pub optimizer: Optimizer,
    /// AdamW's learning rate for a batch of 256; see [`TrainConfig::absolute_lr`].
    pub lr: f64,
    /// AdamW's decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Muon's peak learning rate, independent of the batch size; it follows the same schedule.
    pub muon_lr: f64,
    /// Muon's momentum: the share of the old update that a step keeps.
    pub muon_momentum: f64,
    /// Decoupled weight decay of matrices, for either optimiser.
    pub weight_decay: f64,
    /// Length of the linear warm-up in epochs (fractions allowed).
    pub warmup_epochs: f64,
    /// Largest global gradient norm; larger gradients are scaled down; 0: no clipping.
    pub clip_norm: f64,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Number format of the training step.
    pub precision: Precision,
    /// Steps between checkpoints; 0: at each epoch's end and as `checkpoint_minutes` requires.
    pub checkpoint_every: usize,
    /// Longest time between two checkpoints, in minutes; 0: no limit.
    pub checkpoint_minutes: f64,
    /// Number of numbered checkpoints that are kept beside `last` and `best`.
    pub keep_checkpoints: usize,
    /// Whether TensorBoard event files are written beside metrics.jsonl.
    pub tensorboard: bool,
}

impl TrainConfig {
    /// The peak learning rate: `lr * batch_size / 256` (linear scaling rule, arXiv 1706.02677).
    pub fn absolute_lr(&self) -> f64 {
        self.lr * self.batch_size as f64 / 256.0
    }
}

/// `[evaluate]`: the evaluation protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateConfig {
    /// Epochs between kNN evaluations during training; 0: never.
    pub every_epochs: usize,
    /// Number of neighbours that vote.
    pub k: usize,
    /// Temperature of the votes: a vote's weight is exp(cosine / temperature).
    pub temperature: f64,
    /// How an image's tokens become one feature.
    pub pooling: Pooling,
}

/// `[finetune]`: supervised training of the pretrained encoder, `macrl-train finetune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// B, images per step.
    pub batch_size: usize,
    /// Learning rate of the head for a batch of 256, scaled as in `[train]`.
    pub lr: f64,
    /// Factor on the learning rate for each layer below the head; 1: all layers have the same rate.
    pub layer_decay: f64,
    /// AdamW's decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Length of the linear warm-up in epochs (fractions allowed).
    pub warmup_epochs: f64,
    /// Largest global gradient norm; larger gradients are scaled down; 0: no clipping.
    pub clip_norm: f64,
    /// Share of each target that is spread evenly over all classes; 0: off.
    pub label_smoothing: f64,
    /// alpha of mixup's Beta(alpha, alpha), up to 1; 0: off.
    pub mixup: f64,
}

/// Everything that a run's numbers depend on, except the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Images and their normalisation.
    pub data: DataConfig,
    /// Geometry of the encoder.
    pub encoder: EncoderConfig,
    /// Geometry of the decoders.
    pub decoder: DecoderConfig,
    /// Geometry of the projector.
    pub projector: ProjectorConfig,
    /// Random changes of the two views.
    pub views: ViewsConfig,
    /// Weight, temperature, bank and key branch of the contrastive loss.
    pub contrast: ContrastConfig,
    /// Weight, target and patches of the reconstruction loss.
    pub reconstruction: ReconstructionConfig,
    /// Optimisation and checkpoints of pretraining.
    pub train: TrainConfig,
    /// Protocol of the evaluation.
    pub evaluate: EvaluateConfig,
    /// Supervised training after pretraining.
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
                exact_decoding: false,
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
    /// Number of patches along one edge.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// N, patches per image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Token layout of a whole image.
    pub fn tokens(&self) -> TokenLayout {
        TokenLayout::of_patches(self.patches())
    }

    /// P, values in one patch: 3 channels of `patch_size` x `patch_size` pixels.
    pub fn patch_values(&self) -> usize {
        3 * self.patch_size * self.patch_size
    }

    /// K, patches that a view keeps when the share `mask_ratio` is removed; at least one.
    pub fn kept(&self, mask_ratio: f64) -> usize {
        let removed = (self.patches() as f64 * mask_ratio).round() as usize;
        (self.patches() - removed.min(self.patches())).max(1)
    }
}

impl Config {
    /// Whether both configurations pretrain with the same numbers.
    pub fn same_run(&self, other: &Config) -> bool {
        self.differences(other).is_empty()
    }

    /// Number of keys in the memory bank after `steps` steps: each step adds a batch and drops the oldest keys.
    pub fn bank_keys(&self, steps: u64) -> usize {
        if self.contrast.weight == 0.0 {
            return 0;
        }
        let pushed = steps.saturating_mul(self.train.batch_size as u64);
        usize::try_from(pushed).unwrap_or(usize::MAX).min(self.contrast.bank_size)
    }
}
