//! A step that was not finite, computed again: which loss, which parameters, which images.
//!
//! [`crate::failure`] has saved the state right before the step with the numbers of the batch's images; [`replay`] computes
//! losses and gradients from them once more.  Where the weights themselves are not finite any more, it trains again from the
//! last good checkpoint and finds the update that broke them.

use anyhow::{Context, Result, ensure};
use macrl_bundle::config::Config;
use macrl_nn::ops::graph::with_values;
use serde_json::Value;

use crate::batches::Batches;
use crate::data::Data;
use crate::gradients::Gradients;
use crate::part::Part;
use crate::run::Run;
use crate::schedule::Schedule;
use crate::state::State;
use crate::step::contract::Measured;
use crate::step::cpu::pretraining_step;
use crate::step::rule::compute;
use crate::views::Batch;

/// What a replay found.
#[derive(Debug, Default)]
pub struct Finding {
    /// Steps done before the one that was replayed.
    pub step: u64,
    /// Why the run was stopped.
    pub cause: String,
    /// Names of the parameters that were not finite before the step.
    pub weights: Vec<String>,
    /// The update after which they were not finite any more.
    pub broken_by: Option<Broken>,
    /// What was measured, by name; empty where the weights were not finite before.
    pub losses: Vec<(String, f64)>,
    /// Name of each parameter whose gradient is not finite, how many of its values are not, and how many it has.
    pub gradients: Vec<(String, usize, usize)>,
    /// The parameter with the largest finite gradient, and that value.  Squares of values above 1e19 overflow.
    pub largest: (String, f32),
    /// Images whose loss or gradient is not finite when they are alone in the batch: index, name, and `loss` or `gradient`.
    pub images: Vec<(u32, String, &'static str)>,
    /// Images in the batch.
    pub batch: usize,
}

/// The update after which weights were not finite any more.
#[derive(Debug)]
pub struct Broken {
    /// Number of steps done before this update.
    pub step: u64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Loss of its step, which was still finite.
    pub loss: f64,
    /// Norm of its gradient before clipping.
    pub norm: f64,
}

impl Finding {
    /// Whether the replayed step was not finite either.
    pub fn reproduced(&self) -> bool {
        !self.weights.is_empty()
            || !self.gradients.is_empty()
            || self.losses.iter().any(|(_, value)| !value.is_finite())
    }
}

/// The state that a replay starts from: that right before the recorded step, else the last good checkpoint, else the run's
/// initial state.
///
/// # Errors
/// There is no replay.json, or the state is damaged.
pub fn start(run: &Run) -> Result<(State, Config)> {
    read(run)?;
    match run.replay_state().exists() {
        true => State::load(&run.replay_state()),
        false => last_good(run),
    }
}

fn last_good(run: &Run) -> Result<(State, Config)> {
    if run.last().exists() {
        return State::load(&run.last());
    }
    let config = Config::load_resolved(&run.config())?;
    Ok((State::init(&config)?, config))
}

/// Computes the recorded step again, from the state that [`start`] gives.
///
/// # Errors
/// There is no replay.json, or the images have changed.
pub fn replay(run: &Run, data: &Data, mut state: State, config: &Config) -> Result<Finding> {
    let note = read(run)?;
    let batches = Batches::new(data.train.clone(), config)?;
    let cause = note["cause"].as_str().unwrap_or_default().to_string();
    forward(&mut state, config, &batches, note["step"].as_u64().unwrap_or_default())?;
    let mut finding = Finding { step: state.step, cause, weights: state.non_finite()?, ..Finding::default() };
    if !finding.weights.is_empty() {
        finding.broken_by = search(run, &batches, state.step)?;
        return Ok(finding);
    }
    let batch = batches.make(state.step)?;
    let noted: Vec<u64> = note["indices"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    ensure!(
        state.step != note["step"]
            || noted.is_empty()
            || noted.iter().copied().eq(batch.indices.iter().map(|i| u64::from(*i))),
        "{}: the batch of step {} holds other images now; have files gone?",
        run.replay().display(),
        state.step
    );
    examine(&state, config, &batch, &mut finding)?;
    let images = non_finite_images(&state, &batch)?;
    finding.images = images.into_iter().map(|(i, what)| (i, data.train.name(i as usize), what)).collect();
    Ok(finding)
}

/// Images whose loss or gradient is not finite when they are alone in the batch, and which of the two.
///
/// # Errors
/// A batch that does not fit.
pub fn non_finite_images(state: &State, batch: &Batch) -> Result<Vec<(u32, &'static str)>> {
    let mut found = Vec::new();
    for (image, index) in batch.clone().split(batch.indices.len()).iter().zip(&batch.indices) {
        let measured = compute(&state.method, std::slice::from_ref(image))?.measured;
        if !measured.loss.is_finite() {
            found.push((*index, "loss"));
        } else if !measured.norms.total.is_finite() {
            found.push((*index, "gradient"));
        }
    }
    Ok(found)
}

fn read(run: &Run) -> Result<Value> {
    let path = run.replay();
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("{}: nothing to replay, expected a run that a non-finite loss or gradient has stopped", path.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))
}

/// Notes the losses and gradients of the whole batch.
fn examine(state: &State, config: &Config, batch: &Batch, finding: &mut Finding) -> Result<()> {
    let computed = compute(&state.method, &batch.clone().split(config.train.accumulate))?;
    finding.batch = batch.indices.len();
    finding.losses = named(&computed.measured);
    let Gradients(gradients) = &computed.gradients;
    for ((_, group), gradient) in state.method.trainable().iter().zip(gradients) {
        let Some(gradient) = gradient else { continue };
        with_values(gradient, |values| {
            for parameter in group.parameters() {
                let values = &values[parameter.range.clone()];
                let broken = values.iter().filter(|v| !v.is_finite()).count();
                if broken > 0 {
                    finding.gradients.push((parameter.name.clone(), broken, values.len()));
                }
                let largest = values.iter().map(|v| v.abs()).filter(|v| v.is_finite()).fold(0.0, f32::max);
                if largest > finding.largest.1 {
                    finding.largest = (parameter.name.clone(), largest);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn named(measured: &Measured) -> Vec<(String, f64)> {
    let terms = measured.terms.iter().flat_map(|term| term.named());
    let terms = terms.map(|(number, value)| (number.description.to_string(), f64::from(value)));
    let norms = Part::ALL.map(|part| (format!("gradient norm of the {}", part.name()), measured.norms.of(part)));
    std::iter::once(("loss".to_string(), measured.loss)).chain(terms).chain(norms).collect()
}

/// Trains again from the last good checkpoint, up to the update after which the weights are not finite.
fn search(run: &Run, batches: &Batches, end: u64) -> Result<Option<Broken>> {
    let (mut state, config) = last_good(run)?;
    forward(&mut state, &config, batches, end)
}

/// Makes the steps before `end`.  Stops at a step that is not finite, or after an update that leaves weights that are not.
fn forward(state: &mut State, config: &Config, batches: &Batches, end: u64) -> Result<Option<Broken>> {
    let schedule = Schedule::new(config, batches.steps_per_epoch());
    while state.step < end {
        let (before, lr) = (state.step, schedule.lr(state.step));
        let measured = pretraining_step(state, batches.make(before)?, config, &schedule)?;
        if state.step == before {
            break;
        }
        if !state.non_finite()?.is_empty() {
            return Ok(Some(Broken { step: before, lr, loss: measured.loss, norm: measured.norms.total }));
        }
    }
    Ok(None)
}
