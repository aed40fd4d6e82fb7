//! How far the outputs of two networks differ.

use serde::{Deserialize, Serialize};

/// Differences between two implementations of one network on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Largest absolute difference over all output values.
    pub max_abs_difference: f64,
    /// Smallest cosine between the two pooled features of an image.
    pub min_cosine: f64,
    /// Share of images for which the probe predicts the same class; `None` without a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argmax_agreement: Option<f64>,
}
