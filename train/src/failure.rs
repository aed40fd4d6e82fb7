//! A run that ends because numbers are not finite: saves what `macrl-train replay` needs.

use anyhow::{Context, Error, Result, anyhow};
use macrl_bundle::atomic;
use macrl_bundle::config::{Config, Optimizer};
use macrl_nn::checkpoint;
use serde_json::json;

use crate::run::Run;
use crate::state::State;

/// Where numbers that are not finite were found.
pub struct Failure<'a> {
    /// Number of steps done before.
    pub step: u64,
    /// What is not finite: `loss`, `gradient` or `weights`.
    pub what: &'a str,
    /// Images of the step's batch; empty where the weights were checked between steps.
    pub images: &'a [u32],
    /// The state right before the step, where it is still known.
    pub before: Option<&'a State>,
}

/// Writes `replay.json` and the state before the step, and gives the error that ends the run: the cause, where everything
/// is, and what to try.
///
/// # Errors
/// The files cannot be written.
pub fn record(run: &Run, config: &Config, failure: &Failure) -> Result<Error> {
    let cause = format!("non-finite {}", failure.what);
    let last = match save(run, config, failure, &cause)? {
        Some(step) => format!("the last good checkpoint is {} (step {step})", run.last().display()),
        None => "there is no checkpoint from before".to_string(),
    };
    let rates = match config.train.optimizer {
        Optimizer::Muon => "train.lr or train.muon_lr",
        Optimizer::Adamw => "train.lr",
    };
    Ok(anyhow!(
        "{cause} at step {}: {last}; `macrl-train replay --run {}` says where it comes from; try a lower {rates}, a longer \
         train.warmup_epochs or train.clip_norm = 1",
        failure.step,
        run.dir().display()
    ))
}

/// Writes the files; returns the step of the last good checkpoint, where there is one.
fn save(run: &Run, config: &Config, failure: &Failure, cause: &str) -> Result<Option<u64>> {
    let good = checkpoint::load(&run.last()).ok();
    let good = good.map(|good| good.notes.get("step").and_then(|s| s.parse::<u64>().ok()).unwrap_or_default());
    match failure.before {
        Some(state) => state.save(&run.replay_state(), config)?,
        // The state of an earlier failure would be taken for this one's.
        None if run.replay_state().exists() => std::fs::remove_file(run.replay_state())
            .with_context(|| format!("cannot remove {}", run.replay_state().display()))?,
        None => {}
    }
    let note = json!({
        "step": failure.step, "cause": cause, "indices": failure.images,
        "state": failure.before.map(|_| "checkpoints/replay.safetensors"),
        "last_good": good.map(|step| json!({"checkpoint": "checkpoints/last.safetensors", "step": step})),
    });
    let text = format!("{note:#}\n");
    atomic::write_file(&run.replay(), text.as_bytes())
        .with_context(|| format!("cannot write {}", run.replay().display()))?;
    Ok(good)
}
