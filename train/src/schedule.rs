//! What changes over a run: the learning rates and the key branch's momentum.

use std::f64::consts::PI;

use macrl_bundle::config::Config;

/// A run's length in steps, with the peak values of what changes over it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps of the whole run.
    pub total: u64,
    warmup: f64,
    lr: f64,
    muon_lr: f64,
    momentum: f64,
}

/// Learning rates of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate of AdamW.
    pub adamw: f64,
    /// Learning rate of Muon; not used where AdamW updates all parameters.
    pub muon: f64,
}

impl Schedule {
    /// The schedule of a run with `steps_per_epoch` optimiser steps an epoch.
    pub fn new(config: &Config, steps_per_epoch: u64) -> Self {
        Schedule {
            total: steps_per_epoch * config.train.epochs as u64,
            warmup: config.train.warmup_epochs * steps_per_epoch as f64,
            lr: config.train.absolute_lr(),
            muon_lr: config.train.muon_lr,
            momentum: config.contrast.momentum,
        }
    }

    /// AdamW's learning rate of a step (counted from 0): linear warm-up, then half a cosine down to 0.
    ///
    /// ```
    /// use macrl_bundle::Config;
    /// use macrl_train::schedule::Schedule;
    ///
    /// let mut config = Config::default();
    /// (config.train.epochs, config.train.warmup_epochs) = (10, 1.0);
    /// let schedule = Schedule::new(&config, 100);
    /// let peak = config.train.absolute_lr();
    /// assert_eq!(schedule.total, 1000);
    /// assert!((schedule.lr(49) - peak / 2.0).abs() < 1e-12);
    /// assert!(schedule.lr(999) < peak / 1000.0);
    /// ```
    pub fn lr(&self, step: u64) -> f64 {
        self.rates(step).adamw
    }

    /// Both learning rates of a step, along the same curve.
    pub fn rates(&self, step: u64) -> Rates {
        Rates { adamw: self.along(self.lr, step), muon: self.along(self.muon_lr, step) }
    }

    fn along(&self, peak: f64, step: u64) -> f64 {
        let at = step as f64 + 1.0;
        if at < self.warmup {
            return peak * at / self.warmup;
        }
        let rest = (self.total as f64 - self.warmup).max(1.0);
        peak * half_cosine((step as f64 - self.warmup).max(0.0) / rest)
    }

    /// Momentum of the key branch at a step: from its start value to 1 along half a cosine (as BYOL, arXiv 2006.07733).
    pub fn momentum(&self, step: u64) -> f64 {
        1.0 - (1.0 - self.momentum) * half_cosine(step as f64 / self.total.max(1) as f64)
    }
}

/// 1 at 0, 0 at 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_peak_and_end() {
        let mut config = Config::default();
        config.train.epochs = 10;
        config.train.warmup_epochs = 2.0;
        config.train.batch_size = 256;
        config.train.lr = 1.0;
        config.train.muon_lr = 0.02;
        config.contrast.momentum = 0.9;
        let schedule = Schedule::new(&config, 100);
        assert_eq!(schedule.lr(0), 1.0 / 200.0);
        assert_eq!(schedule.lr(199), 1.0);
        assert!((schedule.lr(600) - 0.5).abs() < 1e-9);
        assert!(schedule.lr(999) < 1e-5);
        assert_eq!(schedule.rates(199), Rates { adamw: 1.0, muon: 0.02 });
        assert!((schedule.rates(600).muon - 0.01).abs() < 1e-9);
        assert!((schedule.momentum(0) - 0.9).abs() < 1e-12);
        assert!((schedule.momentum(1000) - 1.0).abs() < 1e-12);
    }
}
