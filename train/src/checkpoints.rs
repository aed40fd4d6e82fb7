//! The checkpoints of a pretraining run: `last`, `best`, and the numbered ones at the ends of epochs.

use anyhow::{Context, Result};
use macrl_bundle::atomic;
use macrl_bundle::config::Config;

use crate::run::Run;
use crate::saving::Saving;
use crate::state::{State, Weights};

/// Writes the checkpoints of one run, and remembers when the last was written.
pub struct Checkpoints<'a> {
    run: &'a Run,
    config: &'a Config,
    saving: Saving,
}

impl<'a> Checkpoints<'a> {
    /// For a run that starts or is resumed now.
    pub fn new(run: &'a Run, config: &'a Config) -> Self {
        Checkpoints { run, config, saving: Saving::new(&config.train) }
    }

    /// When the next one is due.
    pub fn saving(&self) -> &Saving {
        &self.saving
    }

    /// Writes `last`; `weights` are the state's.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&mut self, state: &State, weights: &Weights) -> Result<()> {
        state.save_with(weights, &self.run.last(), self.config)?;
        self.saving.saved();
        Ok(())
    }

    /// At the end of an epoch: `best` where this state is the best so far, `last`, and a numbered one where the
    /// configuration keeps those.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save_epoch(&mut self, state: &State, weights: &Weights, best: bool) -> Result<()> {
        if best {
            // Before `last`, which remembers how good the best one is: a kill in between repeats the epoch's end.
            state.save_with(weights, &self.run.best(), self.config)?;
        }
        self.save(state, weights)?;
        match self.config.train.keep_checkpoints {
            0 => Ok(()),
            kept => self.keep(state.step, kept),
        }
    }

    /// Links `last` to a name with its step number, and removes all but the newest `kept` numbered checkpoints.
    fn keep(&self, step: u64, kept: usize) -> Result<()> {
        let numbered = self.run.numbered(step);
        atomic::link_file(&self.run.last(), &numbered)
            .with_context(|| format!("cannot write {}", numbered.display()))?;
        let all = self.run.all_numbered();
        for old in &all[..all.len().saturating_sub(kept)] {
            std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        Ok(())
    }
}
