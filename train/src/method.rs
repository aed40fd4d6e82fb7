//! MACRL's step (arXiv 2211.06012): two corrupted views, two branches, a contrast of their encoders' features and an L1
//! reconstruction by both decoders.
//!
//! Both branches share the decoder's weights.  With the momentum key branch the keys come from a moving average of
//! encoder and projector, and the weak view passes through the query's encoder as well, since its reconstruction needs
//! a gradient.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use macrl_models::config::{Config, KeyBranch, LossOn};
use macrl_models::ops::graph::{self, with_values};
use macrl_models::ops::info_nce::{Contrast, Keys};
use macrl_models::ops::update;
use macrl_models::params::Group;
use macrl_models::vit::{Encoder, pool};

use crate::bank::Bank;
use crate::decoder::Decoder;
use crate::projector::Projector;
use crate::views::{Batch, View};

/// Seeds of the three networks' initial weights, apart from each other.
const DECODER_SEED: u64 = 1;
const PROJECTOR_SEED: u64 = 2;

/// The networks and the bank; what a checkpoint must hold besides the optimiser.
pub struct Method {
    config: Config,
    /// Kept after training.
    pub encoder: Encoder,
    /// `None` where reconstruction has no weight.
    pub decoder: Option<Decoder>,
    /// `None` where contrast has no weight.
    pub projector: Option<Projector>,
    /// The moving average that makes the keys; `None` with shared weights or without contrast.
    pub key: Option<(Encoder, Projector)>,
    /// Past keys.
    pub bank: Bank,
}

/// One batch's losses; `total` carries the graph.
pub struct Losses {
    /// w_c L_contrast + w_r L_rec, a scalar.
    pub total: Tensor,
    /// Of the contrastive part, where there is one.
    pub contrast: Option<Contrast>,
    /// L1 of the strong and of the weak branch, where decoders run.
    pub reconstruction: Option<[f32; 2]>,
    /// (B, C) keys that enter the bank after the optimiser's step; empty without contrast.
    pub keys: Vec<f32>,
}

/// A view as tensors.
struct Input {
    patches: Tensor,
    kept: Arc<Vec<u32>>,
    target: Arc<Vec<f32>>,
}

impl Method {
    /// Fresh networks.
    ///
    /// # Errors
    /// Candle's.
    pub fn init(config: &Config) -> Result<Self> {
        let seed = config.train.seed.wrapping_mul(4);
        let encoder = Encoder::init(&config.encoder, seed)?;
        let decoder = Decoder::init(config, seed + DECODER_SEED)?;
        let projector = Projector::init(config, seed + PROJECTOR_SEED)?;
        Self::assemble(config, encoder, decoder, projector, None)
    }

