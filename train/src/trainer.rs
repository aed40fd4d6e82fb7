//! The pretraining loop: batches -> losses -> gradients -> update -> bank, with logs and checkpoints.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use candle_core::Device;
use macrl_models::atomic;
use macrl_models::config::Config;
use macrl_models::ops::graph::with_values;
use macrl_models::ops::info_nce::Contrast;
use macrl_models::say;
use serde_json::json;

use crate::data::Data;
use crate::inputs::Inputs;
use crate::method::Losses;
use crate::metrics::Metrics;
use crate::online::Online;
use crate::optimizer::{Gradients, Norms};
use crate::progress::Progress;
use crate::run::Run;
use crate::samples;
use crate::saving::Saving;
use crate::schedule::Schedule;
use crate::sentinel::Sentinel;
use crate::state::State;
use crate::stepper::{Done, Stepper};
use crate::views::{Batch, View};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs are done.
    Finished,
    /// Stopped on request after this step; a checkpoint is written.
    Interrupted(u64),
}

/// What one optimiser step measured.
///
/// With `train.accumulate` above 1 every loss is the mean over the batch's parts.
pub struct Measured {
    /// w_c L_contrast + w_r L_rec.
    pub loss: f64,
    /// Of the contrastive part, where there is one.
    pub contrast: Option<Contrast>,
    /// L1 of the strong and of the weak branch, where decoders run.
    pub reconstruction: Option<[f32; 2]>,
    /// Gradient norms before clipping.
    pub norms: Norms,
    /// Parameters that no gradient reached.
    pub dead: Vec<String>,
}

/// A batch's gradients, not applied yet, and what was measured on the way.
pub struct Computed {
    /// Losses and norms.
    pub measured: Measured,
    /// Summed over the batch's parts: the mean is a share of `1 / parts` of it.
    pub gradients: Gradients,
    /// (B, C) keys that enter the bank after the optimiser's step.
    pub keys: Vec<f32>,
}

