//! AdamW over flat parameter groups, with moments that a checkpoint can hold; where the configuration says so, [`Muon`]
//! updates the matrices of the transformer blocks instead.
//!
//! Weight decay applies to matrices only: biases, norms and tokens go without.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, InplaceOp2, Layout};
use macrl_bundle::config::{Optimizer, TrainConfig};
use macrl_nn::params::{Group, Parameter};

use crate::gradients::Gradients;
use crate::in_place::f32_mut;
use crate::muon::{Direction, Muon};
use crate::ops::update::{AdamStep, adamw};
use crate::part::Part;
use crate::schedule::Rates;

/// Added to the square root of the second moment, as in PyTorch.
pub(crate) const EPS: f32 = 1e-8;

/// First and second moments of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient; where Muon updates the parameter, Muon's momentum.
    pub first: Vec<f32>,
    /// Running mean of the squared gradient; 0 where Muon updates the parameter.
    pub second: Vec<f32>,
}

/// Optimiser state of all groups, in the order of [`crate::method::Method::trainable`].
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// The moments of each group.
    pub moments: Vec<Moments>,
    /// Number of updates done.
    pub step: u64,
    betas: [f64; 2],
    weight_decay: f64,
    muon: Option<Muon>,
}

impl AdamW {
    /// Starts with moments of 0.
    pub fn new(groups: &[(Part, &Group)], config: &TrainConfig) -> Self {
        let zeros = |group: &Group| vec![0f32; group.values().elem_count()];
        AdamW {
            moments: groups.iter().map(|(_, g)| Moments { first: zeros(g), second: zeros(g) }).collect(),
            step: 0,
            betas: config.betas,
            weight_decay: config.weight_decay,
            muon: (config.optimizer == Optimizer::Muon).then(|| Muon::new(config)),
        }
    }

    /// 1 - beta^t of both moments in step `t`, counted from 1.
    pub fn corrections(&self, t: u64) -> [f32; 2] {
        self.betas.map(|beta| (1.0 - beta.powf(t as f64)) as f32)
    }

    /// One step on all groups that have a gradient, each gradient multiplied by `scale` (clipping, accumulation).
    ///
    /// # Errors
    /// The number of groups differs from that at the start.
    pub fn update(&mut self, groups: &[(Part, &Group)], gradients: &Gradients, rates: Rates, scale: f64) -> Result<()> {
        let directions = Mutex::default();
        self.adamw(groups, gradients, &vec![rates.adamw; groups.len()], scale, &directions)?;
        match &self.muon {
            Some(muon) => {
                let directions = directions.into_inner().unwrap_or_else(PoisonError::into_inner);
                muon.finish(groups, directions, rates.muon)
            }
            None => Ok(()),
        }
    }

    /// One AdamW step on every parameter, with a learning rate for each group.  Fine-tuning has no Muon.
    ///
    /// # Errors
    /// The number of groups or of learning rates differs from that at the start.
    pub fn update_with(
        &mut self,
        groups: &[(Part, &Group)],
        gradients: &Gradients,
        rates: &[f64],
        scale: f64,
    ) -> Result<()> {
        ensure!(self.muon.is_none(), "Muon has one learning rate for all layers");
        self.adamw(groups, gradients, rates, scale, &Mutex::default())
    }

