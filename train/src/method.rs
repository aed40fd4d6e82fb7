//! MACRL's step (arXiv 2211.06012): two corrupted views, two branches, a contrast of their encoders' features and an L1
//! reconstruction by both decoders.
//!
//! Both branches share the decoder's weights.  With the momentum key branch the keys come from a moving average of
//! encoder and projector, and the weak view passes through the query's encoder as well, since its reconstruction needs
//! a gradient.  Its pooled feature is then there for a second contrast, of the weak view's queries with the strong view's
//! keys (`contrast.symmetric`, as in MoCo v3, arXiv 2104.02057); only the weak view's keys enter the bank.  The key branch
//! sees the patches that the view's mask keeps, or all of them (`contrast.key_mask`): the queries are masked in any case.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::Tensor;
use macrl_models::config::{Config, KeyBranch, KeyMask, LossOn};
use macrl_models::ops::tokens::{Comparison, Past, Seen, Tokens, contrast};
use macrl_models::ops::update;
use macrl_models::params::Group;
use macrl_models::vit::Encoder;

use crate::bank::Bank;
use crate::decoder::Decoder;
use crate::inputs::{Input, Inputs};
use crate::projector::Projector;
use crate::views::Batch;

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
    /// The bank that is compared with while training runs on a GPU; `bank` is brought up to date when a state is saved.
    #[cfg(feature = "cuda")]
    pub device_bank: Option<macrl_models::cuda::losses::DeviceBank>,
}

/// One batch's losses, on the device that computed them; `total` carries the graph.
pub struct Losses {
    /// w_c L_contrast + w_r L_rec, a scalar.
    pub total: Tensor,
    /// (3), where there is a contrast: its loss, the mean cosine of a query and its key, and with its negatives.
    pub contrast: Option<Tensor>,
    /// (2), where decoders run: L1 of the strong and of the weak branch.
    pub reconstruction: Option<Tensor>,
    /// (B, C) keys that enter the bank after the optimiser's step.
    pub keys: Option<Tensor>,
}

/// The views' places among encoded tokens.
const STRONG: usize = 0;
const WEAK: usize = 1;

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
            #[cfg(feature = "cuda")]
            device_bank: None,
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
    pub fn losses(&self, inputs: &Inputs) -> Result<Losses> {
        let Inputs { strong, weak, .. } = inputs;
        let weak_is_key = self.key.is_none() && self.config.contrast.key_mask == KeyMask::View;
        let both = self.decoder.is_some() || self.config.contrast.symmetric || weak_is_key;
        let seen = if both { vec![&strong.seen, &weak.seen] } else { vec![&strong.seen] };
        let z = self.encoder.forward(&seen)?;

        let mut terms = Vec::new();
        let (mut compared, mut keys, mut reconstruction) = (None, None, None);
        if let Some(projector) = &self.projector {
            let (loss, parts, k) = self.compare(projector, &z, inputs)?;
            terms.push(loss);
            (compared, keys) = (Some(parts), Some(k));
        }
        if let Some(decoder) = &self.decoder {
            let (loss, parts) = self.reconstruct(decoder, &z, strong, weak)?;
            terms.push(loss);
            reconstruction = Some(parts);
        }
        let total = terms.into_iter().reduce_sum()?;
        Ok(Losses { total, contrast: compared, reconstruction, keys })
    }

    /// w_r L_rec, half of it from each branch, and both branches' L1.
    fn reconstruct(&self, decoder: &Decoder, z: &Tokens, strong: &Input, weak: &Input) -> Result<(Tensor, Tensor)> {
        let predicted = decoder.forward(z, &[&strong.seen.kept, &weak.seen.kept])?;
        let targets = [(&strong.target, &strong.seen.kept), (&weak.target, &weak.seen.kept)];
        let masked = self.config.reconstruction.loss_on == LossOn::Masked;
        Ok(predicted.l1(&targets, masked, 0.5 * self.config.reconstruction.weight)?)
    }

    /// w_c L_contrast, its numbers, and the weak view's keys (B, C).
    fn compare(&self, projector: &Projector, z: &Tokens, inputs: &Inputs) -> Result<(Tensor, Tensor, Tensor)> {
        let keys = self.keys(projector, z, inputs)?;
        let how = self.comparison(1.0 / keys.len() as f64);
        let way = |query: usize, key: &Tensor| -> Result<(Tensor, Tensor)> {
            let q = projector.forward(&self.pooled(z, query)?)?;
            Ok(contrast(&q, key, &inputs.images, self.past(), how)?)
        };
        let (mut loss, mut parts) = way(STRONG, &keys[0])?;
        if let Some(key) = keys.get(1) {
            let (back, back_parts) = way(WEAK, key)?;
            (loss, parts) = ((loss + back)?, ((parts + back_parts)? * 0.5)?);
        }
        Ok((loss, parts, keys[0].clone()))
    }

    /// L2-normalised keys (B, C) of the weak view and, for a symmetric contrast, of the strong one; no gradient passes
    /// through them.
    fn keys(&self, projector: &Projector, z: &Tokens, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let count = if self.config.contrast.symmetric { 2 } else { 1 };
        let views = [&inputs.weak, &inputs.strong];
        let whole = self.config.contrast.key_mask == KeyMask::None;
        let seen = views[..count].iter().map(|view| self.seen_by_keys(view)).collect::<Result<Vec<_>>>()?;
        let (projector, tokens, views) = match &self.key {
            Some((encoder, projector)) => (projector, encoder.forward(&seen)?, [0, 1]),
            None if whole => (projector, self.encoder.clone().map(|group| Ok(group.frozen()))?.forward(&seen)?, [0, 1]),
            None => (projector, z.detach(), [WEAK, STRONG]),
        };
        let key = |view: &usize| Ok(projector.forward(&self.pooled(&tokens, *view)?)?.detach());
        views[..count].iter().map(key).collect()
    }

    /// What the key branch encodes of a view.
    fn seen_by_keys<'a>(&self, view: &'a Input) -> Result<&'a Seen> {
        match self.config.contrast.key_mask {
            KeyMask::View => Ok(&view.seen),
            KeyMask::None => view.whole.as_ref().context("the batch has no whole views"),
        }
    }

    fn past(&self) -> Past<'_> {
        #[cfg(feature = "cuda")]
        if let Some(bank) = &self.device_bank {
            return Past::Device(bank);
        }
        Past::Host(&self.bank.keys, &self.bank.images)
    }

    fn comparison(&self, share: f64) -> Comparison {
        let of = &self.config.contrast;
        Comparison { temperature: of.temperature, batch_negatives: of.batch_negatives, weight: share * of.weight }
    }

    fn pooled(&self, tokens: &Tokens, which: usize) -> candle_core::Result<Tensor> {
        tokens.pool(which, self.config.evaluate.pooling)
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
        let predict = |input: &Input| -> Result<Tensor> {
            let tokens = self.encoder.forward(&[&input.seen])?;
            Ok(decoder.forward(&tokens.detach(), &[&input.seen.kept])?.single()?.detach())
        };
        let inputs = Inputs::new(batch, &self.config)?;
        Ok(Some([predict(&inputs.strong)?, predict(&inputs.weak)?]))
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
