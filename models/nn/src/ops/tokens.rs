//! Operators on the tokens of one or two views of a batch, on the device of the tokens.
//!
//! On the CPU each view is a separate tensor and is processed separately ([`super::graph`]).  On a GPU the rows of all
//! views are in one matrix, so that a layer is one product over all of them.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor, bail};
use macrl_bundle::config::Pooling;
use macrl_bundle::tokens::TokenLayout;

use super::block::Block;
use super::graph;
#[cfg(feature = "cuda")]
use crate::cuda::{layers, places, stack};
use crate::params::Group;

/// Indexes of the patches of each image that the encoder gets.
#[derive(Debug, Clone)]
pub enum Kept {
    /// On the CPU: (B, K) indexes into the N patches.
    Host(Arc<Vec<u32>>),
    /// On a GPU: the same indexes, and the source of each decoder token.
    Device {
        /// (B, K) u32 indexes into the N patches.
        kept: Tensor,
        /// (B, 1 + N) u32: for each decoder token the row of its encoded token in the view, or `u32::MAX` if the patch
        /// was removed.
        sources: Tensor,
    },
}

/// The patches of a view that the encoder gets.
#[derive(Debug, Clone)]
pub struct VisiblePatches {
    /// (B, K, P) normalised pixels.
    pub patches: Tensor,
    /// The indexes of these patches.
    pub kept: Kept,
}

/// Fixed position embeddings (1 + N, D); copied to a GPU on first use.
#[derive(Debug, Clone)]
pub struct Positions {
    values: Arc<Vec<f32>>,
    width: usize,
    device: Arc<OnceLock<Tensor>>,
}

impl Positions {
    /// Position embeddings from rows of `width` values.
    pub fn new(values: Vec<f32>, width: usize) -> Self {
        Positions { values: Arc::new(values), width, device: Arc::default() }
    }

    /// The positions as a tensor (1 + N, D) on a device.
    ///
    /// # Errors
    /// There is not enough memory on the device.
    pub fn at(&self, device: &Device) -> Result<Tensor> {
        if let Some(held) = self.device.get().filter(|held| held.device().same_device(device)) {
            return Ok(held.clone());
        }
        let copy = Tensor::from_slice(&self.values, (self.values.len() / self.width, self.width), device)?;
        let _ = self.device.set(copy.clone()); // fails if another device's copy is stored; then this copy is not kept
        Ok(copy)
    }
}

/// Tokens of one or more views of a batch.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// CPU: one tensor (B, T, D) per view; GPU: one tensor (rows, D) for all views.
    parts: Vec<Tensor>,
    /// (B, T) of each view.
    spans: Vec<(usize, usize)>,
}

/// Evaluates a GPU operator; without the feature `cuda`, returns an error instead.
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

/// Embeds kept patches as tokens with positions, after a class token.
///
/// # Errors
/// Shapes do not match, or patches and indexes are on different devices.
pub fn embed(views: &[&VisiblePatches], group: &Group, positions: &Positions) -> Result<Tokens> {
    let Some(first) = views.first() else { bail!("embed: expected at least one view") };
    if on_cpu(&first.patches) {
        let part = |view: &&VisiblePatches| match &view.kept {
            Kept::Host(kept) => graph::embed(&view.patches, group.values(), kept.clone(), positions.values.clone()),
            Kept::Device { .. } => bail!("embed: patches and their indexes are on different devices"),
        };
        return Tokens::apart(views.iter().map(part).collect::<Result<_>>()?);
    }
    on_gpu!({
        let visible = |view: &&VisiblePatches| match &view.kept {
            Kept::Device { kept, .. } => Ok(places::Seen { patches: view.patches.clone(), kept: kept.clone() }),
            Kept::Host(_) => bail!("embed: patches and their indexes are on different devices"),
        };
        let views = views.iter().map(visible).collect::<Result<Vec<_>>>()?;
        let (tokens, spans) = places::embed(&views, group, &positions.at(first.patches.device())?)?;
        Ok(Tokens { parts: vec![tokens], spans })
    })
}

impl Tokens {
    /// Separate tensors (B, T, D) of views, on the CPU.
    ///
    /// # Errors
    /// A tensor does not have three dimensions.
    fn apart(parts: Vec<Tensor>) -> Result<Self> {
        let spans = parts.iter().map(|part| part.dims3().map(|(b, t, _)| (b, t))).collect::<Result<_>>()?;
        Ok(Tokens { parts, spans })
    }

    /// The underlying tensors: on the CPU one (B, T, D) per view, on a GPU one (rows, D) for all views.
    pub fn parts(&self) -> &[Tensor] {
        &self.parts
    }

    /// (B, T) of each view.
    pub fn spans(&self) -> &[(usize, usize)] {
        &self.spans
    }

