//! The loop's view of a step, wherever it is computed: batches in, numbers out, possibly some steps later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use macrl_models::config::Config;

use crate::data::Dataset;
use crate::loader::Loader;
use crate::schedule::Schedule;
use crate::state::State;
use crate::trainer::{Measured, step};

/// One step's numbers.
pub struct Done {
    /// Which step, counted from 0.
    pub at: u64,
    /// What it measured.
    pub measured: Measured,
    /// The images of its batch.
    pub indices: Vec<u32>,
    /// How long it took.
    pub seconds: f64,
    /// Share of that spent waiting for the batch.
    pub waiting: f64,
}

/// Makes steps.
pub enum Stepper {
    /// On the CPU, one after the other.
    Cpu(Loader),
    /// On a GPU, several queued at a time.
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::Trainer>),
}

impl Stepper {
    /// Starts at the state's step; on a GPU the state's networks move there.
    ///
    /// # Errors
    /// Too few images for a batch, or what the device says.
    pub fn new(device: &Device, data: Arc<dyn Dataset>, config: &Config, state: &mut State) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Stepper::Cpu(Loader::new(data, config, state.step)?)),
            #[cfg(feature = "cuda")]
            device => Ok(Stepper::Cuda(Box::new(crate::cuda::Trainer::new(device, data, config, state)?))),
            #[cfg(not(feature = "cuda"))]
            other => anyhow::bail!("this build does not train on {other:?}"),
        }
    }

    /// Whole batches in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        match self {
            Stepper::Cpu(loader) => loader.steps_per_epoch(),
            #[cfg(feature = "cuda")]
            Stepper::Cuda(trainer) => trainer.steps_per_epoch(),
        }
    }

    /// Makes (or queues) the next step, and gives the numbers that are there by now.
    ///
    /// # Errors
    /// Unreadable data, or what the device says.
    pub fn advance(&mut self, state: &mut State, config: &Config, schedule: &Schedule) -> Result<Vec<Done>> {
        match self {
            Stepper::Cpu(loader) => {
                let (start, waited) = (Instant::now(), loader.waited());
                let batch = loader.next()?;
                let at = state.step;
                let measured = step(state, &batch, config, schedule)?;
                let (seconds, waiting) = shares(start.elapsed(), loader.waited() - waited);
                Ok(vec![Done { at, measured, indices: batch.indices, seconds, waiting }])
            }
            #[cfg(feature = "cuda")]
            Stepper::Cuda(trainer) => trainer.advance(state, schedule),
        }
    }

    /// Waits for all steps, brings the state up to date for whoever saves it, and gives the numbers still due.
    ///
    /// # Errors
    /// What the device says.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the CPU's state is always up to date"))]
    pub fn settle(&mut self, state: &mut State) -> Result<Vec<Done>> {
        match self {
            Stepper::Cpu(_) => Ok(Vec::new()),
            #[cfg(feature = "cuda")]
            Stepper::Cuda(trainer) => trainer.settle(state),
        }
    }

    /// Whether steps are queued ahead of the host, which a look at the state has to wait for.
    pub fn runs_ahead(&self) -> bool {
        !matches!(self, Stepper::Cpu(_))
    }

    /// Images that turned out to be unreadable while training, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        match self {
            Stepper::Cpu(loader) => loader.skipped(),
            #[cfg(feature = "cuda")]
            Stepper::Cuda(trainer) => trainer.skipped(),
        }
    }
}

/// (seconds, share of them spent waiting).
pub(crate) fn shares(whole: Duration, waited: Duration) -> (f64, f64) {
    let seconds = whole.as_secs_f64();
    (seconds, waited.as_secs_f64() / seconds.max(1e-9))
}
