//! The pretraining loop: batches -> losses -> gradients -> update -> bank, with logs and checkpoints.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use macrl_models::atomic;
use macrl_models::config::Config;
use macrl_models::ops::info_nce::Contrast;
use macrl_models::preprocess::Preprocess;
use serde_json::json;

use crate::data::Data;
use crate::loader::Loader;
use crate::metrics::Metrics;
use crate::online::Online;
use crate::optimizer::{Gradients, Norms};
use crate::progress::Progress;
use crate::run::Run;
use crate::schedule::Schedule;
use crate::sentinel::Sentinel;
use crate::state::State;
use crate::views::{Batch, View};

/// Held-out images kept in the run's folder.
const SAMPLES: usize = 64;

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
        let losses = state.method.losses(part)?;
        measured.loss += share * f64::from(losses.total.to_scalar::<f32>()?);
        measured.contrast = losses.contrast.map(|c| mean_contrast(measured.contrast, c, share as f32));
        let l1 = |r: [f32; 2]| {
            let before = measured.reconstruction.unwrap_or_default();
            [0, 1].map(|branch| before[branch] + share as f32 * r[branch])
        };
        measured.reconstruction = losses.reconstruction.map(l1);
        let taken = Gradients::take(losses.total.backward()?, &groups);
        match &mut gradients {
            Some(sum) => sum.add(taken)?,
            None => gradients = Some(taken),
        }
        keys.extend_from_slice(&losses.keys);
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
    state.optimizer.update(&state.method.trainable(), &gradients, schedule.lr(state.step), scale * share)?;
    state.method.follow(schedule.momentum(state.step) as f32)?;
    state.method.bank.push(&keys, &batch.indices);
    state.step += 1;
    Ok(measured)
}

/// A batch in equal parts.
pub(crate) fn split(batch: &Batch, parts: usize) -> Vec<Batch> {
    if parts <= 1 {
        return vec![batch.clone()];
    }
    let cut = |view: &View, i: usize| {
        let (kept, patches, target) = (view.kept.len() / parts, view.patches.len() / parts, view.target.len() / parts);
        View {
            kept: view.kept[i * kept..(i + 1) * kept].to_vec(),
            patches: view.patches[i * patches..(i + 1) * patches].to_vec(),
            target: view.target[i * target..(i + 1) * target].to_vec(),
        }
    };
    let size = batch.indices.len() / parts;
    let part = |i: usize| Batch {
        indices: batch.indices[i * size..(i + 1) * size].to_vec(),
        strong: cut(&batch.strong, i),
        weak: cut(&batch.weak, i),
    };
    (0..parts).map(part).collect()
}

/// Trains until the last epoch or until `stop` is set.
///
/// # Errors
/// Unreadable data, a full disk, or a sentinel's finding.
pub fn pretrain(run: &Run, config: &Config, data: &Data, mut state: State, stop: &AtomicBool) -> Result<Ending> {
    let mut loader = Loader::new(data.train.clone(), config, state.step)?;
    let per_epoch = loader.steps_per_epoch();
    let schedule = Schedule::new(config, per_epoch);
    let mut metrics = Metrics::open(&run.metrics(), state.step)?.with_tensorboard(
        config.train.tensorboard,
        &run.metrics(),
        state.step,
    )?;
    let mut progress = Progress::start(config, per_epoch, state.step);
    let mut sentinel = Sentinel::default();
    let online = Online::prepare(config, data);
    write_samples(run, config, data)?;

    while state.step < schedule.total {
        if stop.load(Ordering::SeqCst) {
            sentinel.check_weights(run, config, &state)?;
            state.save(&run.last(), config)?;
            progress.finish();
            return Ok(Ending::Interrupted(state.step));
        }
        let (start, waited) = (Instant::now(), loader.waited());
        let batch = loader.next()?;
        let lr = schedule.lr(state.step);
        let measured = step(&mut state, &batch, config, &schedule)?;
        sentinel.check_step(run, config, &measured, &batch, &state)?;
        let seconds = start.elapsed().as_secs_f64();
        let waiting = (loader.waited() - waited).as_secs_f64() / seconds.max(1e-9);
        if let Some(said) = sentinel.check_waiting(waiting) {
            progress.message(&said);
        }
        progress.step(&in_words(&measured), seconds);
        metrics.write(&line(&measured, &state, per_epoch, lr, batch.indices.len(), seconds, waiting))?;

        let end_of_epoch = state.step.is_multiple_of(per_epoch);
        if end_of_epoch {
            at_epoch_end(run, config, &mut state, per_epoch, online.as_ref(), &mut metrics, &progress, &mut sentinel)?;
        } else if config.train.checkpoint_every > 0 && state.step.is_multiple_of(config.train.checkpoint_every as u64) {
            sentinel.check_weights(run, config, &state)?;
            state.save(&run.last(), config)?;
        }
    }
    progress.finish();
    for (file, why) in loader.skipped() {
        eprintln!("left out {file}: {why}");
    }
    Ok(Ending::Finished)
}

