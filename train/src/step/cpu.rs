//! Steps on the CPU, one after the other.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use macrl_bundle::config::Config;
use macrl_nn::params::Group;

use super::contract::{Finished, Measured, Stepper};
use super::rule::{Computed, Learner, Model, take};
use crate::data::Dataset;
use crate::loader::Loader;
use crate::losses::Losses;
use crate::method::Method;
use crate::part::Part;
use crate::schedule::Schedule;
use crate::state::State;
use crate::views::Batch;

/// Makes the learner's next step with the loader's next batch.
///
/// # Errors
/// Unreadable data, or a batch that does not fit.
pub fn next<L: Learner>(loader: &mut Loader, learner: &mut L) -> Result<Finished> {
    let (start, waited) = (Instant::now(), loader.waited());
    let batch = loader.next()?;
    let (step, images) = (learner.steps(), batch.indices.clone());
    let measured = take(learner, batch)?;
    let seconds = start.elapsed().as_secs_f64();
    let waiting = (loader.waited() - waited).as_secs_f64() / seconds.max(1e-9);
    Ok(Finished { step, measured, images, seconds, waiting })
}

/// Pretraining on the CPU.
pub struct CpuStepper {
    loader: Loader,
    config: Config,
}

impl CpuStepper {
    /// Starts making batches at step `first`.
    ///
    /// # Errors
    /// Too few images for a batch.
    pub fn new(data: Arc<dyn Dataset>, config: &Config, first: u64) -> Result<Self> {
        Ok(CpuStepper { loader: Loader::new(data, config, first)?, config: config.clone() })
    }
}

impl Stepper for CpuStepper {
    fn steps_per_epoch(&self) -> u64 {
        self.loader.steps_per_epoch()
    }

    fn advance(&mut self, state: &mut State, schedule: &Schedule) -> Result<Vec<Finished>> {
        let mut learner = Pretraining { state, config: &self.config, schedule };
        Ok(vec![next(&mut self.loader, &mut learner)?])
    }

    fn settle(&mut self, _: &mut State) -> Result<Vec<Finished>> {
        Ok(Vec::new())
    }

    fn runs_ahead(&self) -> bool {
        false
    }

    fn is_captured(&self) -> bool {
        false
    }

    fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }
}

/// One step of pretraining on a given batch.
///
/// # Errors
/// A batch that does not fit.
pub fn pretraining_step(state: &mut State, batch: Batch, config: &Config, schedule: &Schedule) -> Result<Measured> {
    take(&mut Pretraining { state, config, schedule }, batch)
}

impl Model for Method {
    type Batch = Batch;

    fn trainable(&self) -> Vec<(Part, &Group)> {
        Method::trainable(self)
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        Method::losses(self, &self.inputs(batch)?)
    }
}

/// A pretraining run's state, with the configuration and the schedule of its steps.
struct Pretraining<'a> {
    state: &'a mut State,
    config: &'a Config,
    schedule: &'a Schedule,
}

impl Learner for Pretraining<'_> {
    type Model = Method;

    fn model(&self) -> &Method {
        &self.state.method
    }

    fn steps(&self) -> u64 {
        self.state.step
    }

    fn parts(&self, batch: Batch) -> Result<Vec<Batch>> {
        Ok(batch.split(self.config.train.accumulate))
    }

    fn clip_norm(&self) -> f64 {
        self.config.train.clip_norm
    }

    fn update(&mut self, images: &[u32], computed: &Computed, scale: f64) -> Result<()> {
        let State { method, optimizer, step, .. } = &mut *self.state;
        optimizer.update(&method.trainable(), &computed.gradients, self.schedule.rates(*step), scale)?;
        method.follow(self.schedule.momentum(*step) as f32)?;
        method.bank.push(&computed.keys, images);
        *step += 1;
        Ok(())
    }
}
