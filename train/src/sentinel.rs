//! Watches over training: checks steps, weights and features, and says when going on is pointless.
//!
//! It changes nothing and writes nothing: the training loop acts on the [`Verdict`].

use std::collections::BTreeSet;

use macrl_bundle::config::Config;

use crate::online::FeatureCheck;
use crate::step::contract::Finished;

/// Features with a smaller spread than this have collapsed (normalised features; 1 is isotropic).
pub const FEATURE_STD_FLOOR: f64 = 0.02;
/// Features with a smaller effective rank than this have collapsed.
pub const RANK_FLOOR: f64 = 1.5;
/// Collapse ends training when this many checks in a row find it.
const PATIENCE: usize = 3;
/// A parameter is dead when no gradient has reached it in this many steps in a row.
const DEAD_STEPS: usize = 20;
/// Waiting for data more than this share of the time, over [`STARVED_STEPS`], gives a warning.
const STARVED_SHARE: f64 = 0.5;
/// Number of steps over which the share of waiting is taken.
pub const STARVED_STEPS: usize = 50;
/// Names that a message lists at most.
const NAMED: usize = 3;

/// Result of a check.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing is wrong.
    Healthy,
    /// Training can go on; the text says what slows it down.
    Warning(String),
    /// The loss, the gradient or the weights (the word says which) are not finite.
    NotFinite(&'static str),
    /// Parameters have been without a gradient for too long.
    Unreached(String),
    /// The features have collapsed.
    Collapsed(String),
}

/// Checks a run, and keeps what the checks need from step to step.
#[derive(Debug)]
pub struct Sentinel {
    /// Whether views lose patches.  Where none does the mask token is never used, and rightly has no gradient.
    masked: bool,
    collapsed: usize,
    /// Parameters without a gradient in all of the last `dead_steps` steps.
    dead: BTreeSet<String>,
    dead_steps: usize,
    /// Share of the time spent waiting, for each step since the last check.
    waited: Vec<f64>,
    warned: bool,
}

impl Sentinel {
    /// For a run that starts or is resumed.
    pub fn new(config: &Config) -> Self {
        let all = config.encoder.patches();
        let views = [&config.views.strong, &config.views.weak];
        Sentinel {
            masked: views.iter().any(|view| config.encoder.kept(view.mask_ratio) < all),
            collapsed: 0,
            dead: BTreeSet::new(),
            dead_steps: 0,
            waited: Vec::new(),
            warned: false,
        }
    }

    /// Checks a step: that everything is finite, every parameter has a gradient, and batches arrive in time.
    pub fn check_step(&mut self, done: &Finished) -> Verdict {
        if let Some(text) = self.check_reached(&done.measured.unreached) {
            return Verdict::Unreached(text);
        }
        if !done.measured.is_finite() {
            return Verdict::NotFinite(if done.measured.loss.is_finite() { "gradient" } else { "loss" });
        }
        self.check_waiting(done.waiting).map_or(Verdict::Healthy, Verdict::Warning)
    }

    /// Checks the weights before a checkpoint is written: one that is not finite must not replace a good one.  `non_finite`: names
    /// of the parameters with such values.
    pub fn check_weights(&self, non_finite: &[String]) -> Verdict {
        if non_finite.is_empty() { Verdict::Healthy } else { Verdict::NotFinite("weights") }
    }

    /// Checks that every parameter has had a gradient lately.  `unreached`: names of those without one in this step.  The message
    /// names the parameters that have been without for too long.
    pub fn check_reached(&mut self, unreached: &[String]) -> Option<String> {
        let names = unreached.iter().filter(|name| self.masked || *name != "mask_token").cloned().collect();
        self.dead = match self.dead_steps {
            0 => names,
            _ => self.dead.intersection(&names).cloned().collect(),
        };
        self.dead_steps = if self.dead.is_empty() { 0 } else { self.dead_steps + 1 };
        if self.dead_steps < DEAD_STEPS {
            return None;
        }
        let named: Vec<&str> = self.dead.iter().take(NAMED).map(String::as_str).collect();
        let more = match self.dead.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "dead parameters: for {DEAD_STEPS} steps no gradient has reached {}{more}; no term of the loss depends on them: \
             try a views.strong.mask_ratio above 0, reconstruction.loss_on = \"all\", or contrast.weight = 0 where there \
             are no negatives",
            named.join(", ")
        ))
    }

    /// Checks an online evaluation: that features differ between images.
    pub fn check_features(&mut self, check: &FeatureCheck) -> Verdict {
        let flat = check.feature_std < FEATURE_STD_FLOOR;
        let narrow = check.rank < RANK_FLOOR;
        self.collapsed = if flat || narrow { self.collapsed + 1 } else { 0 };
        if self.collapsed < PATIENCE {
            return Verdict::Healthy;
        }
        let cause = match flat {
            true => format!("feature std {:.4} is below {FEATURE_STD_FLOOR}: all images look alike", check.feature_std),
            false => format!("effective rank {:.2} is below {RANK_FLOOR}: images differ along one line", check.rank),
        };
        Verdict::Collapsed(format!(
            "collapse: {cause}, and {PATIENCE} checks in a row say so; try contrast.key_branch = \"momentum\", a higher \
             reconstruction.weight or a lower train.lr"
        ))
    }

    /// A warning, once, when the data cannot keep up.  `share` of the step's time went into waiting.
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