#[allow(clippy::too_many_arguments)]
fn at_epoch_end(
    run: &Run,
    config: &Config,
    state: &mut State,
    per_epoch: u64,
    online: Option<&Online>,
    metrics: &mut Metrics,
    progress: &Progress,
    sentinel: &mut Sentinel,
) -> Result<()> {
    let epoch = state.step / per_epoch;
    let every = config.evaluate.every_epochs as u64;
    let due = every > 0 && (epoch.is_multiple_of(every) || epoch == config.train.epochs as u64);
    let mut best = false;
    if let (true, Some(online)) = (due, online) {
        let seen = online.check(&state.method.encoder)?;
        let knn = seen.knn.map_or_else(String::new, |knn| format!("kNN {:.1} %, ", 100.0 * knn));
        let features = format!("feature std {:.3}, effective rank {:.1}", seen.feature_std, seen.rank);
        progress.message(&format!("epoch {epoch}: {knn}{features}"));
        let mut line = json!({"kind": "eval", "step": state.step, "epoch": epoch, "feature_std": seen.feature_std,
            "rank": seen.rank});
        if let Some(knn) = seen.knn {
            line["knn"] = knn.into();
            best = state.best_knn.is_none_or(|b| knn > b);
        }
        metrics.write(&line)?;
        if best {
            state.best_knn = seen.knn;
        }
        sentinel.check_features(&seen)?;
    }
    sentinel.check_weights(run, config, state)?;
    if best {
        // Before `last`, which remembers how good the best one is: a kill in between repeats the epoch's end.
        state.save(&run.best(), config)?;
    }
    state.save(&run.last(), config)?;
    if config.train.keep_checkpoints > 0 {
        copy(&run.last(), &run.numbered(state.step))?;
        let all = run.all_numbered();
        for old in &all[..all.len().saturating_sub(config.train.keep_checkpoints)] {
            std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    Ok(())
}

/// A second name for a file that is only ever replaced, never written to; a copy where the disk has no links.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let beside = to.with_extension("tmp");
    let _ = std::fs::remove_file(&beside); // left behind by a crash
    std::fs::hard_link(from, &beside)
        .or_else(|_| std::fs::copy(from, &beside).map(|_| ()))
        .and_then(|()| std::fs::rename(&beside, to))
        .with_context(|| format!("cannot write {}", to.display()))
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

fn line(
    measured: &Measured,
    state: &State,
    per_epoch: u64,
    lr: f64,
    batch: usize,
    seconds: f64,
    waiting: f64,
) -> serde_json::Value {
    let Measured { loss, norms, .. } = measured;
    let mut line = json!({
        "kind": "step", "step": state.step, "epoch": state.step as f64 / per_epoch as f64, "loss": loss, "lr": lr,
        "grad_norm": norms.total, "grad_norm_encoder": norms.encoder, "images_per_second": batch as f64 / seconds,
        "waiting": waiting,
    });
    if let Some(contrast) = &measured.contrast {
        let bank = &state.method.bank;
        line["contrast"] = contrast.loss.into();
        line["positive_similarity"] = contrast.positive.into();
        line["negative_similarity"] = contrast.negative.into();
        line["grad_norm_projector"] = norms.projector.into();
        line["bank_keys"] = bank.images.len().into();
        if let (Some(norm), Some((mean, oldest))) = (bank.norm(), bank.age(batch)) {
            line["bank_norm"] = norm.into();
            line["bank_age"] = mean.into();
            line["bank_age_oldest"] = oldest.into();
        }
    }
    if let Some([strong, weak]) = measured.reconstruction {
        line["reconstruction_strong"] = strong.into();
        line["reconstruction_weak"] = weak.into();
        line["grad_norm_decoder"] = norms.decoder.into();
    }
    line
}

/// Keeps some held-out images with the run: the export proves its parity on them.
fn write_samples(run: &Run, config: &Config, data: &Data) -> Result<()> {
    use candle_core::{Device, Tensor};
    let size = config.encoder.image_size;
    let preprocess = Preprocess::from_config(config);
    let split = data.test.as_ref().unwrap_or(&data.train);
    let n = SAMPLES.min(split.len());
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for i in (0..n).map(|i| i * split.len() / n) {
        if let Ok(image) = split.image(i) {
            pixels.extend(preprocess.fit(&image).into_raw());
            labels.push(split.label(i).map_or(-1, i64::from));
        }
    }
    let count = labels.len();
    let tensors = [
        ("pixels".to_string(), Tensor::from_vec(pixels, (count, size, size, 3), &Device::Cpu)?),
        ("labels".to_string(), Tensor::from_vec(labels, count, &Device::Cpu)?),
    ];
    let bytes = macrl_models::checkpoint::to_bytes(&tensors, std::collections::HashMap::new())?;
    atomic::write_file(&run.samples(), &bytes).with_context(|| format!("cannot write {}", run.samples().display()))?;
    Ok(())
}