    /// AdamW's step.  For the parameters that Muon updates, it updates Muon's momenta and adds the directions to `directions`.
    fn adamw(
        &mut self,
        groups: &[(Part, &Group)],
        gradients: &Gradients,
        rates: &[f64],
        scale: f64,
        directions: &Mutex<Vec<Direction>>,
    ) -> Result<()> {
        let expected = self.moments.len();
        ensure!(
            (groups.len(), rates.len()) == (expected, expected),
            "optimiser state for {expected} groups, found {} and {} learning rates",
            groups.len(),
            rates.len()
        );
        self.step += 1;
        let step = AdamStep {
            lr: 0.0,
            betas: self.betas.map(|b| b as f32),
            eps: EPS,
            weight_decay: self.weight_decay as f32,
            corrections: self.corrections(self.step),
            gradient_scale: scale as f32,
        };
        let moments = rates.iter().zip(&mut self.moments).enumerate();
        for (((_, group), gradient), (index, (lr, moments))) in groups.iter().zip(&gradients.0).zip(moments) {
            if let Some(gradient) = gradient {
                let step = AdamStep { lr: *lr as f32, ..step };
                let muon = self.muon.as_ref().map(|muon| (muon, index, directions));
                let update = Update { step, parameters: group.parameters(), moments: Mutex::new(moments), muon };
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
    /// Muon, the group's index, and where its directions go.
    muon: Option<(&'a Muon, usize, &'a Mutex<Vec<Direction>>)>,
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
            if let Some((muon, group, directions)) = self.muon {
                let found = muon.directions(group, parameter, g, first, self.step.gradient_scale);
                if !found.is_empty() {
                    directions.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                    continue;
                }
            }
            let at = parameter.range.clone();
            let step =
                AdamStep { weight_decay: if parameter.decay { self.step.weight_decay } else { 0.0 }, ..self.step };
            adamw(&mut p[at.clone()], &g[at.clone()], &mut first[at.clone()], &mut second[at], step);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use macrl_bundle::config::Config;
    use macrl_nn::params::Layout;

    use super::*;

    /// ```python
    /// depth, decay = 2, 0.5                                    # BEiT's get_num_layer_for_vit and layer_scales
    /// scales = [decay ** (depth + 1 - i) for i in range(depth + 2)]
    /// for scale in scales:
    ///     w, b = torch.tensor([[0.5, -0.25], [1.0, 2.0]]), torch.tensor([0.1, -0.2])
    ///     o = torch.optim.AdamW([dict(params=[w], lr=0.1 * scale, weight_decay=0.3),
    ///                            dict(params=[b], lr=0.1 * scale, weight_decay=0.0)], betas=(0.9, 0.999))
    ///     for step in (1, 2):
    ///         w.grad, b.grad = step * torch.tensor([[0.3, -0.6], [0.01, 2.0]]), step * torch.tensor([-1.0, 0.5])
    ///         o.step()
    /// ```
    #[test]
    fn layer_wise_rates_are_pytorchs() {
        let expected: [[f32; 6]; 4] = [
            [0.4717391, -0.2236106, 0.9679961, 1.96051, 0.1245648, -0.2245648],
            [0.4435861, -0.197322, 0.9361143, 1.9211706, 0.1491296, -0.2491295],
            [0.3876034, -0.1450471, 0.872716, 1.8429409, 0.1982591, -0.2982591],
            [0.2769318, -0.0417068, 0.747382, 1.6882819, 0.2965182, -0.3965182],
        ];
        let tensor = |v: &[f32], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
        let start = [
            ("a.weight".to_string(), tensor(&[0.5, -0.25, 1.0, 2.0], &[2, 2])),
            ("a.bias".to_string(), tensor(&[0.1, -0.2], &[2])),
        ];
        let layout = || Layout::new("").with_linear("a", &[2, 2]);
        let group = || Group::load(&layout(), &start.clone().into(), "").unwrap().trainable().unwrap();
        let groups: Vec<Group> = (0..4).map(|_| group()).collect();
        let groups: Vec<(Part, &Group)> = groups.iter().map(|group| (Part::Encoder, group)).collect();
        let mut config = Config::default().train;
        (config.betas, config.weight_decay) = ([0.9, 0.999], 0.3);
        let mut optimizer = AdamW::new(&groups, &config);
        for step in [1.0, 2.0] {
            let gradient = tensor(&[0.3, -0.6, 0.01, 2.0, -1.0, 0.5].map(|v: f32| step * v), &[6]);
            let gradients = Gradients(vec![Some(gradient); 4]);
            optimizer.update_with(&groups, &gradients, &[0.0125, 0.025, 0.05, 0.1], 1.0).unwrap();
        }
        for ((_, group), expected) in groups.iter().zip(expected) {
            let found = group.values().to_vec1::<f32>().unwrap();
            let largest = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            // With single-precision betas 1 - 0.999 has a relative error of 5e-5, and a step half of that.
            assert!(largest < 5e-6, "{found:?} {expected:?}");
        }
        assert!(optimizer.update_with(&groups, &Gradients(vec![None; 4]), &[0.1], 1.0).is_err());
    }
}
