//! The proof of a bundle's 8-bit graph, in `parity.json`: the export writes it, and the server decides by it.

use serde::{Deserialize, Serialize};

use crate::bundle::Comparison;

/// The 8-bit graph against the trained network, and what its rounding costs in accuracy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// Against the 32-bit network.
    pub features: Comparison,
    /// Against the 32-bit graph on labelled images; `None` where the export had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<QuantizedAccuracy>,
}

/// Accuracies with features of both graphs, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedAccuracy {
    /// Images among which neighbours are looked up.
    pub lookup_images: usize,
    /// Images that are classified.
    pub query_images: usize,
    /// k nearest neighbours, as the evaluation has them.
    pub knn: Pair,
    /// The bundle's probe; `None` where there is none, or its classes are not those of the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<Pair>,
}

/// One accuracy in 32 bits and in 8.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// In [0, 1].
    pub f32: f64,
    /// In [0, 1].
    pub int8: f64,
    /// Share of images that both give the same class.
    pub agreement: f64,
}

impl Quantized {
    /// Smallest cosine of a feature with the 32-bit one.
    pub const MIN_COSINE: f64 = 0.995;
    /// Accuracy that the rounding may cost.
    pub const MAX_LOSS: f64 = 0.002;

    /// Whether the graph may stand in for the 32-bit one: its features are near enough, and no accuracy falls by more than
    /// [`Quantized::MAX_LOSS`], beyond what chance does to so few images.
    pub fn holds(&self) -> bool {
        let accuracy = self.accuracy.as_ref().is_none_or(|a| {
            let pairs = std::iter::once(&a.knn).chain(&a.linear);
            pairs.into_iter().all(|pair| pair.loss() <= Self::MAX_LOSS + pair.chance(a.query_images))
        });
        // NaN is no cosine that is large enough.
        self.features.min_cosine >= Self::MIN_COSINE && accuracy
    }
}

impl Pair {
    /// What 8 bits cost.
    pub fn loss(&self) -> f64 {
        self.f32 - self.int8
    }

    /// Two standard errors of that on `images`: only those on which the two disagree can differ, and each is worth one image.
    fn chance(&self, images: usize) -> f64 {
        2.0 * ((1.0 - self.agreement).max(0.0) / images.max(1) as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(min_cosine: f64, knn: Pair) -> Quantized {
        let features = Comparison { max_abs_difference: 0.1, min_cosine, argmax_agreement: None };
        let accuracy = QuantizedAccuracy { lookup_images: 1200, query_images: 800, knn, linear: None };
        Quantized { features, accuracy: Some(accuracy) }
    }

    #[test]
    fn a_graph_holds_while_its_loss_may_be_chance() {
        let same = Pair { f32: 0.6, int8: 0.6, agreement: 1.0 };
        assert!(proof(0.9995, same).holds());
        assert!(!proof(0.99, same).holds() && !proof(f64::NAN, same).holds());
        // 800 images of which 8 are named otherwise: 2 * sqrt(0.01 / 800) = 0.0071, and 0.002 are allowed.
        let lost = |loss: f64| Pair { f32: 0.6, int8: 0.6 - loss, agreement: 0.99 };
        assert!(proof(0.9995, lost(0.009)).holds() && !proof(0.9995, lost(0.0092)).holds());
        assert!(proof(0.9995, lost(-0.2)).holds(), "better is no loss");
    }
}
