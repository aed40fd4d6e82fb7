//! The network's operators on tokens of one or two views of a batch, on whichever device the tokens are.
//!
//! On the CPU each view is a tensor of its own and passes through [`super::graph`] by itself; on a GPU the views' rows lie
//! behind each other in one matrix, so that a layer is one product over all of them.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, bail};
use macrl_bundle::config::Pooling;
use macrl_bundle::tokens::TokenLayout;

use super::block::Block;
use super::graph;
#[cfg(feature = "cuda")]
use crate::cuda::{layers, places, stack};
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

    /// (B, T) of each view.
    pub fn spans(&self) -> &[(usize, usize)] {
        &self.spans
    }

    /// Whether the CPU's operators compute with them.
    pub fn on_cpu(&self) -> bool {
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
            return pool(&self.parts[which], pooling);
        }
        on_gpu!(layers::pool(&self.parts[0], &self.spans, which, pooling == Pooling::Mean))
    }
}

/// [`Kept::Device`]'s sources of each view.
///
/// # Errors
/// Indexes on the CPU.
#[cfg(feature = "cuda")]
pub fn sources(kept: &[&Kept]) -> Result<Vec<Tensor>> {
    let each = |kept: &&Kept| match kept {
        Kept::Device { sources, .. } => Ok(sources.clone()),
        Kept::Host(_) => bail!("tokens and indexes are on different devices"),
    };
    kept.iter().map(each).collect()
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

/// What stands for an image among its tokens.
///
/// # Shapes
/// `tokens` (B, 1 + K, D), the result (B, D).
///
/// # Errors
/// Candle's.
pub fn pool(tokens: &Tensor, pooling: Pooling) -> Result<Tensor> {
    match pooling {
        Pooling::Cls => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous(),
        Pooling::Mean => {
            let layout = TokenLayout::of_tokens(tokens.dim(1)?);
            tokens.narrow(1, layout.prefix, layout.patches)?.mean(1)?.contiguous()
        }
    }
}