    /// Networks from a checkpoint's tensors; the bank is restored by whoever reads the rest.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn from_tensors(config: &Config, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let encoder = Encoder::from_tensors(&config.encoder, tensors, "encoder.")?;
        let has = |weight: f64| weight > 0.0;
        let decoder = match has(config.reconstruction.weight) {
            true => Decoder::from_tensors(config, tensors, "")?,
            false => Decoder::init(config, 0)?,
        };
        let projector = match has(config.contrast.weight) {
            true => Projector::from_tensors(config, tensors, "")?,
            false => Projector::init(config, 0)?,
        };
        let key = match has(config.contrast.weight) && config.contrast.key_branch == KeyBranch::Momentum {
            true => Some((
                Encoder::from_tensors(&config.encoder, tensors, "key.encoder.")?,
                Projector::from_tensors(config, tensors, "key.")?,
            )),
            false => None,
        };
        Self::assemble(config, encoder, decoder, projector, key)
    }

    fn assemble(
        config: &Config,
        encoder: Encoder,
        decoder: Decoder,
        projector: Projector,
        key: Option<(Encoder, Projector)>,
    ) -> Result<Self> {
        let contrast = config.contrast.weight > 0.0;
        let momentum = contrast && config.contrast.key_branch == KeyBranch::Momentum;
        let copy = |group: Group| group.detached_copy();
        let key = match (momentum, key) {
            (true, None) => Some((encoder.clone().map(copy)?, projector.clone().map(copy)?)),
            (_, key) => key,
        };
        Ok(Method {
            encoder: encoder.map(Group::trainable)?,
            decoder: (config.reconstruction.weight > 0.0).then_some(decoder),
            projector: if contrast { Some(projector.map(Group::trainable)?) } else { None },
            key,
            bank: Bank::new(config.contrast.bank_size, config.projector.dim),
            config: config.clone(),
        })
    }

    /// Trainable parameters with the part of the network that they belong to, in a fixed order.
    pub fn trainable(&self) -> Vec<(Part, &Group)> {
        let encoder = self.encoder.groups().into_iter().map(|g| (Part::Encoder, g));
        let decoder = self.decoder.iter().flat_map(Decoder::groups).map(|g| (Part::Decoder, g));
        let projector = self.projector.iter().flat_map(Projector::groups).map(|g| (Part::Projector, g));
        encoder.chain(decoder).chain(projector).collect()
    }

    /// Steps 1 to 6 of the method for one batch, up to the loss.
    ///
    /// # Errors
    /// A batch that does not fit the configuration.
    pub fn losses(&self, batch: &Batch) -> Result<Losses> {
        let (strong, weak) = (self.input(&batch.strong, batch)?, self.input(&batch.weak, batch)?);
        let z_strong = self.encoder.forward(&strong.patches, strong.kept.clone())?;
        let weak_needs_gradient = self.decoder.is_some() || self.key.is_none();
        let z_weak = match weak_needs_gradient {
            true => Some(self.encoder.forward(&weak.patches, weak.kept.clone())?),
            false => None,
        };

        let mut terms = Vec::new();
        let mut contrast = None;
        let mut keys = Vec::new();
        if let Some(projector) = &self.projector {
            let q = projector.forward(&self.pooled(&z_strong)?)?;
            keys = self.keys(projector, &weak, z_weak.as_ref())?;
            let (loss, summary) = graph::contrast(&q, self.compared(&keys, &batch.indices))?;
            terms.push((loss * self.config.contrast.weight)?);
            contrast = Some(summary);
        }
        let mut reconstruction = None;
        if let (Some(decoder), Some(z_weak)) = (&self.decoder, &z_weak) {
            let strong = self.reconstruct(decoder, &z_strong, &strong)?;
            let weak = self.reconstruct(decoder, z_weak, &weak)?;
            reconstruction = Some([strong.to_scalar::<f32>()?, weak.to_scalar::<f32>()?]);
            terms.push(((strong + weak)? * (0.5 * self.config.reconstruction.weight))?);
        }
        let total = terms.into_iter().reduce_sum()?;
        Ok(Losses { total, contrast, reconstruction, keys })
    }

    /// L1 between what the decoder makes of encoded tokens and the view's target; a scalar.
    fn reconstruct(&self, decoder: &Decoder, tokens: &Tensor, view: &Input) -> Result<Tensor> {
        let predicted = decoder.forward(tokens, view.kept.clone())?;
        let n = self.config.encoder.patches();
        let counts = match self.config.reconstruction.loss_on {
            LossOn::All => vec![true; tokens.dim(0)? * n],
            LossOn::Masked => removed(&view.kept, tokens.dim(0)?, n),
        };
        Ok(graph::masked_l1(&predicted, view.target.clone(), Arc::new(counts))?)
    }

    /// L2-normalised keys (B, C) of the weak view; no gradient passes through them.
    fn keys(&self, projector: &Projector, weak: &Input, z_weak: Option<&Tensor>) -> Result<Vec<f32>> {
        let k = match (&self.key, z_weak) {
            (Some((encoder, projector)), _) => {
                projector.forward(&self.pooled(&encoder.forward(&weak.patches, weak.kept.clone())?)?)?
            }
            (None, Some(z_weak)) => projector.forward(&self.pooled(z_weak)?.detach())?,
            (None, None) => anyhow::bail!("shared keys need the weak view's encoding"),
        };
        Ok(with_values(&k, |k| Ok(k.to_vec()))?)
    }

    fn compared<'a>(&'a self, keys: &'a [f32], images: &'a [u32]) -> Keys<'a> {
        Keys {
            positives: keys,
            images,
            bank: &self.bank.keys,
            bank_images: &self.bank.images,
            width: self.config.projector.dim,
            temperature: self.config.contrast.temperature as f32,
            batch_negatives: self.config.contrast.batch_negatives,
        }
    }

    fn pooled(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        pool(tokens, self.config.evaluate.pooling)
    }

    fn input(&self, view: &View, batch: &Batch) -> Result<Input> {
        let (b, p) = (batch.indices.len(), self.config.encoder.patch_values());
        let k = view.kept.len() / b.max(1);
        Ok(Input {
            patches: Tensor::from_slice(&view.patches, (b, k, p), &Device::Cpu)?,
            kept: Arc::new(view.kept.clone()),
            target: Arc::new(view.target.clone()),
        })
    }

    /// Moves the key branch towards the query: key = momentum key + (1 - momentum) query.
    ///
    /// # Errors
    /// Candle's.
    pub fn follow(&mut self, momentum: f32) -> Result<()> {
        let (Some((encoder, projector)), Some(query)) = (&self.key, &self.projector) else { return Ok(()) };
        let keys = encoder.groups().into_iter().chain(projector.groups());
        let queries = self.encoder.groups().into_iter().chain(query.groups());
        for (key, query) in keys.zip(queries) {
            key.values().inplace_op2(query.values(), &Follow { momentum })?;
        }
        Ok(())
    }

    /// What the decoder makes of both branches, for looking at: predictions (B, 1 + N, P) of the strong and the weak
    /// view; `None` without decoders.
    ///
    /// # Errors
    /// Candle's.
    pub fn predictions(&self, batch: &Batch) -> Result<Option<[Tensor; 2]>> {
        let Some(decoder) = &self.decoder else { return Ok(None) };
        let predict = |view: &View| -> Result<Tensor> {
            let input = self.input(view, batch)?;
            let tokens = self.encoder.forward(&input.patches, input.kept.clone())?;
            Ok(decoder.forward(&tokens.detach(), input.kept)?.detach())
        };
        Ok(Some([predict(&batch.strong)?, predict(&batch.weak)?]))
    }
}

/// The parts whose gradients are reported apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The encoder.
    Encoder,
    /// The decoder.
    Decoder,
    /// The projector.
    Projector,
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

trait ReduceSum {
    fn reduce_sum(self) -> Result<Tensor>;
}

impl<I: Iterator<Item = Tensor>> ReduceSum for I {
    fn reduce_sum(mut self) -> Result<Tensor> {
        let first = self.next().ok_or_else(|| anyhow::anyhow!("no loss has a weight"))?;
        Ok(self.try_fold(first, |sum, term| sum + term)?)
    }
}

struct Follow {
    momentum: f32,
}

impl candle_core::InplaceOp2 for Follow {
    fn name(&self) -> &'static str {
        "moving_average"
    }

    fn cpu_fwd(
        &self,
        average: &mut candle_core::CpuStorage,
        _: &candle_core::Layout,
        values: &candle_core::CpuStorage,
        _: &candle_core::Layout,
    ) -> candle_core::Result<()> {
        let values = values.as_slice::<f32>()?;
        update::moving_average(crate::optimizer::f32_mut(average)?, values, self.momentum);
        Ok(())
    }
}
