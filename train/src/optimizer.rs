//! AdamW over flat parameter groups, with moments that a checkpoint can hold.
//!
//! Weight decay applies to matrices only: biases, norms and tokens go without.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use macrl_models::config::TrainConfig;
use macrl_models::ops::graph::with_values;
use macrl_models::ops::update::{AdamStep, adamw, sum_of_squares};
use macrl_models::params::{Group, Parameter};

use crate::method::Part;

/// Added to the root of the second moment, as in PyTorch.
pub(crate) const EPS: f32 = 1e-8;

/// First and second moments of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// Optimiser state of all groups, in [`crate::method::Method::trainable`]'s order.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// One per group.
    pub moments: Vec<Moments>,
    /// Steps taken.
    pub step: u64,
    betas: [f64; 2],
    weight_decay: f64,
}

/// Gradients of all groups in order; `None`: no gradient reached the group.
pub struct Gradients(pub Vec<Option<Tensor>>);

/// Euclidean norms of the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Norms {
    /// Over everything.
    pub total: f64,
    /// Over the encoder.
    pub encoder: f64,
    /// Over the decoder.
    pub decoder: f64,
    /// Over the projector.
    pub projector: f64,
}

impl Gradients {
    /// Takes the groups' gradients out of what `backward` left.
    pub fn take(mut store: GradStore, groups: &[(Part, &Group)]) -> Self {
        Gradients(groups.iter().map(|(_, group)| store.remove(group.values())).collect())
    }

    /// Adds another part's gradients.
    ///
    /// # Errors
    /// Candle's.
    pub fn add(&mut self, other: Gradients) -> Result<()> {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = match (mine.take(), theirs) {
                (Some(a), Some(b)) => Some((a + b)?.detach()),
                (a, b) => a.or(b),
            };
        }
        Ok(())
    }

    /// Norms by part; not finite if any value is not.
    ///
    /// # Errors
    /// Candle's.
    pub fn norms(&self, groups: &[(Part, &Group)]) -> Result<Norms> {
        let mut squares = [0f64; 3];
        for ((part, _), gradient) in groups.iter().zip(&self.0) {
            if let Some(gradient) = gradient {
                squares[*part as usize] += with_values(gradient, |g| Ok(sum_of_squares(g)))?;
            }
        }
        let [encoder, decoder, projector] = squares.map(f64::sqrt);
        Ok(Norms { total: squares.iter().sum::<f64>().sqrt(), encoder, decoder, projector })
    }
}

impl AdamW {
    /// Moments of zero.
    pub fn new(groups: &[(Part, &Group)], config: &TrainConfig) -> Self {
        let zeros = |group: &Group| vec![0f32; group.values().elem_count()];
        AdamW {
            moments: groups.iter().map(|(_, g)| Moments { first: zeros(g), second: zeros(g) }).collect(),
            step: 0,
            betas: config.betas,
            weight_decay: config.weight_decay,
        }
    }

    /// One step on all groups that have a gradient, each gradient multiplied by `scale` (clipping, accumulation).
    ///
    /// # Errors
    /// Another number of groups than at the start.
    pub fn update(&mut self, groups: &[(Part, &Group)], gradients: &Gradients, lr: f64, scale: f64) -> Result<()> {
        ensure!(
            groups.len() == self.moments.len(),
            "optimiser state for {} groups, found {}",
            self.moments.len(),
            groups.len()
        );
        self.step += 1;
        let power = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let step = AdamStep {
            lr: lr as f32,
            betas: self.betas.map(|b| b as f32),
            eps: EPS,
            weight_decay: self.weight_decay as f32,
            corrections: self.betas.map(|b| power(b) as f32),
            gradient_scale: scale as f32,
        };
        for (((_, group), gradient), moments) in groups.iter().zip(&gradients.0).zip(&mut self.moments) {
            if let Some(gradient) = gradient {
                let update = Update { step, parameters: group.parameters(), moments: Mutex::new(moments) };
                group.values().inplace_op2(gradient, &update)?;
            }
        }
        Ok(())
    }
}

struct Update<'a> {
    step: AdamStep,
    parameters: &'a [Parameter],
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, _: &Layout, g: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let (p, g) = (f32_mut(p)?, g.as_slice::<f32>()?);
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { first, second } = &mut **moments;
        for parameter in self.parameters {
            let at = parameter.range.clone();
            let step =
                AdamStep { weight_decay: if parameter.decay { self.step.weight_decay } else { 0.0 }, ..self.step };
            adamw(&mut p[at.clone()], &g[at.clone()], &mut first[at.clone()], &mut second[at], step);
        }
        Ok(())
    }
}

/// The values of an f32 tensor on the CPU, writable.
///
/// # Errors
/// Another dtype.
pub(crate) fn f32_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => candle_core::bail!("expected f32 values"),
    }
}
