//! The pretraining loop: makes steps, does what the sentinel says, and stops for logs, evaluations and checkpoints.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use candle_core::Device;
use macrl_bundle::config::Config;
use macrl_bundle::say;

use crate::checkpoints::Checkpoints;
use crate::data::Data;
use crate::ending::Ending;
use crate::failure::{self, Failure};
use crate::log::{Log, pretraining_numbers};
use crate::online::Online;
use crate::run::Run;
use crate::samples;
use crate::schedule::Schedule;
use crate::sentinel::{Sentinel, Verdict};
use crate::state::{State, Weights};
use crate::step;
use crate::step::contract::{Finished, Stepper};

/// Trains until the last epoch or until `stop` is set.
///
/// # Errors
/// Unreadable data, a full disk, or a verdict of the sentinel that ends the run.
pub fn pretrain(
    run: &Run,
    config: &Config,
    data: &Data,
    mut state: State,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Ending> {
    let mut stepper = step::open(device, data.train.clone(), config, &mut state)?;
    let mut training = Loop::begin(run, config, data, stepper.steps_per_epoch(), &state)?;
    samples::write(run, config, data)?;
    while state.step < training.schedule.total {
        if stop.load(Ordering::SeqCst) {
            training.save(&mut *stepper, &mut state)?;
            training.log.finish();
            return Ok(Ending::Interrupted(state.step));
        }
        let done = stepper.advance(&mut state, &training.schedule)?;
        training.note(&done, &state)?;
        if training.stops_after_epoch(&*stepper, &state) {
            training.at_epoch_end(&mut *stepper, &mut state)?;
        } else if training.checkpoints.saving().due(state.step) {
            training.save(&mut *stepper, &mut state)?;
        }
    }
    training.log.finish();
    for (file, why) in stepper.skipped() {
        say!("left out {file}: {why}");
    }
    Ok(Ending::Finished)
}

/// What the loop uses besides the state and the stepper.
struct Loop<'a> {
    run: &'a Run,
    config: &'a Config,
    schedule: Schedule,
    per_epoch: u64,
    log: Log,
    sentinel: Sentinel,
    checkpoints: Checkpoints<'a>,
    online: Option<Online>,
}

impl<'a> Loop<'a> {
    fn begin(run: &'a Run, config: &'a Config, data: &Data, per_epoch: u64, state: &State) -> Result<Self> {
        let schedule = Schedule::new(config, per_epoch);
        Ok(Loop {
            run,
            config,
            schedule,
            per_epoch,
            log: Log::open(&run.metrics(), config, schedule, per_epoch, state.step)?,
            sentinel: Sentinel::new(config),
            checkpoints: Checkpoints::new(run, config),
            online: Online::prepare(config, data),
        })
    }

    /// Checks and writes down what steps measured.
    fn note(&mut self, steps: &[Finished], state: &State) -> Result<()> {
        for done in steps {
            let verdict = self.sentinel.check_step(done);
            let before = (state.step == done.step).then_some(state);
            self.obey(verdict, |what| Failure { step: done.step, what, images: &done.images, before })?;
            self.log.step(done, pretraining_numbers(done, state, self.config))?;
        }
        Ok(())
    }

    /// Does what the sentinel says; `failure` says where numbers were found that are not finite.
    fn obey<'f>(&self, verdict: Verdict, failure: impl FnOnce(&'static str) -> Failure<'f>) -> Result<()> {
        match verdict {
            Verdict::Healthy => Ok(()),
            Verdict::Warning(text) => {
                self.log.message(&text);
                Ok(())
            }
            Verdict::NotFinite(what) => Err(failure::record(self.run, self.config, &failure(what))?),
            Verdict::Unreached(text) | Verdict::Collapsed(text) => bail!(text),
        }
    }

    /// Brings the state up to date, and checks and writes down the steps that were still due.
    fn settle(&mut self, stepper: &mut dyn Stepper, state: &mut State) -> Result<()> {
        let done = stepper.settle(state)?;
        self.note(&done, state)
    }

    /// The state's weights, after a check.
    fn weights(&self, state: &State) -> Result<Weights> {
        let weights = state.weights()?;
        let verdict = self.sentinel.check_weights(&weights.non_finite()?);
        self.obey(verdict, |what| Failure { step: state.step, what, images: &[], before: Some(state) })?;
        Ok(weights)
    }

    /// Writes `last`.
    fn save(&mut self, stepper: &mut dyn Stepper, state: &mut State) -> Result<()> {
        self.settle(stepper, state)?;
        let weights = self.weights(state)?;
        self.checkpoints.save(state, &weights)
    }

    /// Whether the encoder is evaluated at the end of this epoch.
    fn evaluates(&self, epoch: u64) -> bool {
        let every = self.config.evaluate.every_epochs as u64;
        every > 0 && (epoch.is_multiple_of(every) || epoch == self.config.train.epochs as u64)
    }

    /// Whether an epoch ends here and is evaluated or saved.  On the CPU every epoch is; on a GPU, which has to wait for all
    /// queued steps, an epoch is left out where nothing is evaluated and the last checkpoint is recent.
    fn stops_after_epoch(&self, stepper: &dyn Stepper, state: &State) -> bool {
        let (step, end) = (state.step, state.step >= self.schedule.total);
        step.is_multiple_of(self.per_epoch)
            && (!stepper.runs_ahead()
                || end
                || self.evaluates(step / self.per_epoch)
                || self.checkpoints.saving().due_after_epoch(step))
    }

    fn at_epoch_end(&mut self, stepper: &mut dyn Stepper, state: &mut State) -> Result<()> {
        self.settle(stepper, state)?;
        let best = match self.evaluates(state.step / self.per_epoch) {
            true => self.evaluate(state)?,
            false => false,
        };
        let weights = self.weights(state)?;
        self.checkpoints.save_epoch(state, &weights, best)
    }

    /// Evaluates the encoder online; gives whether it is the best so far.
    fn evaluate(&mut self, state: &mut State) -> Result<bool> {
        let Some(online) = &self.online else { return Ok(false) };
        let check = online.check(&state.method.encoder)?;
        self.log.evaluation(&check, state.step, state.step / self.per_epoch)?;
        let best = check.knn.is_some_and(|knn| state.best_knn.is_none_or(|best| knn > best));
        if best {
            state.best_knn = check.knn;
        }
        let verdict = self.sentinel.check_features(&check);
        self.obey(verdict, |what| Failure { step: state.step, what, images: &[], before: Some(state) })?;
        Ok(best)
    }
}
