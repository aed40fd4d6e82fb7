//! The reconstruction loss on whichever device the tokens are: L1 of the decoders' predictions.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use macrl_bundle::tokens::TokenLayout;
#[cfg(feature = "cuda")]
use macrl_nn::ops::tokens::sources;
use macrl_nn::ops::tokens::{Kept, Tokens};

use super::l1::masked_l1;
#[cfg(feature = "cuda")]
use crate::cuda;

/// The pixels that the decoders are to predict: (B, N, P) f32.
#[derive(Debug, Clone)]
pub enum Target {
    /// On the CPU.
    Host(Arc<Vec<f32>>),
    /// On a GPU.
    Device(Tensor),
}

/// `factor` times the sum over views of the mean absolute error, a scalar; and the mean absolute error of each view (views).
/// `removed_only`: the mean over removed patches, else over all.
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
        cuda::l1::masked_l1(&parts[0], &targets, removed_only.then_some(&sources), &counts, factor)
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
