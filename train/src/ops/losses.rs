//! The two losses on whichever device the tokens are: L1 of the decoders' predictions and InfoNCE of the features.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use macrl_bundle::tokens::TokenLayout;
use macrl_nn::ops::graph::with_values;
#[cfg(feature = "cuda")]
use macrl_nn::ops::tokens::sources;
use macrl_nn::ops::tokens::{Kept, Tokens};

use super::info_nce::{self, Contrast, Keys};
use super::l1::masked_l1;
#[cfg(feature = "cuda")]
use crate::cuda;

/// What the decoders predict: (B, N, P) f32.
#[derive(Debug, Clone)]
pub enum Target {
    /// On the CPU.
    Host(Arc<Vec<f32>>),
    /// On a GPU.
    Device(Tensor),
}

/// `factor` x the sum over views of the mean absolute error against their targets, a scalar; and those means
/// (views).  `removed_only`: over removed patches, else over all.
///
/// # Errors
/// Shapes that do not fit.
pub fn l1(
    predicted: &Tokens,
    targets: &[(&Target, &Kept)],
    removed_only: bool,
    factor: f64,
) -> Result<(Tensor, Tensor)> {
    let (parts, spans) = (predicted.parts(), predicted.spans());
    let patches = TokenLayout::of_tokens(spans[0].1).patches;
    if predicted.on_cpu() {
        let mut losses = Vec::new();
        for ((predicted, (b, _)), (target, kept)) in parts.iter().zip(spans).zip(targets) {
            let (Target::Host(target), Kept::Host(kept)) = (target, kept) else {
                bail!("l1: predictions and targets are on different devices")
            };
            let counts = if removed_only { removed(kept, *b, patches) } else { vec![true; b * patches] };
            losses.push(masked_l1(predicted, target.clone(), Arc::new(counts))?);
        }
        let means = Tensor::stack(&losses.iter().map(Tensor::detach).collect::<Vec<_>>(), 0)?;
        let mut sum = losses.remove(0);
        for loss in losses {
            sum = (sum + loss)?;
        }
        return Ok(((sum * factor)?, means));
    }
    #[cfg(not(feature = "cuda"))]
    bail!("this build has no GPU operators");
    #[cfg(feature = "cuda")]
    {
        let device = |target: &Target| match target {
            Target::Device(target) => Ok(target.clone()),
            Target::Host(_) => bail!("l1: predictions and targets are on different devices"),
        };
        let kept: Vec<&Kept> = targets.iter().map(|(_, kept)| *kept).collect();
        let sources = sources(&kept)?;
        let count = |kept: &&Kept| match kept {
            Kept::Device { kept, .. } if removed_only => Ok(patches - kept.dim(1)?),
            _ => Ok(patches),
        };
        let counts = kept.iter().map(count).collect::<Result<Vec<_>>>()?;
        let targets = targets.iter().map(|(target, _)| device(target)).collect::<Result<Vec<_>>>()?;
        cuda::losses::masked_l1(&parts[0], &targets, removed_only.then_some(&sources), &counts, factor)
    }
}

/// (B, N): true where a patch was removed (mask: 1 = removed).
fn removed(kept: &[u32], batch: usize, patches: usize) -> Vec<bool> {
    let mut removed = vec![true; batch * patches];
    let k = kept.len() / batch.max(1);
    for (row, kept) in removed.chunks_exact_mut(patches).zip(kept.chunks_exact(k.max(1))) {
        kept.iter().for_each(|patch| row[*patch as usize] = false);
    }
    removed
}

/// The images that a batch's keys belong to.
#[derive(Debug, Clone)]
pub enum Images {
    /// (B)
    Host(Vec<u32>),
    /// (B) u32
    Device(Tensor),
}

/// Past keys.
#[derive(Debug, Clone, Copy)]
pub enum Past<'a> {
    /// (M, C) and (M).
    Host(&'a [f32], &'a [u32]),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(&'a cuda::losses::DeviceBank),
}

/// How queries are compared with keys.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// tau.
    pub temperature: f64,
    /// Whether the other keys of the batch are negatives.
    pub batch_negatives: bool,
    /// Factor on the loss.
    pub weight: f64,
}

/// `weight` x InfoNCE of L2-normalised queries against their keys, a scalar; and (3): the loss, the mean cosine of a query
/// and its key, the mean cosine with its negatives.  Keys get no gradient.
///
/// # Shapes
/// `queries` and `keys` (B, C).
///
/// # Errors
/// Shapes that do not fit.
pub fn contrast(
    queries: &Tensor,
    keys: &Tensor,
    images: &Images,
    past: Past,
    how: Comparison,
) -> Result<(Tensor, Tensor)> {
    match (images, past) {
        (Images::Host(images), Past::Host(bank, bank_images)) => {
            let compared = |positives: &[f32]| {
                let keys = Keys {
                    positives,
                    images,
                    bank,
                    bank_images,
                    width: queries.dim(1)?,
                    temperature: how.temperature as f32,
                    batch_negatives: how.batch_negatives,
                };
                info_nce::contrast(queries, keys)
            };
            let (loss, Contrast { loss: value, positive, negative }) = with_values(keys, compared)?;
            Ok(((loss * how.weight)?, Tensor::new(&[value, positive, negative], &Device::Cpu)?))
        }
        #[cfg(feature = "cuda")]
        (Images::Device(images), Past::Device(bank)) => cuda::losses::contrast(queries, keys, images, bank, how),
        _ => bail!("contrast: queries, images and bank are on different devices"),
    }
}
