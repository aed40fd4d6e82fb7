//! Fine-tuning: the whole encoder, with a linear head, trained on the labels.
//!
//! AdamW with layer-wise decay of the learning rate, warm-up and half a cosine, the weak view (crop and flip) without a
//! mask; label smoothing and mixup where the configuration asks for them.  Beside it stands the same network from
//! random weights at the same budget.

pub mod loss;
pub mod model;
pub mod result;
pub mod state;
pub mod target;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use macrl_models::config::{Config, KeyMask, Optimizer, TrainConfig};
use macrl_models::preprocess::Preprocess;
use serde_json::json;

use crate::data::split::Subset;
use crate::data::{Data, Dataset};
use crate::encode::{Images, labelled};
use crate::evaluate::confusion;
use crate::loader::{Batches, Loader};
use crate::metrics::Metrics;
use crate::optimizer::Gradients;
use crate::progress::Progress;
use crate::run::Run;
use crate::saving::Saving;
use crate::schedule::Schedule;
use crate::trainer::Ending;
use crate::views::Batch;
use crate::views::random::{Philox, Stream};
use loss::cross_entropy;
use result::Outcome;
use state::Tuned;

/// Labelled images to train on and to be judged by.
pub struct Labelled {
    /// The training images that have a label.
    pub train: Arc<dyn Dataset>,
    /// The test split as the encoder sees it.
    pub test: Images,
    /// C.
    pub classes: usize,
}

impl Labelled {
    /// What of a data set has labels.
    ///
    /// # Errors
    /// No labels in one of the splits, or no test split.
    pub fn of(data: &Data, config: &Config) -> Result<Self> {
        let needs = "fine-tuning needs class sub-folders or labels";
        let known: Vec<u32> = labelled(data.train.as_ref()).into_iter().map(|i| i as u32).collect();
        ensure!(!known.is_empty(), "no training image has a label: {needs}");
        let test = data.test.as_ref().context("the data has nothing to hold out for a test")?;
        let test = Images::read(test.as_ref(), &Preprocess::from_config(config))
            .with_context(|| format!("the test split cannot judge: {needs}"))?;
        let labels = known.iter().filter_map(|i| data.train.label(*i as usize)).chain(test.labels.iter().copied());
        let classes = labels.max().map_or(0, |largest| largest as usize + 1).max(data.classes.len());
        let train: Arc<dyn Dataset> = match known.len() == data.train.len() {
            true => data.train.clone(),
            false => Arc::new(Subset::new(data.train.clone(), known)),
        };
        Ok(Labelled { train, test, classes })
    }
}

/// Where one fine-tuning's files lie.
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// `runs/NAME/finetune/KIND`; `kind` is `macrl` or `random`.
    pub fn new(run: &Run, kind: &str) -> Self {
        Place { dir: run.finetune().join(kind) }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest state.
    pub fn last(&self) -> PathBuf {
        self.dir.join("last.safetensors")
    }

    /// The state with the best accuracy on the test split.
    pub fn best(&self) -> PathBuf {
        self.dir.join("best.safetensors")
    }

    /// Every logged number.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }
}

/// The run's configuration with `[finetune]` in the place of `[train]`, and nothing removed from the weak view: what
/// loader, schedule and optimiser are given.
pub fn tuning(config: &Config) -> Config {
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
    let mut tuning = Config { train, ..config.clone() };
    tuning.views.weak.mask_ratio = 0.0;
    tuning.contrast.key_mask = KeyMask::View; // there is no key branch that would need whole views
    tuning
}

/// One step; the loss and the gradient's norm.  Where one of them is not finite nothing is changed.
///
/// # Errors
/// A batch that does not fit.
pub fn step(tuned: &mut Tuned, mut batch: Batch, labels: &[u32], config: &Config, lr: f64) -> Result<(f64, f64)> {
    let (f, size, classes) = (&config.finetune, labels.len(), tuned.classifier.classes());
    let mut targets = target::smooth(labels, classes, f.label_smoothing as f32);
    if f.mixup > 0.0 {
        // One share per batch, keyed by the step alone.
        let mut random = Philox::new(config.train.seed, tuned.step, 0, Stream::Mix);
        let share = target::beta(f.mixup, &mut random) as f32;
        target::mix(&mut targets, classes, share);
        target::mix_view(&mut batch.weak, size, share);
    }
    let logits = tuned.classifier.logits(&batch.weak, size)?;
    let targets = Tensor::from_vec(targets, (size, classes), logits.device())?;
    let loss = cross_entropy(&logits, &targets)?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    let groups = tuned.classifier.trainable();
    let gradients = Gradients::take(loss.backward()?, &groups);
    let norm = gradients.norms(&groups)?.total;
    if value.is_finite() && norm.is_finite() {
        let scale = if f.clip_norm > 0.0 && norm > f.clip_norm { f.clip_norm / norm } else { 1.0 };
        let rates: Vec<f64> = tuned.classifier.lr_shares(f.layer_decay).into_iter().map(|share| lr * share).collect();
        tuned.optimizer.update_with(&groups, &gradients, &rates, scale)?;
        tuned.step += 1;
    }
    Ok((value, norm))
}

