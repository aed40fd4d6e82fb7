//! Mean absolute error on chosen patches: the reconstruction loss of both decoders (arXiv 2211.06012, abstract).

use std::sync::Arc;

use candle_core::{Result, Tensor};
use macrl_bundle::tokens::TokenLayout;
use macrl_kernels::simd::reduce;
use macrl_kernels::vectorised;
use macrl_nn::ops::graph::with_gradient;
use rayon::prelude::*;

vectorised! {
    fn distance(a: &[f32], b: &[f32]) -> f32 {
        let (n, b) = (a.len(), &b[..a.len()]);
        reduce(n, |i| (a[i] - b[i]).abs())
    }
}

vectorised! {
    fn signs(predicted: &[f32], target: &[f32], scale: f32, out: &mut [f32]) {
        for ((out, p), t) in out.iter_mut().zip(predicted).zip(target) {
            let difference = p - t;
            // 0 where they are equal: the subgradient that PyTorch takes
            let sign = if difference > 0.0 { scale } else { -scale };
            *out = if difference == 0.0 { 0.0 } else { sign };
        }
    }
}

/// Where the loss is taken: prediction rows of an image are its tokens, the prefix first.
#[derive(Debug, Clone)]
pub struct Patches<'a> {
    /// N.
    pub patches: usize,
    /// P, values in a patch.
    pub values: usize,
    /// (B, N): true where a patch counts.
    pub counts: &'a [bool],
}

impl Patches<'_> {
    /// Values that count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|c| **c).count() * self.values
    }

    /// Mean of |predicted - target| over the counted patches, 0 where none counts.
    ///
    /// # Shapes
    /// `predicted` (B, 1 + N, P), `target` (B, N, P).
    pub fn loss(&self, predicted: &[f32], target: &[f32]) -> f32 {
        let (n, p, tokens) = (self.patches, self.values, TokenLayout::of_patches(self.patches));
        let sums: Vec<f64> = predicted
            .par_chunks(tokens.count() * p)
            .zip(target.par_chunks(n * p))
            .zip(self.counts.par_chunks(n))
            .map(|((predicted, target), counts)| {
                let patches = predicted[tokens.prefix * p..].chunks_exact(p).zip(target.chunks_exact(p)).zip(counts);
                patches.filter(|(_, c)| **c).map(|((a, b), _)| f64::from(distance(a, b))).sum()
            })
            .collect();
        (sums.iter().sum::<f64>() / self.counted().max(1) as f64) as f32
    }

    /// Gradient of `scale` times the loss: the sign of each counted difference over their number, 0 elsewhere.
    ///
    /// # Shapes
    /// As [`Patches::loss`]; the result as `predicted`.
    pub fn gradient(&self, predicted: &[f32], target: &[f32], scale: f32) -> Vec<f32> {
        let (n, p, tokens) = (self.patches, self.values, TokenLayout::of_patches(self.patches));
        let scale = scale / self.counted().max(1) as f32;
        let mut out = vec![0f32; predicted.len()];
        let images = out.par_chunks_mut(tokens.count() * p).zip(predicted.par_chunks(tokens.count() * p));
        images.zip(target.par_chunks(n * p)).zip(self.counts.par_chunks(n)).for_each(
            |(((out, predicted), target), counts)| {
                for i in (0..n).filter(|i| counts[*i]) {
                    let row = tokens.of_patch(i) * p..(tokens.of_patch(i) + 1) * p;
                    signs(&predicted[row.clone()], &target[i * p..(i + 1) * p], scale, &mut out[row]);
                }
            },
        );
        out
    }
}

/// Mean absolute error over the counted patches, as an operator of Candle's; a scalar.
///
/// # Shapes
/// `predicted` (B, 1 + N, P), `target` (B, N, P), `counts` (B, N).
///
/// # Errors
/// Predictions that do not have three dimensions.
pub fn masked_l1(predicted: &Tensor, target: Arc<Vec<f32>>, counts: Arc<Vec<bool>>) -> Result<Tensor> {
    let (_, tokens, values) = predicted.dims3()?;
    with_gradient("masked_l1", predicted, move |predicted: &[f32], _: &[usize]| {
        let at = Patches { patches: TokenLayout::of_tokens(tokens).patches, values, counts: &counts };
        Ok((vec![at.loss(predicted, &target)], vec![], at.gradient(predicted, &target, 1.0)))
    })
}
