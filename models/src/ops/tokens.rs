//! The network's operators on tokens of one or two views of a batch, on whichever device the tokens are.
//!
//! On the CPU each view is a tensor of its own and passes through [`super::graph`] by itself; on a GPU the views' rows lie
//! behind each other in one matrix, so that a layer is one product over all of them.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, bail};

use super::block::Block;
use super::graph;
use super::info_nce::{Contrast, Keys};
use crate::config::Pooling;
#[cfg(feature = "cuda")]
use crate::cuda::{layers, losses, places, stack};
use crate::params::Group;

/// Which patches of each image the encoder sees.
#[derive(Debug, Clone)]
pub enum Kept {
    /// (B, K) indexes into the N patches.
    Host(Arc<Vec<u32>>),
    /// The same on a GPU.
    Device {
        /// (B, K) u32
        kept: Tensor,
        /// (B, 1 + N) u32: for each of the decoder's tokens the view's encoded row it comes from, `u32::MAX` where the
        /// patch was removed.
        sources: Tensor,
    },
}

/// What the decoders predict: (B, N, P) f32.
#[derive(Debug, Clone)]
pub enum Target {
    /// On the CPU.
    Host(Arc<Vec<f32>>),
    /// On a GPU.
    Device(Tensor),
}

/// What the encoder sees of a view.
#[derive(Debug, Clone)]
pub struct Seen {
    /// (B, K, P) normalised pixels.
    pub patches: Tensor,
    /// Which patches these are.
    pub kept: Kept,
}

/// Fixed positions (1 + N, D), copied to a GPU when one first asks.
#[derive(Debug, Clone)]
pub struct Positions {
    values: Arc<Vec<f32>>,
    width: usize,
    device: Arc<OnceLock<Tensor>>,
}

impl Positions {
    /// Rows of `width` values.
    pub fn new(values: Vec<f32>, width: usize) -> Self {
        Positions { values: Arc::new(values), width, device: Arc::default() }
    }

    /// As a tensor (1 + N, D) on a device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn at(&self, device: &Device) -> Result<Tensor> {
        if let Some(held) = self.device.get().filter(|held| held.device().same_device(device)) {
            return Ok(held.clone());
        }
        let copy = Tensor::from_slice(&self.values, (self.values.len() / self.width, self.width), device)?;
        let _ = self.device.set(copy.clone()); // another device's copy may be there: then this one is not kept
        Ok(copy)
    }
}

/// Tokens of the views of a batch.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// CPU: (B, T, D) of each view; GPU: one (rows, D) of all.
    parts: Vec<Tensor>,
    /// (B, T) of each view.
    spans: Vec<(usize, usize)>,
}

/// The GPU's branch of an operator where there is one, else what says that this build has none.
macro_rules! on_gpu {
    ($body:expr) => {{
        #[cfg(feature = "cuda")]
        {
            $body
        }
        #[cfg(not(feature = "cuda"))]
        {
            bail!("this build has no GPU operators")
        }
    }};
}

fn on_cpu(tensor: &Tensor) -> bool {
    matches!(tensor.device(), Device::Cpu)
}

/// Kept patches -> tokens with positions, a class token in front.
///
/// # Errors
/// Shapes that do not fit.
pub fn embed(views: &[&Seen], group: &Group, positions: &Positions) -> Result<Tokens> {
    let Some(first) = views.first() else { bail!("embed: no view") };
    if on_cpu(&first.patches) {
        let part = |view: &&Seen| match &view.kept {
            Kept::Host(kept) => graph::embed(&view.patches, group.values(), kept.clone(), positions.values.clone()),
            Kept::Device { .. } => bail!("embed: patches and their indexes are on different devices"),
        };
        return Tokens::apart(views.iter().map(part).collect::<Result<_>>()?);
    }
    on_gpu!({
        let seen = |view: &&Seen| match &view.kept {
            Kept::Device { kept, .. } => Ok(places::Seen { patches: view.patches.clone(), kept: kept.clone() }),
            Kept::Host(_) => bail!("embed: patches and their indexes are on different devices"),
        };
        let views = views.iter().map(seen).collect::<Result<Vec<_>>>()?;
        let (tokens, spans) = places::embed(&views, group, &positions.at(first.patches.device())?)?;
        Ok(Tokens { parts: vec![tokens], spans })
    })
}

impl Tokens {
    /// Views as tensors (B, T, D) on the CPU.
    ///
    /// # Errors
    /// Another rank.
    fn apart(parts: Vec<Tensor>) -> Result<Self> {
        let spans = parts.iter().map(|part| part.dims3().map(|(b, t, _)| (b, t))).collect::<Result<_>>()?;
        Ok(Tokens { parts, spans })
    }

    /// The tensors that hold them: on the CPU (B, T, D) of each view, on a GPU (rows, D) of all.
    pub fn parts(&self) -> &[Tensor] {
        &self.parts
    }

