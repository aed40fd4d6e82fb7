//! A run's folder: which file lies where.

use std::path::{Path, PathBuf};

/// `runs/NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// A folder that may not exist yet.
    pub fn new(dir: &Path) -> Self {
        Run { dir: dir.to_path_buf() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Every logged number, a JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    /// The newest state.
    pub fn last(&self) -> PathBuf {
        self.dir.join("checkpoints/last.safetensors")
    }

    /// The state with the best online kNN accuracy.
    pub fn best(&self) -> PathBuf {
        self.dir.join("checkpoints/best.safetensors")
    }

    /// The state after a step.
    pub fn numbered(&self, step: u64) -> PathBuf {
        self.dir.join(format!("checkpoints/step-{step:08}.safetensors"))
    }

    /// Numbered checkpoints, oldest first.
    pub fn all_numbered(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("checkpoints")).into_iter().flatten().flatten();
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"))
                && path.extension().is_some_and(|e| e == "safetensors")
        };
        let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(named).collect();
        found.sort();
        found
    }

    /// What a non-finite step was: `macrl-train replay` reads it.
    pub fn replay(&self) -> PathBuf {
        self.dir.join("replay.json")
    }

    /// The state right before that step.
    pub fn replay_state(&self) -> PathBuf {
        self.dir.join("checkpoints/replay.safetensors")
    }

    /// Held-out images as the encoder sees them, for the export's parity proof and the report.
    pub fn samples(&self) -> PathBuf {
        self.dir.join("samples.safetensors")
    }

    /// Accuracies with their baselines.
    pub fn evaluation(&self) -> PathBuf {
        self.dir.join("evaluation.json")
    }

    /// What fine-tuning reached.
    pub fn finetuned(&self) -> PathBuf {
        self.dir.join("finetune.json")
    }

    /// Fine-tuning's checkpoints and metrics.
    pub fn finetune(&self) -> PathBuf {
        self.dir.join("finetune")
    }

    /// The linear probe that is served.
    pub fn probe(&self) -> PathBuf {
        self.dir.join("probe.safetensors")
    }

    /// What a run looks like on one page.
    pub fn report(&self) -> PathBuf {
        self.dir.join("report.html")
    }

    /// Where the data was, so that later commands need not be told again.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data.txt")
    }
}
