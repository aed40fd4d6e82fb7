//! Enums of the configuration: keys that accept one of several names.

use serde::{Deserialize, Serialize};

/// How an image is resized to `image_size` x `image_size` pixels for evaluation and serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Shortest edge to `image_size` (antialiased), then the centre square.
    Resize,
    /// Pads an image that is no larger than `image_size` with black; resizes a larger one as `resize` does.
    Pad,
}

/// The network that computes the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyBranch {
    /// The query network itself, without gradient.
    Shared,
    /// An exponential moving average of the query network.
    Momentum,
}

/// The patches of a view that the key branch encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyMask {
    /// The patches that the view's mask keeps, as for the query.
    View,
    /// All patches, masked or not.
    None,
}

/// The pixels that the decoders reconstruct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The view after its geometric changes and before its colour changes.
    Clean,
    /// The view with all of its changes, as the encoder sees it.
    View,
}

/// The patches that the reconstruction loss is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The removed patches only, as in MAE.
    Masked,
    /// All patches, removed or not.
    All,
}

/// How an image's tokens become one feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Uses the class token.
    Cls,
    /// Averages the patch tokens.
    Mean,
}

/// The optimiser of the transformer blocks' matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW (arXiv 1711.05101), as for all other parameters.
    Adamw,
    /// Muon: momentum orthogonalised by Newton-Schulz steps (arXiv 2502.16982).  AdamW updates all other parameters.
    Muon,
}

/// Number format of the training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32 activations and weights.
    F32,
    /// bfloat16 activations and float32 master weights (CUDA only).
    Bf16,
}