    fn on_cpu(&self) -> bool {
        self.parts.iter().all(on_cpu)
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Tokens { parts: self.parts.iter().map(f).collect::<Result<_>>()?, spans: self.spans.clone() })
    }

    /// The tokens of a single view.
    ///
    /// # Shapes
    /// (B, T, D).
    ///
    /// # Errors
    /// More views than one.
    pub fn single(self) -> Result<Tensor> {
        match (self.parts.as_slice(), self.spans.as_slice()) {
            ([part], [(b, t)]) => part.reshape((*b, *t, ())),
            (_, spans) => bail!("expected tokens of one view, found {}", spans.len()),
        }
    }

    /// The same without a gradient.
    pub fn detach(&self) -> Self {
        Tokens { parts: self.parts.iter().map(Tensor::detach).collect(), spans: self.spans.clone() }
    }

    /// Through a stack of blocks of `heads` heads.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn blocks(&self, groups: &[Group], block: impl Fn(usize) -> Block) -> Result<Self> {
        if self.on_cpu() {
            return groups.iter().try_fold(self.clone(), |tokens, group| {
                tokens.map(|x| graph::block(block(x.dim(1)?), x, group.values()))
            });
        }
        on_gpu!(self.map(|x| stack::stack(block(0), groups, x, &self.spans)))
    }

    /// Layer normalisation.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn norm(&self, group: &Group) -> Result<Self> {
        if self.on_cpu() {
            return self.map(|x| graph::norm(x, group.values()));
        }
        on_gpu!(self.map(|x| layers::normalise(x, group)))
    }

    /// `x W^T + b`.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn linear(&self, group: &Group, outputs: usize) -> Result<Self> {
        self.map(|x| linear(x, group, outputs, false))
    }

    /// Encoded tokens -> the decoder's: mask tokens where patches were removed, positions added.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn fill(&self, group: &Group, kept: &[&Kept], positions: &Positions) -> Result<Self> {
        if self.on_cpu() {
            let part = |(x, kept): (&Tensor, &&Kept)| match kept {
                Kept::Host(kept) => graph::fill(x, group.values(), kept.clone(), positions.values.clone()),
                Kept::Device { .. } => bail!("fill: tokens and indexes are on different devices"),
            };
            return Tokens::apart(self.parts.iter().zip(kept).map(part).collect::<Result<_>>()?);
        }
        on_gpu!({
            let x = &self.parts[0];
            let sources = sources(kept)?;
            let (tokens, spans) = places::fill(x, &self.spans, group, &sources, &positions.at(x.device())?)?;
            Ok(Tokens { parts: vec![tokens], spans })
        })
    }

    /// What stands for each image of view `which`.
    ///
    /// # Shapes
    /// (B, D).
    ///
    /// # Errors
    /// Candle's.
    pub fn pool(&self, which: usize, pooling: Pooling) -> Result<Tensor> {
        if self.on_cpu() {
            return crate::vit::pool(&self.parts[which], pooling);
        }
        on_gpu!(layers::pool(&self.parts[0], &self.spans, which, pooling == Pooling::Mean))
    }

    /// `factor` x the sum over views of the mean absolute error against their targets, a scalar; and those means
    /// (views).  `removed_only`: over removed patches, else over all.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn l1(&self, targets: &[(&Target, &Kept)], removed_only: bool, factor: f64) -> Result<(Tensor, Tensor)> {
        let patches = self.spans[0].1 - 1;
        if self.on_cpu() {
            let mut losses = Vec::new();
            for ((predicted, (b, _)), (target, kept)) in self.parts.iter().zip(&self.spans).zip(targets) {
                let (Target::Host(target), Kept::Host(kept)) = (target, kept) else {
                    bail!("l1: predictions and targets are on different devices")
                };
                let counts = if removed_only { removed(kept, *b, patches) } else { vec![true; b * patches] };
                losses.push(graph::masked_l1(predicted, target.clone(), Arc::new(counts))?);
            }
            let parts = Tensor::stack(&losses.iter().map(Tensor::detach).collect::<Vec<_>>(), 0)?;
            let mut sum = losses.remove(0);
            for loss in losses {
                sum = (sum + loss)?;
            }
            return Ok(((sum * factor)?, parts));
        }
        on_gpu!({
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
            losses::masked_l1(&self.parts[0], &targets, removed_only.then_some(&sources), &counts, factor)
        })
    }
}

#[cfg(feature = "cuda")]
fn sources(kept: &[&Kept]) -> Result<Vec<Tensor>> {
    let each = |kept: &&Kept| match kept {
        Kept::Device { sources, .. } => Ok(sources.clone()),
        Kept::Host(_) => bail!("tokens and indexes are on different devices"),
    };
    kept.iter().map(each).collect()
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

/// `x W^T + b`, with GELU behind it where `gelu`.
///
/// # Shapes
/// `x` (..., I), the result (..., O).
///
/// # Errors
/// Widths that do not fit.
pub fn linear(x: &Tensor, group: &Group, outputs: usize, gelu: bool) -> Result<Tensor> {
    if on_cpu(x) {
        return graph::linear(x, group.values(), outputs, gelu);
    }
    on_gpu!(layers::linear(x, group, outputs, gelu))
}

/// Each row divided by its Euclidean length.
///
/// # Shapes
/// `x` and the result (B, C).
///
/// # Errors
/// Candle's.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        return graph::l2_normalize(x);
    }
    on_gpu!(layers::l2_normalize(x))
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
    Device(&'a losses::DeviceBank),
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
                graph::contrast(queries, keys)
            };
            let (loss, Contrast { loss: value, positive, negative }) = graph::with_values(keys, compared)?;
            Ok(((loss * how.weight)?, Tensor::new(&[value, positive, negative], &Device::Cpu)?))
        }
        #[cfg(feature = "cuda")]
        (Images::Device(images), Past::Device(bank)) => losses::contrast(queries, keys, images, bank, how),
        _ => bail!("contrast: queries, images and bank are on different devices"),
    }
}
