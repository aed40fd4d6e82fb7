//! `finetune.json`: the protocol and the results of fine-tuning, from the pretrained encoder and from random weights.

use std::path::Path;

use anyhow::{Context, Result};
use macrl_bundle::atomic;
use macrl_bundle::config::Config;
use macrl_bundle::evaluation::Evaluation;
use serde_json::{Value, json};

use crate::run::Run;

/// Key of these results in evaluation.json.
pub const KEY: &str = "finetune";

/// Results of one fine-tuning on the test split.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What it started from: `macrl` or `random`.
    pub features: String,
    /// Accuracy after the last epoch, in [0, 1].
    pub accuracy: f64,
    /// Accuracy after the best epoch, in [0, 1].
    pub best: f64,
    /// The best epoch, counted from 1.
    pub best_epoch: u64,
    /// Number of steps done.
    pub steps: u64,
    /// Confusion counts after the last epoch, (C true, C predicted).
    pub confusion: Vec<Vec<u32>>,
}

/// The protocol, for the file.
pub fn protocol(config: &Config, checkpoint: &str, steps: u64, images: (usize, usize), split: &str) -> Value {
    let f = &config.finetune;
    json!({
        "checkpoint": checkpoint, "steps": steps, "split": split, "train_images": images.0, "test_images": images.1,
        "epochs": f.epochs, "batch_size": f.batch_size, "lr": f.lr, "weight_decay": f.weight_decay,
        "layer_decay": f.layer_decay, "warmup_epochs": f.warmup_epochs, "label_smoothing": f.label_smoothing,
        "mixup": f.mixup, "pooling": config.evaluate.pooling,
        "accuracy": "on the test split after the last epoch",
        "best": "after the best epoch, which was chosen by these same test images",
        "random": "the same network from random weights at the same budget, without layer-wise decay, which would only \
                   hold it back",
    })
}

/// The content of finetune.json.
pub fn to_json(protocol: &Value, outcomes: &[Outcome]) -> Value {
    let row = |o: &Outcome| {
        let share = |(i, row): (usize, &Vec<u32>)| f64::from(row[i]) / f64::from(row.iter().sum::<u32>().max(1));
        let per_class: Vec<f64> = o.confusion.iter().enumerate().map(share).collect();
        json!({"features": o.features, "accuracy": o.accuracy, "best": o.best, "best_epoch": o.best_epoch,
            "steps": o.steps, "per_class": per_class, "confusion": o.confusion})
    };
    json!({"protocol": protocol, "rows": outcomes.iter().map(row).collect::<Vec<_>>()})
}

/// Writes `finetune.json`, and copies the results into evaluation.json where there is one.
///
/// # Errors
/// A file that cannot be written, or an evaluation.json that cannot be read.
pub fn write(run: &Run, result: &Value) -> Result<()> {
    save(&run.finetuned(), &format!("{result:#}\n"))?;
    if run.evaluation().exists() {
        let mut evaluation = Evaluation::read(&run.evaluation())?;
        evaluation.extra.insert(KEY.into(), result.clone());
        save(&run.evaluation(), &evaluation.to_json())?;
    }
    Ok(())
}

/// Reads the results of an earlier fine-tuning of this run, for an evaluation.json that is written again.
///
/// # Errors
/// A file that is there but cannot be read.
pub fn read(run: &Run) -> Result<Option<Value>> {
    let path = run.finetuned();
    if !path.exists() {
        return Ok(None);
    }
    let text = macrl_bundle::regular::read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} is not valid JSON", path.display()))
}

fn save(path: &Path, text: &str) -> Result<()> {
    atomic::write_file(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// The results as aligned text, accuracies in percent.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!("{:<10} {:>8} {:>18}\n", "start", "accuracy", "best (epoch)");
    for o in outcomes {
        let best = format!("{:.1} ({})", 100.0 * o.best, o.best_epoch);
        text += &format!("{:<10} {:>8.1} {best:>18}\n", o.features, 100.0 * o.accuracy);
    }
    text
}
