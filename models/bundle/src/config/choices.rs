//! Keys whose values are names.

use serde::{Deserialize, Serialize};

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

/// What the key branch sees of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyMask {
    /// The patches that the view's own mask keeps, as the query does.
    View,
    /// All patches.
    None,
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

/// What updates the matrices of the transformer blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW (arXiv 1711.05101), as everything else.
    Adamw,
    /// Muon: momentum orthogonalised by Newton-Schulz steps (arXiv 2502.16982); AdamW updates everything else.
    Muon,
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
