//! The loop of fine-tuning: steps, logs, checkpoints, accuracy after each epoch.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use macrl_bundle::config::{Config, KeyMask, Optimizer, TrainConfig};
use macrl_bundle::preprocess::Preprocess;
use serde_json::{Map, json};

use super::files::FinetuneFiles;
use super::labelled::Labelled;
use super::learner::Finetuning;
use super::result::Outcome;
use super::state::FinetuneState;
use crate::batches::Batches;
use crate::ending::Ending;
use crate::evaluate::confusion;
use crate::loader::Loader;
use crate::log::Log;
use crate::saving::Saving;
use crate::schedule::Schedule;
use crate::sentinel::{Sentinel, Verdict};
use crate::state::non_finite;
use crate::step::contract::Finished;
use crate::step::cpu;

/// The run's configuration with `[finetune]` in the place of `[train]`, and no mask on the weak view, for the
/// loader, the schedule and the optimiser.
pub fn training_config(config: &Config) -> Config {
    let f = &config.finetune;
    let train = TrainConfig {
        epochs: f.epochs,
        batch_size: f.batch_size,
        accumulate: 1,
        optimizer: Optimizer::Adamw,
        lr: f.lr,
        betas: f.betas,
        weight_decay: f.weight_decay,
        warmup_epochs: f.warmup_epochs,
        clip_norm: f.clip_norm,
        ..config.train.clone()
    };
    let mut derived = Config { train, ..config.clone() };
    derived.views.weak.mask_ratio = 0.0;
    derived.contrast.key_mask = KeyMask::View; // without a key branch, no whole views are needed
    derived
}

/// Trains until the last epoch or until `stop` is set; `config` is the run's own, with the `[finetune]` to use.
///
/// # Errors
/// Unreadable data, a full disk, or a loss that is not finite.
pub fn finetune(
    files: &FinetuneFiles,
    config: &Config,
    data: &Labelled,
    state: &mut FinetuneState,
    stop: &AtomicBool,
) -> Result<Ending> {
    let derived = training_config(config);
    let batches = Batches::weak_only(data.train.clone(), &derived)?;
    let per_epoch = batches.steps_per_epoch();
    let mut loader = Loader::over(batches, state.step)?;
    let schedule = Schedule::new(&derived, per_epoch);
    let mut log = Log::open(&files.metrics(), &derived, schedule, per_epoch, state.step)?;
    let mut sentinel = Sentinel::new(&derived);
    let mut saving = Saving::new(&derived.train);
    while state.step < schedule.total {
        if stop.load(Ordering::SeqCst) {
            save(state, &files.last(), config)?;
            log.finish();
            return Ok(Ending::Interrupted(state.step));
        }
        let lr = schedule.lr(state.step);
        let done = cpu::next(&mut loader, &mut Finetuning { state, data: data.train.as_ref(), config, lr })?;
        obey(sentinel.check_step(&done), &done, &log)?;
        log.step(&done, Map::new())?;
        if state.step.is_multiple_of(per_epoch) {
            at_epoch_end(files, config, data, state, state.step / per_epoch, &mut log)?;
            saving.saved();
        } else if saving.due(state.step) {
            save(state, &files.last(), config)?;
            saving.saved();
        }
    }
    log.finish();
    Ok(Ending::Finished)
}

/// Does what the sentinel says of a step.
fn obey(verdict: Verdict, done: &Finished, log: &Log) -> Result<()> {
    match verdict {
        Verdict::Healthy => Ok(()),
        Verdict::Warning(text) => {
            log.message(&text);
            Ok(())
        }
        Verdict::NotFinite(_) => bail!(
            "non-finite loss or gradient at step {} of fine-tuning (loss {}, gradient norm {}); try a lower finetune.lr or a \
             longer finetune.warmup_epochs",
            done.step,
            done.measured.loss,
            done.measured.norms.total
        ),
        // A perfect fit, or a single class, has a gradient of exactly 0.  Features are not checked for collapse here.
        Verdict::Unreached(_) | Verdict::Collapsed(_) => Ok(()),
    }
}

fn at_epoch_end(
    files: &FinetuneFiles,
    config: &Config,
    data: &Labelled,
    state: &mut FinetuneState,
    epoch: u64,
    log: &mut Log,
) -> Result<()> {
    let accuracy = test_accuracy(state, data, config)?.1;
    log.message(&format!("epoch {epoch}: accuracy {:.1} %", 100.0 * accuracy));
    log.write(&json!({"kind": "eval", "step": state.step, "epoch": epoch, "accuracy": accuracy}))?;
    if state.best.is_none_or(|(best, _)| accuracy > best) {
        state.best = Some((accuracy, epoch));
        // Before `last`, which remembers how good the best one is: a kill in between repeats the epoch's end.
        save(state, &files.best(), config)?;
    }
    save(state, &files.last(), config)
}

/// Writes a checkpoint; weights that are not finite must not replace good ones.
fn save(state: &FinetuneState, path: &Path, config: &Config) -> Result<()> {
    ensure!(
        non_finite(&state.classifier.named()?)?.is_empty(),
        "non-finite weights at step {} of fine-tuning; try a lower finetune.lr or a longer finetune.warmup_epochs",
        state.step
    );
    state.save(path, config)
}

/// Counts (C true, C predicted) on the test split, and the share on the diagonal.
pub(super) fn test_accuracy(state: &FinetuneState, data: &Labelled, config: &Config) -> Result<(Vec<Vec<u32>>, f64)> {
    let answers = state.classifier.predict(&data.test, &Preprocess::from_config(config))?;
    let counts = confusion(&answers, &data.test.labels, data.classes);
    let right: u32 = counts.iter().enumerate().map(|(i, row)| row[i]).sum();
    Ok((counts, f64::from(right) / data.test.labels.len() as f64))
}

/// What a finished fine-tuning reached.
///
/// # Errors
/// Test images that do not fit the encoder.
pub fn outcome(kind: &str, state: &FinetuneState, data: &Labelled, config: &Config) -> Result<Outcome> {
    let (confusion, accuracy) = test_accuracy(state, data, config)?;
    let (best, best_epoch) = state.best.unwrap_or((accuracy, config.finetune.epochs as u64));
    Ok(Outcome { features: kind.to_string(), accuracy, best, best_epoch, steps: state.step, confusion })
}
