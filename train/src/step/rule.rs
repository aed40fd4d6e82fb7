//! One optimiser step on the CPU: gradients of a batch's parts, the rule for steps that are not finite, clipping, update.
//!
//! Pretraining and fine-tuning both make their steps with [`take`]; they differ in their [`Learner`].

use anyhow::{Result, bail};
use macrl_nn::ops::graph::with_values;
use macrl_nn::params::Group;

use super::contract::Measured;
use crate::gradients::{Gradients, Norms};
use crate::losses::{Losses, Term, TermNumbers};
use crate::part::Part;
use crate::views::Batch;

/// Networks with a loss.
pub trait Model {
    /// What the loss is computed from.
    type Batch;

    /// Trainable parameters with the part of the network that they belong to, in a fixed order.
    fn trainable(&self) -> Vec<(Part, &Group)>;

    /// The losses of one batch, or of one part of it.
    ///
    /// # Errors
    /// A batch that does not fit.
    fn losses(&self, batch: &Self::Batch) -> Result<Losses>;
}

/// A model with everything else that a step changes: moments, moving average, bank, counters.
pub trait Learner {
    /// The networks that are trained.
    type Model: Model;

    /// The networks, for computing losses and gradients.
    fn model(&self) -> &Self::Model;

    /// Number of steps done.
    fn steps(&self) -> u64;

    /// The batch in the equal parts whose gradients are summed, each as the model takes it.
    ///
    /// # Errors
    /// A batch that does not fit.
    fn parts(&self, batch: Batch) -> Result<Vec<<Self::Model as Model>::Batch>>;

    /// Largest gradient norm; 0: no limit.
    fn clip_norm(&self) -> f64;

    /// Applies the gradients times `scale`, then whatever follows an update, and counts the step.
    ///
    /// # Errors
    /// Gradients of another model.
    fn update(&mut self, images: &[u32], computed: &Computed, scale: f64) -> Result<()>;
}

/// A batch's gradients, not applied yet, and what was measured on the way.
pub struct Computed {
    /// The losses and gradient norms.
    pub measured: Measured,
    /// Summed over the batch's parts: the mean is a share of `1 / parts` of it.
    pub gradients: Gradients,
    /// (B, C) keys that enter the bank after the update, flat.
    pub keys: Vec<f32>,
}

/// One optimiser step.  Where the loss or the gradient is not finite nothing is changed.
///
/// # Errors
/// A batch that does not fit.
pub fn take<L: Learner>(learner: &mut L, batch: Batch) -> Result<Measured> {
    let images = batch.indices.clone();
    let parts = learner.parts(batch)?;
    let computed = compute(learner.model(), &parts)?;
    if computed.measured.is_finite() {
        let scale = clipping(computed.measured.norms.total, learner.clip_norm()) * share(&parts);
        learner.update(&images, &computed, scale)?;
    }
    Ok(computed.measured)
}

/// Losses and gradients of a batch in equal parts; nothing is changed.
///
/// # Errors
/// A batch that does not fit.
pub fn compute<M: Model>(model: &M, parts: &[M::Batch]) -> Result<Computed> {
    let share = share(parts);
    let groups = model.trainable();
    let mut gradients: Option<Gradients> = None;
    let mut keys = Vec::new();
    let mut measured = Measured { loss: 0.0, terms: Vec::new(), norms: Norms::default(), unreached: Vec::new() };
    for part in parts {
        let losses = model.losses(part)?;
        measured.loss += share * f64::from(losses.total.to_scalar::<f32>()?);
        for (term, numbers) in &losses.terms {
            add(&mut measured.terms, term, &numbers.to_vec1()?, share as f32);
        }
        let taken = Gradients::take(losses.total.backward()?, &groups);
        match &mut gradients {
            Some(sum) => sum.add(taken)?,
            None => gradients = Some(taken),
        }
        if let Some(k) = &losses.keys {
            with_values(k, |k| {
                keys.extend_from_slice(k);
                Ok(())
            })?;
        }
    }
    let Some(gradients) = gradients else { bail!("an empty batch") };
    measured.norms = gradients.norms(&groups)?.times(share);
    measured.unreached = gradients.unreached(&groups)?;
    Ok(Computed { measured, gradients, keys })
}

/// Share of one part in the batch's mean.
fn share<T>(parts: &[T]) -> f64 {
    1.0 / parts.len() as f64
}

/// Adds a part's share of a term's numbers to the mean.
fn add(means: &mut Vec<TermNumbers>, term: &'static Term, part: &[f32], share: f32) {
    let at = means.iter().position(|mean| mean.term == term).unwrap_or_else(|| {
        means.push(TermNumbers { term, values: vec![0.0; part.len()] });
        means.len() - 1
    });
    means[at].values.iter_mut().zip(part).for_each(|(mean, value)| *mean += share * value);
}

/// Factor that brings a gradient of this norm down to `limit`; 0: no limit.
pub fn clipping(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit { limit / norm } else { 1.0 }
}
