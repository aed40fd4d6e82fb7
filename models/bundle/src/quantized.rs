//! Measured quality of a bundle's 8-bit graph, in `parity.json`: the export writes it, and the server decides by it.

use serde::{Deserialize, Serialize};

use crate::comparison::Comparison;

/// Differences between the 8-bit graph and the trained network, and the accuracy that rounding costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quantized {
    /// Compared with the float32 network.
    pub features: Comparison,
    /// Compared with the float32 graph on labelled images; `None` if the export had no labelled images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<QuantizedAccuracy>,
}

/// Accuracies with features of both graphs, on the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedAccuracy {
    /// Number of images that neighbours are searched in.
    pub lookup_images: usize,
    /// Number of images that are classified.
    pub query_images: usize,
    /// Accuracy of the k-nearest-neighbour vote, with the evaluation's k.
    pub knn: Pair,
    /// Accuracy of the bundle's probe; `None` without a probe, or if its classes differ from the images'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linear: Option<Pair>,
}

/// An accuracy measured with both graphs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// With the float32 graph, in [0, 1].
    pub f32: f64,
    /// With the 8-bit graph, in [0, 1].
    pub int8: f64,
    /// Share of images for which both graphs predict the same class.
    pub agreement: f64,
}

impl Quantized {
    /// Smallest allowed cosine between an image's 8-bit and float32 features.
    pub const MIN_COSINE: f64 = 0.995;
    /// Largest allowed loss of accuracy.
    pub const MAX_LOSS: f64 = 0.002;

    /// Whether the graph may replace the float32 graph: its features are similar enough, and no accuracy falls by more
    /// than [`Quantized::MAX_LOSS`] plus the statistical error of the number of images.
    pub fn holds(&self) -> bool {
        let accuracy = self.accuracy.as_ref().is_none_or(|a| {
            let pairs = std::iter::once(&a.knn).chain(&a.linear);
            pairs.into_iter().all(|pair| pair.loss() <= Self::MAX_LOSS + pair.chance(a.query_images))
        });
        // A NaN fails the comparison.
        self.features.min_cosine >= Self::MIN_COSINE && accuracy
    }
}

impl Pair {
    /// Loss of accuracy with the 8-bit graph; negative for a gain.
    pub fn loss(&self) -> f64 {
        self.f32 - self.int8
    }

    /// Two standard errors of the loss on `images`: only images with different predictions contribute, one image each.
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
