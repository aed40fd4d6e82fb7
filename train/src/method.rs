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
use macrl_bundle::config::{Config, KeyBranch, KeyMask, LossOn};
use macrl_nn::ops::tokens::{Tokens, VisiblePatches};
use macrl_nn::params::Group;
use macrl_nn::vit::Encoder;

use crate::bank::Bank;
use crate::decoder::Decoder;
use crate::in_place::moving_average;
use crate::inputs::{Input, Inputs};
use crate::losses::{Chart, Computed, Losses, Number, Term};
use crate::ops::contrast::{PastKeys, contrast};
use crate::ops::info_nce::ContrastSettings;
use crate::ops::reconstruction::l1;
use crate::part::Part;
use crate::projector::Projector;
use crate::views::Batch;

/// InfoNCE of the strong view's queries against the weak view's keys.
pub static CONTRAST: Term = Term {
    name: "contrast",
    charts: &[
        Chart {
            title: "Contrast (InfoNCE)",
            numbers: &[Number { key: "contrast", curve: "contrast", description: "contrast" }],
        },
        Chart {
            title: "Similarity of query and key",
            numbers: &[
                Number { key: "positive_similarity", curve: "own", description: "similarity to own keys" },
                Number { key: "negative_similarity", curve: "others", description: "similarity to other keys" },
            ],
        },
    ],
};

/// Mean absolute error of both decoders' pixels.
pub static RECONSTRUCTION: Term = Term {
    name: "reconstruction",
    charts: &[Chart {
        title: "Reconstruction (L1)",
        numbers: &[
            Number { key: "reconstruction_strong", curve: "strong", description: "reconstruction of the strong view" },
            Number { key: "reconstruction_weak", curve: "weak", description: "reconstruction of the weak view" },
        ],
    }],
};

/// All terms of the loss, in the order in which they are added up and shown.  [`Method::losses`] computes those that have a
/// weight.
pub static TERMS: [&Term; 2] = [&CONTRAST, &RECONSTRUCTION];

/// Added to the encoder's seed, so that the networks' initial weights are independent.
const DECODER_SEED: u64 = 1;
const PROJECTOR_SEED: u64 = 2;

/// The networks and the bank: what a checkpoint holds besides the optimiser.
pub struct Method {
    config: Config,
    /// The network that is exported.
    pub encoder: Encoder,
    /// `None` where reconstruction has no weight.
    pub decoder: Option<Decoder>,
    /// `None` where contrast has no weight.
    pub projector: Option<Projector>,
    /// The moving average that makes the keys; `None` with shared weights or without contrast.
    pub key: Option<(Encoder, Projector)>,
    /// The keys of past steps.
    pub bank: Bank,
    /// The bank in the GPU's memory, which replaces `bank` while training runs there; `bank` is updated from it when a state is
    /// saved.
    #[cfg(feature = "cuda")]
    pub device_bank: Option<crate::cuda::bank::DeviceBank>,
}

/// Indices of the views among the encoded tokens.
const STRONG: usize = 0;
const WEAK: usize = 1;

