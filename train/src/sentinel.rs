//! Watches over a run and stops it, with the cause and what to try, when going on is pointless.

use anyhow::{Context, Result, bail};
use macrl_models::atomic;
use serde_json::json;

use crate::online::Seen;
use crate::run::Run;
use crate::stepper::Done;

/// Below this spread of the normalised features (1 is isotropic), or this effective rank, features have collapsed.
const FEATURE_STD_FLOOR: f64 = 0.02;
const RANK_FLOOR: f64 = 1.5;
/// So many checks in a row have to say so.
const PATIENCE: usize = 3;
/// More than this share of the time waiting for data, over so many steps, is worth a word.
const STARVED_SHARE: f64 = 0.5;
const STARVED_STEPS: usize = 50;

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Sentinel {
    collapsed: usize,
    waited: Vec<f64>,
    warned: bool,
}

impl Sentinel {
    /// After a step: everything finite, every parameter with a gradient.
    ///
    /// # Errors
    /// A non-finite loss or gradient (the batch is noted in `replay.json` first), or parameters without a gradient.
    pub fn check_step(&self, run: &Run, done: &Done) -> Result<()> {
        let measured = &done.measured;
        if !measured.without_gradient.is_empty() {
            bail!(
                "dead parameters: no gradient reaches {}; is a loss weight 0 that should not be?",
                measured.without_gradient.join(", ")
            );
        }
        if measured.loss.is_finite() && measured.norms.total.is_finite() {
            return Ok(());
        }
        let what = if measured.loss.is_finite() { "gradient" } else { "loss" };
        let path = run.dir().join("replay.json");
        let note = json!({"step": done.at, "cause": format!("non-finite {what}"), "indices": done.indices,
            "checkpoint": run.last()});
        atomic::write_file(&path, note.to_string().as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        bail!(
            "non-finite {what} at step {}: the batch is noted in {}, the last good state is {}; try a lower train.lr, \
             a longer train.warmup_epochs or train.clip_norm = 1",
            done.at,
            path.display(),
            run.last().display()
        )
    }

    /// After an online check: features still differ between images.
    ///
    /// # Errors
    /// Collapsed features, several checks in a row.
    pub fn check_features(&mut self, seen: &Seen) -> Result<()> {
        let low = seen.feature_std < FEATURE_STD_FLOOR || seen.rank < RANK_FLOOR;
        self.collapsed = if low { self.collapsed + 1 } else { 0 };
        if self.collapsed >= PATIENCE {
            bail!(
                "collapse: feature std {:.4} (floor {FEATURE_STD_FLOOR}) and effective rank {:.2} (floor {RANK_FLOOR}) \
                 for {PATIENCE} checks; try contrast.key_branch = \"momentum\", a higher reconstruction.weight or a \
                 lower train.lr",
                seen.feature_std,
                seen.rank
            );
        }
        Ok(())
    }

    /// After a step: says once when the data cannot keep up.
    pub fn check_waiting(&mut self, share: f64) {
        self.waited.push(share);
        if self.waited.len() < STARVED_STEPS || self.warned {
            self.waited.truncate(STARVED_STEPS);
            return;
        }
        let mean = self.waited.iter().sum::<f64>() / self.waited.len() as f64;
        self.waited.clear();
        if mean > STARVED_SHARE {
            self.warned = true;
            eprintln!(
                "loader starvation: {:.0} % of the time goes into waiting for images; smaller source images or more cores help",
                100.0 * mean
            );
        }
    }
}
