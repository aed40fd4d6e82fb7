//! Watches over a run and stops it, with the cause and what to try, when going on is pointless.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use macrl_models::config::{Config, Optimizer};

use crate::online::Seen;
use crate::replay;
use crate::run::Run;
use crate::state::{State, Weights};
use crate::stepper::Done;

/// Below this spread of the normalised features (1 is isotropic), or this effective rank, features have collapsed.
const FEATURE_STD_FLOOR: f64 = 0.02;
const RANK_FLOOR: f64 = 1.5;
/// So many checks in a row have to say so.
const PATIENCE: usize = 3;
/// A parameter is dead when no gradient has reached it in so many steps in a row.
const DEAD_STEPS: usize = 20;
/// More than this share of the time waiting for data, over so many steps, is worth a word.
const STARVED_SHARE: f64 = 0.5;
const STARVED_STEPS: usize = 50;
/// Names that a message lists.
const NAMED: usize = 3;

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Sentinel {
    collapsed: usize,
    /// Parameters without a gradient in all of the last steps, and how many steps.
    dead: BTreeSet<String>,
    dead_steps: usize,
    waited: Vec<f64>,
    warned: bool,
}

impl Sentinel {
    /// After a step: everything finite, every parameter with a gradient.
    ///
    /// # Errors
    /// A non-finite loss or gradient (what `macrl-train replay` needs is saved first), or parameters that have been
    /// without a gradient for too long.
    pub fn check_step(&mut self, run: &Run, config: &Config, done: &Done, state: &State) -> Result<()> {
        let measured = &done.measured;
        self.check_dead(config, &measured.dead)?;
        if measured.loss.is_finite() && measured.norms.total.is_finite() {
            return Ok(());
        }
        let what = if measured.loss.is_finite() { "gradient" } else { "loss" };
        let before = (state.step == done.at).then_some(state);
        stop(run, config, done.at, before, &format!("non-finite {what}"), &done.indices)
    }

    /// Before a checkpoint is written: one with non-finite weights must not take a good one's place.
    ///
    /// # Errors
    /// Non-finite weights.
    pub fn check_weights(&self, run: &Run, config: &Config, state: &State, weights: &Weights) -> Result<()> {
        match weights.non_finite()?.is_empty() {
            true => Ok(()),
            false => stop(run, config, state.step, Some(state), "non-finite weights", &[]),
        }
    }

    fn check_dead(&mut self, config: &Config, names: &[String]) -> Result<()> {
        let views = &config.views;
        let all = config.encoder.patches();
        // Where no view loses a patch the mask token is never used, and that is as it should be.
        let masked = [&views.strong, &views.weak].iter().any(|view| config.encoder.kept(view.mask_ratio) < all);
        let names: BTreeSet<String> = names.iter().filter(|name| masked || *name != "mask_token").cloned().collect();
        self.dead = match self.dead_steps {
            0 => names,
            _ => self.dead.intersection(&names).cloned().collect(),
        };
        self.dead_steps = if self.dead.is_empty() { 0 } else { self.dead_steps + 1 };
        if self.dead_steps >= DEAD_STEPS {
            let named: Vec<&str> = self.dead.iter().take(NAMED).map(String::as_str).collect();
            let more = match self.dead.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            bail!(
                "dead parameters: for {DEAD_STEPS} steps no gradient has reached {}{more}; a loss that asks nothing of \
                 them: try a views.strong.mask_ratio above 0, reconstruction.loss_on = \"all\", or contrast.weight = 0 \
                 where there are no negatives",
                named.join(", ")
            );
        }
        Ok(())
    }

    /// After an online check: features still differ between images.
    ///
    /// # Errors
    /// Collapsed features, several checks in a row.
    pub fn check_features(&mut self, seen: &Seen) -> Result<()> {
        let flat = seen.feature_std < FEATURE_STD_FLOOR;
        let narrow = seen.rank < RANK_FLOOR;
        self.collapsed = if flat || narrow { self.collapsed + 1 } else { 0 };
        if self.collapsed < PATIENCE {
            return Ok(());
        }
        let cause = match flat {
            true => format!("feature std {:.4} is below {FEATURE_STD_FLOOR}: all images look alike", seen.feature_std),
            false => format!("effective rank {:.2} is below {RANK_FLOOR}: images differ along one line", seen.rank),
        };
        bail!(
            "collapse: {cause}, and {PATIENCE} checks in a row say so; try contrast.key_branch = \"momentum\", a higher \
             reconstruction.weight or a lower train.lr"
        )
    }

    /// After a step: what to say, once, when the data cannot keep up.  `share` of the step's time went into waiting.
    pub fn check_waiting(&mut self, share: f64) -> Option<String> {
        if self.warned {
            return None;
        }
        self.waited.push(share);
        if self.waited.len() < STARVED_STEPS {
            return None;
        }
        let mean = self.waited.iter().sum::<f64>() / self.waited.len() as f64;
        self.waited.clear();
        self.warned = mean > STARVED_SHARE;
        self.warned.then(|| {
            format!(
                "loader starvation: {:.0} % of the time goes into waiting for images; try smaller source images, a faster \
                 disk, or more cores",
                100.0 * mean
            )
        })
    }
}

/// Saves what a replay needs, and ends the run with the cause, where everything is, and what to try.
fn stop(run: &Run, config: &Config, step: u64, before: Option<&State>, cause: &str, indices: &[u32]) -> Result<()> {
    let last = replay::save(run, config, step, before, cause, indices)?;
    let last = match last {
        Some(step) => format!("the last good checkpoint is {} (step {step})", run.last().display()),
        None => "there is no checkpoint from before".to_string(),
    };
    let rates = match config.train.optimizer {
        Optimizer::Muon => "train.lr or train.muon_lr",
        Optimizer::Adamw => "train.lr",
    };
    bail!(
        "{cause} at step {}: {last}; `macrl-train replay --run {}` says where it comes from; try a lower {rates}, a longer \
         train.warmup_epochs or train.clip_norm = 1",
        step,
        run.dir().display()
    )
}

#[cfg(test)]
mod tests;