impl Method {
    /// Networks with initial weights.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn init(config: &Config) -> Result<Self> {
        let encoder = Encoder::init(&config.encoder, config.train.seed.wrapping_mul(4))?;
        Self::starting_from(config, encoder)
    }

    /// A given encoder, and other networks with initial weights.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn starting_from(config: &Config, encoder: Encoder) -> Result<Self> {
        let seed = config.train.seed.wrapping_mul(4);
        let decoder = Decoder::init(config, seed + DECODER_SEED)?;
        let projector = Projector::init(config, seed + PROJECTOR_SEED)?;
        Self::assemble(config, encoder, decoder, projector, None)
    }

    /// Networks from a checkpoint's tensors.  The bank stays empty: [`crate::state::State::load`] fills it.
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
        let mut keys = None;
        if let Some(projector) = &self.projector {
            let (term, weak_keys) = self.contrast(projector, &z, inputs)?;
            terms.push(term);
            keys = Some(weak_keys);
        }
        if let Some(decoder) = &self.decoder {
            terms.push(self.reconstruction(decoder, &z, strong, weak)?);
        }
        Losses::sum(terms, keys)?.context("no term of the loss has a weight")
    }

    /// w_r L_rec, half of it from each branch; measured is the L1 of each.
    fn reconstruction(&self, decoder: &Decoder, z: &Tokens, strong: &Input, weak: &Input) -> Result<Computed> {
        let predicted = decoder.forward(z, &[&strong.seen.kept, &weak.seen.kept])?;
        let targets = [(&strong.target, &strong.seen.kept), (&weak.target, &weak.seen.kept)];
        let masked = self.config.reconstruction.loss_on == LossOn::Masked;
        let (weighted, numbers) = l1(&predicted, &targets, masked, 0.5 * self.config.reconstruction.weight)?;
        Ok(Computed { term: &RECONSTRUCTION, weighted, numbers })
    }

    /// w_c L_contrast and the weak view's keys (B, C).  Measured are the loss, the mean cosine of a query and its key, and that
    /// of a query and its negatives.
    fn contrast(&self, projector: &Projector, z: &Tokens, inputs: &Inputs) -> Result<(Computed, Tensor)> {
        let keys = self.keys(projector, z, inputs)?;
        let settings = self.contrast_settings(1.0 / keys.len() as f64);
        let way = |query: usize, key: &Tensor| -> Result<(Tensor, Tensor)> {
            let q = projector.forward(&self.pooled(z, query)?)?;
            Ok(contrast(&q, key, &inputs.images, self.past(), settings)?)
        };
        let (mut weighted, mut numbers) = way(STRONG, &keys[0])?;
        if let Some(key) = keys.get(1) {
            let (back, back_numbers) = way(WEAK, key)?;
            (weighted, numbers) = ((weighted + back)?, ((numbers + back_numbers)? * 0.5)?);
        }
        Ok((Computed { term: &CONTRAST, weighted, numbers }, keys[0].clone()))
    }

    /// L2-normalised keys (B, C) of the weak view and, for a symmetric contrast, of the strong one; no gradient passes
    /// through the keys.
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

    /// The patches of a view that the key branch encodes.
    fn seen_by_keys<'a>(&self, view: &'a Input) -> Result<&'a VisiblePatches> {
        match self.config.contrast.key_mask {
            KeyMask::View => Ok(&view.seen),
            KeyMask::None => view.whole.as_ref().context("the batch has no whole views"),
        }
    }

    fn past(&self) -> PastKeys<'_> {
        #[cfg(feature = "cuda")]
        if let Some(bank) = &self.device_bank {
            return PastKeys::Device(bank);
        }
        PastKeys::Host(&self.bank.keys, &self.bank.images)
    }

    fn contrast_settings(&self, share: f64) -> ContrastSettings {
        let of = &self.config.contrast;
        ContrastSettings { temperature: of.temperature, batch_negatives: of.batch_negatives, weight: share * of.weight }
    }

    fn pooled(&self, tokens: &Tokens, which: usize) -> candle_core::Result<Tensor> {
        tokens.pool(which, self.config.evaluate.pooling)
    }

    /// Updates the moving average of the key branch: key = momentum key + (1 - momentum) query.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn follow(&mut self, momentum: f32) -> Result<()> {
        let (Some((encoder, projector)), Some(query)) = (&self.key, &self.projector) else { return Ok(()) };
        let keys = encoder.groups().into_iter().chain(projector.groups());
        let queries = self.encoder.groups().into_iter().chain(query.groups());
        for (key, query) in keys.zip(queries) {
            moving_average(key.values(), query.values(), momentum)?;
        }
        Ok(())
    }

    /// A batch on the CPU as the operators take it.
    ///
    /// # Errors
    /// A batch that does not fit the configuration.
    pub fn inputs(&self, batch: &Batch) -> candle_core::Result<Inputs> {
        Inputs::new(batch, &self.config)
    }

    /// The decoder's predictions (B, 1 + N, P) of the strong and the weak view, for the report; `None` without a decoder.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn predictions(&self, batch: &Batch) -> Result<Option<[Tensor; 2]>> {
        let Some(decoder) = &self.decoder else { return Ok(None) };
        let predict = |input: &Input| -> Result<Tensor> {
            let tokens = self.encoder.forward(&[&input.seen])?;
            Ok(decoder.forward(&tokens.detach(), &[&input.seen.kept])?.single()?.detach())
        };
        let inputs = self.inputs(batch)?;
        Ok(Some([predict(&inputs.strong)?, predict(&inputs.weak)?]))
    }
}
