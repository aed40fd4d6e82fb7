//! Where a run's numbers go: metrics.jsonl, TensorBoard, and the progress line.

use std::path::Path;

use anyhow::Result;
use macrl_bundle::config::Config;
use serde_json::{Map, Value, json};

use crate::metrics::MetricsWriter;
use crate::online::FeatureCheck;
use crate::part::Part;
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::state::State;
use crate::step::contract::{Finished, Measured};

/// Logs what steps and evaluations measure.
pub struct Log {
    metrics: MetricsWriter,
    progress: Progress,
    schedule: Schedule,
    per_epoch: u64,
}

impl Log {
    /// For a run that has done `step` steps; `path` is its metrics.jsonl.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn open(path: &Path, config: &Config, schedule: Schedule, per_epoch: u64, step: u64) -> Result<Self> {
        let metrics = MetricsWriter::open(path, step)?.with_tensorboard(config.train.tensorboard, path, step)?;
        Ok(Log { metrics, progress: Progress::start(config, per_epoch, step), schedule, per_epoch })
    }

    /// Logs a finished step; `more` are further keys of its line.
    ///
    /// # Errors
    /// The file cannot be written, because the disk is full for instance.
    pub fn step(&mut self, done: &Finished, more: Map<String, Value>) -> Result<()> {
        let (step, measured) = (done.step + 1, &done.measured);
        self.progress.step(&in_words(measured), done.seconds);
        let mut line = json!({
            "kind": "step", "step": step, "epoch": step as f64 / self.per_epoch as f64, "loss": measured.loss,
            "lr": self.schedule.lr(done.step), "grad_norm": measured.norms.total,
            "images_per_second": done.images.len() as f64 / done.seconds,
        });
        if let Value::Object(line) = &mut line {
            line.extend(more);
        }
        self.metrics.write(&line)
    }

    /// Logs an online evaluation at the end of an epoch.
    ///
    /// # Errors
    /// The file cannot be written, because the disk is full for instance.
    pub fn evaluation(&mut self, check: &FeatureCheck, step: u64, epoch: u64) -> Result<()> {
        let knn = check.knn.map_or_else(String::new, |knn| format!("kNN {:.1} %, ", 100.0 * knn));
        let features = format!("feature std {:.3}, effective rank {:.1}", check.feature_std, check.rank);
        self.message(&format!("epoch {epoch}: {knn}{features}"));
        let mut line = json!({
            "kind": "eval", "step": step, "epoch": epoch, "feature_std": check.feature_std, "rank": check.rank,
        });
        if let Some(knn) = check.knn {
            line["knn"] = knn.into();
        }
        self.metrics.write(&line)
    }

    /// Appends a line to metrics.jsonl.
    ///
    /// # Errors
    /// The file cannot be written, because the disk is full for instance.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        self.metrics.write(line)
    }

    /// Prints a line above the progress bar.
    pub fn message(&self, text: &str) {
        self.progress.message(text);
    }

    /// Ends the progress bar.
    pub fn finish(&self) {
        self.progress.finish();
    }
}

/// The keys that only pretraining logs: the numbers of every term, the gradient norms of the network's parts, and the state of
/// the bank.
pub fn pretraining_numbers(done: &Finished, state: &State, config: &Config) -> Map<String, Value> {
    let (mut line, step) = (Map::new(), done.step + 1);
    line.insert("waiting".into(), done.waiting.into());
    for (number, value) in done.measured.terms.iter().flat_map(|term| term.named()) {
        line.insert(number.key.into(), value.into());
    }
    let parts = state.method.trainable();
    for part in Part::ALL.into_iter().filter(|part| parts.iter().any(|(of, _)| of == part)) {
        line.insert(format!("grad_norm_{}", part.name()), done.measured.norms.of(part).into());
    }
    if state.method.projector.is_some() {
        line.insert("bank_keys".into(), config.bank_keys(step).into());
        let bank = &state.method.bank;
        // On a GPU the state on the host, and the bank in it, may be older than this step.
        if let (true, Some(norm), Some((mean, oldest))) = (state.step == step, bank.norm(), bank.age(done.images.len()))
        {
            line.insert("bank_norm".into(), norm.into());
            line.insert("bank_age".into(), mean.into());
            line.insert("bank_age_oldest".into(), oldest.into());
        }
    }
    line
}

/// The losses as the progress line shows them.
fn in_words(measured: &Measured) -> String {
    let terms = measured.terms.iter().map(|term| format!(", {}", term.in_words()));
    format!("loss {:.4}{}", measured.loss, terms.collect::<String>())
}