    /// Whether the tokens are on the CPU.
    pub fn on_cpu(&self) -> bool {
        self.parts.iter().all(on_cpu)
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Tokens { parts: self.parts.iter().map(f).collect::<Result<_>>()?, spans: self.spans.clone() })
    }

    /// The tokens of a single view.
    ///
    /// # Shapes
    /// The result (B, T, D).
    ///
    /// # Errors
    /// The tokens belong to more than one view.
    pub fn single(self) -> Result<Tensor> {
        match (self.parts.as_slice(), self.spans.as_slice()) {
            ([part], [(b, t)]) => part.reshape((*b, *t, ())),
            (_, spans) => bail!("expected tokens of one view, found {}", spans.len()),
        }
    }

    /// The same tokens without gradient.
    pub fn detach(&self) -> Self {
        Tokens { parts: self.parts.iter().map(Tensor::detach).collect(), spans: self.spans.clone() }
    }

    /// Applies a stack of transformer blocks, one group of parameters per block.
    ///
    /// # Errors
    /// A group's parameters do not match the width of the tokens.
    pub fn blocks(&self, groups: &[Group], block: impl Fn(usize) -> Block) -> Result<Self> {
        if self.on_cpu() {
            return groups.iter().try_fold(self.clone(), |tokens, group| {
                tokens.map(|x| graph::block(block(x.dim(1)?), x, group.values()))
            });
        }
        on_gpu!(self.map(|x| stack::stack(block(0), groups, x, &self.spans)))
    }

    /// Applies layer normalisation.
    ///
    /// # Errors
    /// The group's parameters do not match the width of the tokens.
    pub fn norm(&self, group: &Group) -> Result<Self> {
        if self.on_cpu() {
            return self.map(|x| graph::norm(x, group.values()));
        }
        on_gpu!(self.map(|x| layers::normalise(x, group)))
    }

    /// Applies a linear layer: `x W^T + b`.
    ///
    /// # Errors
    /// The group's parameters do not match the width of the tokens.
    pub fn linear(&self, group: &Group, outputs: usize) -> Result<Self> {
        self.map(|x| linear(x, group, outputs, false))
    }

    /// Encoded tokens -> decoder tokens: inserts mask tokens for removed patches and adds positions.
    ///
    /// # Errors
    /// Shapes do not match, or tokens and indexes are on different devices.
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

    /// One feature for each image of view `which`, from its tokens.
    ///
    /// # Shapes
    /// The result (B, D).
    ///
    /// # Errors
    /// A failed Candle or CUDA operation.
    pub fn pool(&self, which: usize, pooling: Pooling) -> Result<Tensor> {
        if self.on_cpu() {
            return pool(&self.parts[which], pooling);
        }
        on_gpu!(layers::pool(&self.parts[0], &self.spans, which, pooling == Pooling::Mean))
    }
}

/// The `sources` of each view; see [`Kept::Device`].
///
/// # Errors
/// The indexes are on the CPU.
#[cfg(feature = "cuda")]
pub fn sources(kept: &[&Kept]) -> Result<Vec<Tensor>> {
    let each = |kept: &&Kept| match kept {
        Kept::Device { sources, .. } => Ok(sources.clone()),
        Kept::Host(_) => bail!("tokens and indexes are on different devices"),
    };
    kept.iter().map(each).collect()
}

/// `x W^T + b`, followed by GELU if `gelu`.
///
/// # Shapes
/// `x` (..., I), the result (..., O).
///
/// # Errors
/// The group's parameters do not match I and O.
pub fn linear(x: &Tensor, group: &Group, outputs: usize, gelu: bool) -> Result<Tensor> {
    if on_cpu(x) {
        return graph::linear(x, group.values(), outputs, gelu);
    }
    on_gpu!(layers::linear(x, group, outputs, gelu))
}

/// Divides each row by its Euclidean length.
///
/// # Shapes
/// `x` and the result (B, C).
///
/// # Errors
/// A failed Candle operation, for example a tensor that is not contiguous.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) {
        return graph::l2_normalize(x);
    }
    on_gpu!(layers::l2_normalize(x))
}

/// One feature for each image, from its tokens: the class token or the mean of the patch tokens.
///
/// # Shapes
/// `tokens` (B, 1 + K, D), the result (B, D).
///
/// # Errors
/// `tokens` does not have three dimensions.
pub fn pool(tokens: &Tensor, pooling: Pooling) -> Result<Tensor> {
    match pooling {
        Pooling::Cls => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous(),
        Pooling::Mean => {
            let layout = TokenLayout::of_tokens(tokens.dim(1)?);
            tokens.narrow(1, layout.prefix, layout.patches)?.mean(1)?.contiguous()
        }
    }
}