/// Trains until the last epoch or until `stop` is set; `config` is the run's own, with `[finetune]` as wanted.
///
/// # Errors
/// Unreadable data, a full disk, or a loss that is not finite.
pub fn tune(place: &Place, config: &Config, data: &Labelled, tuned: &mut Tuned, stop: &AtomicBool) -> Result<Ending> {
    let derived = tuning(config);
    let batches = Batches::weak_only(data.train.clone(), &derived)?;
    let per_epoch = batches.steps_per_epoch();
    let mut loader = Loader::over(batches, tuned.step)?;
    let schedule = Schedule::new(&derived, per_epoch);
    let mut metrics = Metrics::open(&place.metrics(), tuned.step)?.with_tensorboard(
        config.train.tensorboard,
        &place.metrics(),
        tuned.step,
    )?;
    let mut progress = Progress::start(&derived, per_epoch, tuned.step);
    let mut saving = Saving::new(&derived.train);
    while tuned.step < schedule.total {
        if stop.load(Ordering::SeqCst) {
            tuned.save(&place.last(), config)?;
            progress.finish();
            return Ok(Ending::Interrupted(tuned.step));
        }
        let start = Instant::now();
        let (before, lr) = (tuned.step, schedule.lr(tuned.step));
        let batch = loader.next()?;
        // Images that became unreadable give way to readable ones, which have a label as well.
        let labels: Vec<u32> = batch.indices.iter().filter_map(|i| data.train.label(*i as usize)).collect();
        let (loss, norm) = step(tuned, batch, &labels, config, lr)?;
        if tuned.step == before {
            bail!(
                "non-finite loss or gradient at step {before} of fine-tuning (loss {loss}, gradient norm {norm}); try a \
                 lower finetune.lr or a longer finetune.warmup_epochs"
            );
        }
        let seconds = start.elapsed().as_secs_f64();
        progress.step(&format!("loss {loss:.4}"), seconds);
        let epoch = tuned.step as f64 / per_epoch as f64;
        metrics.write(&json!({"kind": "step", "step": tuned.step, "epoch": epoch, "loss": loss, "lr": lr,
            "grad_norm": norm, "images_per_second": labels.len() as f64 / seconds}))?;
        if tuned.step.is_multiple_of(per_epoch) {
            at_epoch_end(place, config, data, tuned, tuned.step / per_epoch, &mut metrics, &progress)?;
            saving.saved();
        } else if saving.due(tuned.step) {
            tuned.save(&place.last(), config)?;
            saving.saved();
        }
    }
    progress.finish();
    Ok(Ending::Finished)
}

fn at_epoch_end(
    place: &Place,
    config: &Config,
    data: &Labelled,
    tuned: &mut Tuned,
    epoch: u64,
    metrics: &mut Metrics,
    progress: &Progress,
) -> Result<()> {
    let accuracy = judge(tuned, data, config)?.1;
    progress.message(&format!("epoch {epoch}: accuracy {:.1} %", 100.0 * accuracy));
    metrics.write(&json!({"kind": "eval", "step": tuned.step, "epoch": epoch, "accuracy": accuracy}))?;
    if tuned.best.is_none_or(|(best, _)| accuracy > best) {
        tuned.best = Some((accuracy, epoch));
        tuned.save(&place.best(), config)?; // before `last`, as in pretraining
    }
    tuned.save(&place.last(), config)
}

/// Counts (C true, C predicted) on the test split, and the share on the diagonal.
fn judge(tuned: &Tuned, data: &Labelled, config: &Config) -> Result<(Vec<Vec<u32>>, f64)> {
    let answers = tuned.classifier.predict(&data.test, &Preprocess::from_config(config))?;
    let counts = confusion(&answers, &data.test.labels, data.classes);
    let right: u32 = counts.iter().enumerate().map(|(i, row)| row[i]).sum();
    Ok((counts, f64::from(right) / data.test.labels.len() as f64))
}

/// What a finished fine-tuning reached.
///
/// # Errors
/// Candle's.
pub fn outcome(kind: &str, tuned: &Tuned, data: &Labelled, config: &Config) -> Result<Outcome> {
    let (confusion, accuracy) = judge(tuned, data, config)?;
    let (best, best_epoch) = tuned.best.unwrap_or((accuracy, config.finetune.epochs as u64));
    Ok(Outcome { features: kind.to_string(), accuracy, best, best_epoch, steps: tuned.step, confusion })
}

#[cfg(test)]
mod tests;