/// Losses and gradients of a batch; nothing is changed.
///
/// # Errors
/// A batch that does not fit.
pub fn compute(state: &State, batch: &Batch, config: &Config) -> Result<Computed> {
    let parts = split(batch, config.train.accumulate);
    let share = 1.0 / parts.len() as f64;
    let groups = state.method.trainable();
    let mut gradients: Option<Gradients> = None;
    let mut keys = Vec::new();
    let mut measured =
        Measured { loss: 0.0, contrast: None, reconstruction: None, norms: Norms::default(), dead: Vec::new() };
    for part in &parts {
        let losses = state.method.losses(&Inputs::new(part, config)?)?;
        measured.loss += share * f64::from(losses.total.to_scalar::<f32>()?);
        let (contrast, reconstruction) = numbers(&losses)?;
        measured.contrast = contrast.map(|c| mean_contrast(measured.contrast, c, share as f32));
        let l1 = |r: [f32; 2]| {
            let before = measured.reconstruction.unwrap_or_default();
            [0, 1].map(|branch| before[branch] + share as f32 * r[branch])
        };
        measured.reconstruction = reconstruction.map(l1);
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
    let Some(gradients) = gradients else { anyhow::bail!("an empty batch") };
    measured.norms = gradients.norms(&groups)?.times(share);
    measured.dead = gradients.dead(&groups)?;
    Ok(Computed { measured, gradients, keys })
}

/// Adds a part's share to the mean.
fn mean_contrast(sum: Option<Contrast>, part: Contrast, share: f32) -> Contrast {
    let sum = sum.unwrap_or(Contrast { loss: 0.0, positive: 0.0, negative: 0.0 });
    Contrast {
        loss: sum.loss + share * part.loss,
        positive: sum.positive + share * part.positive,
        negative: sum.negative + share * part.negative,
    }
}

/// One optimiser step; the state is the next step's afterwards.  Where the loss or the gradient is not finite nothing is
/// changed: the sentinel speaks.
///
/// # Errors
/// A batch that does not fit.
pub fn step(state: &mut State, batch: &Batch, config: &Config, schedule: &Schedule) -> Result<Measured> {
    let Computed { measured, gradients, keys } = compute(state, batch, config)?;
    let norm = measured.norms.total;
    if !(measured.loss.is_finite() && norm.is_finite()) {
        return Ok(measured);
    }
    let clip = config.train.clip_norm;
    let scale = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
    let share = 1.0 / config.train.accumulate as f64;
    state.optimizer.update(&state.method.trainable(), &gradients, schedule.rates(state.step), scale * share)?;
    state.method.follow(schedule.momentum(state.step) as f32)?;
    state.method.bank.push(&keys, &batch.indices);
    state.step += 1;
    Ok(measured)
}

/// The losses' companions as numbers.
fn numbers(losses: &Losses) -> Result<(Option<Contrast>, Option<[f32; 2]>)> {
    let contrast = match &losses.contrast {
        Some(parts) => {
            let [loss, positive, negative] = parts.to_vec1::<f32>()?[..] else { anyhow::bail!("three numbers") };
            Some(Contrast { loss, positive, negative })
        }
        None => None,
    };
    let reconstruction = match &losses.reconstruction {
        Some(parts) => parts.to_vec1::<f32>()?.try_into().ok(),
        None => None,
    };
    Ok((contrast, reconstruction))
}

/// A batch in equal parts.
pub(crate) fn split(batch: &Batch, parts: usize) -> Vec<Batch> {
    if parts <= 1 {
        return vec![batch.clone()];
    }
    let cut = |view: &View, i: usize| View {
        kept: part_of(&view.kept, i, parts),
        patches: part_of(&view.patches, i, parts),
        whole: part_of(&view.whole, i, parts),
        target: part_of(&view.target, i, parts),
    };
    let size = batch.indices.len() / parts;
    let part = |i: usize| Batch {
        indices: batch.indices[i * size..(i + 1) * size].to_vec(),
        strong: cut(&batch.strong, i),
        weak: cut(&batch.weak, i),
    };
    (0..parts).map(part).collect()
}

fn part_of<T: Clone>(values: &[T], i: usize, parts: usize) -> Vec<T> {
    let size = values.len() / parts;
    values[i * size..(i + 1) * size].to_vec()
}

/// Trains until the last epoch or until `stop` is set.
///
/// # Errors
/// Unreadable data, a full disk, or a sentinel's finding.
pub fn pretrain(
    run: &Run,
    config: &Config,
    data: &Data,
    mut state: State,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Ending> {
    let mut stepper = Stepper::new(device, data.train.clone(), config, &mut state)?;
    let per_epoch = stepper.steps_per_epoch();
    let schedule = Schedule::new(config, per_epoch);
    let metrics = Metrics::open(&run.metrics(), state.step)?;
    let mut log = Log {
        run,
        config,
        schedule,
        per_epoch,
        metrics: metrics.with_tensorboard(config.train.tensorboard, &run.metrics(), state.step)?,
        progress: Progress::start(config, per_epoch, state.step),
        sentinel: Sentinel::default(),
        saving: Saving::new(&config.train),
    };
    let online = Online::prepare(config, data);
    samples::write(run, config, data)?;

    while state.step < schedule.total {
        if stop.load(Ordering::SeqCst) {
            log.settle(&mut stepper, &mut state)?;
            log.save(&state)?;
            log.progress.finish();
            return Ok(Ending::Interrupted(state.step));
        }
        let done = stepper.advance(&mut state, config, &schedule)?;
        log.note(&done, &state)?;
        if state.step.is_multiple_of(per_epoch) && log.stops_after_epoch(&stepper, &state) {
            log.settle(&mut stepper, &mut state)?;
            log.at_epoch_end(&mut state, online.as_ref())?;
        } else if log.saving.due(state.step) {
            log.settle(&mut stepper, &mut state)?;
            log.save(&state)?;
        }
    }
    log.progress.finish();
    for (file, why) in stepper.skipped() {
        say!("left out {file}: {why}");
    }
    Ok(Ending::Finished)
}

/// Where a run's numbers go.
struct Log<'a> {
    run: &'a Run,
    config: &'a Config,
    schedule: Schedule,
    per_epoch: u64,
    metrics: Metrics,
    progress: Progress,
    sentinel: Sentinel,
    saving: Saving,
}

impl Log<'_> {
    /// Brings the state up to date, and checks and writes down what was still due.
    fn settle(&mut self, stepper: &mut Stepper, state: &mut State) -> Result<()> {
        let done = stepper.settle(state)?;
        self.note(&done, state)
    }

    /// Checks and writes down what steps measured.
    fn note(&mut self, steps: &[Done], state: &State) -> Result<()> {
        for done in steps {
            self.sentinel.check_step(self.run, self.config, done, state)?;
            if let Some(said) = self.sentinel.check_waiting(done.waiting) {
                self.progress.message(&said);
            }
            self.progress.step(&in_words(&done.measured), done.seconds);
            self.metrics.write(&self.line(done, state))?;
        }
        Ok(())
    }

    /// Writes `last`, where the weights are worth it.
    fn save(&mut self, state: &State) -> Result<()> {
        let weights = state.weights()?;
        self.sentinel.check_weights(self.run, self.config, state, &weights)?;
        state.save_with(&weights, &self.run.last(), self.config)?;
        self.saving.saved();
        Ok(())
    }

    fn line(&self, done: &Done, state: &State) -> serde_json::Value {
        let Measured { contrast, reconstruction, loss, norms, .. } = &done.measured;
        let (step, batch) = (done.at + 1, done.indices.len());
        let mut line = json!({
            "kind": "step", "step": step, "epoch": step as f64 / self.per_epoch as f64, "loss": loss,
            "lr": self.schedule.lr(done.at), "grad_norm": norms.total, "grad_norm_encoder": norms.encoder,
            "images_per_second": batch as f64 / done.seconds, "waiting": done.waiting,
        });
        if let Some(contrast) = contrast {
            line["contrast"] = contrast.loss.into();
            line["positive_similarity"] = contrast.positive.into();
            line["negative_similarity"] = contrast.negative.into();
            line["grad_norm_projector"] = norms.projector.into();
            line["bank_keys"] = self.config.bank_keys(step).into();
            let bank = &state.method.bank;
            // On a GPU the state here lags behind, and the keys with it.
            if let (true, Some(norm), Some((mean, oldest))) = (state.step == step, bank.norm(), bank.age(batch)) {
                line["bank_norm"] = norm.into();
                line["bank_age"] = mean.into();
                line["bank_age_oldest"] = oldest.into();
            }
        }
        if let Some([strong, weak]) = reconstruction {
            line["reconstruction_strong"] = (*strong).into();
            line["reconstruction_weak"] = (*weak).into();
            line["grad_norm_decoder"] = norms.decoder.into();
        }
        line
    }

    /// Whether this epoch's end is evaluated.
    fn evaluates(&self, epoch: u64) -> bool {
        let every = self.config.evaluate.every_epochs as u64;
        every > 0 && (epoch.is_multiple_of(every) || epoch == self.config.train.epochs as u64)
    }

    /// Whether the end of an epoch is evaluated or saved.  Always on the CPU; on a GPU, which has to stop for it, not
    /// where the last time was a moment ago.
    fn stops_after_epoch(&self, stepper: &Stepper, state: &State) -> bool {
        let (step, end) = (state.step, state.step >= self.schedule.total);
        !stepper.runs_ahead() || end || self.evaluates(step / self.per_epoch) || self.saving.due_after_epoch(step)
    }

    fn at_epoch_end(&mut self, state: &mut State, online: Option<&Online>) -> Result<()> {
        let (run, config) = (self.run, self.config);
        let epoch = state.step / self.per_epoch;
        let mut best = false;
        if let (true, Some(online)) = (self.evaluates(epoch), online) {
            let seen = online.check(&state.method.encoder)?;
            let knn = seen.knn.map_or_else(String::new, |knn| format!("kNN {:.1} %, ", 100.0 * knn));
            let features = format!("feature std {:.3}, effective rank {:.1}", seen.feature_std, seen.rank);
            self.progress.message(&format!("epoch {epoch}: {knn}{features}"));
            let mut line = json!({"kind": "eval", "step": state.step, "epoch": epoch, "feature_std": seen.feature_std,
                "rank": seen.rank});
            if let Some(knn) = seen.knn {
                line["knn"] = knn.into();
                best = state.best_knn.is_none_or(|b| knn > b);
            }
            self.metrics.write(&line)?;
            if best {
                state.best_knn = seen.knn;
            }
            self.sentinel.check_features(&seen)?;
        }
        let weights = state.weights()?;
        self.sentinel.check_weights(run, config, state, &weights)?;
        if best {
            // Before `last`, which remembers how good the best one is: a kill in between repeats the epoch's end.
            state.save_with(&weights, &run.best(), config)?;
        }
        state.save_with(&weights, &run.last(), config)?;
        self.saving.saved();
        if config.train.keep_checkpoints > 0 {
            let numbered = run.numbered(state.step);
            atomic::link_file(&run.last(), &numbered)
                .with_context(|| format!("cannot write {}", numbered.display()))?;
            let all = run.all_numbered();
            for old in &all[..all.len().saturating_sub(config.train.keep_checkpoints)] {
                std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        Ok(())
    }
}

/// The losses for the progress bar.
fn in_words(measured: &Measured) -> String {
    let mut text = format!("loss {:.4}", measured.loss);
    if let Some(contrast) = &measured.contrast {
        text += &format!(", contrast {:.3}", contrast.loss);
    }
    if let Some([strong, weak]) = measured.reconstruction {
        text += &format!(", reconstruction {strong:.3}/{weak:.3}");
    }
    text
}
