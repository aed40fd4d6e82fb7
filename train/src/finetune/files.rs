//! Where one fine-tuning's files lie.

use std::path::{Path, PathBuf};

use crate::run::Run;

/// Names the files in the folder `runs/NAME/finetune/KIND`.
pub struct FinetuneFiles {
    dir: PathBuf,
}

impl FinetuneFiles {
    /// `kind` is what fine-tuning starts from: `macrl` or `random`.
    pub fn new(run: &Run, kind: &str) -> Self {
        FinetuneFiles { dir: run.finetune().join(kind) }
    }

    /// The folder itself, which may not exist yet.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.dir.join("last.safetensors")
    }

    /// The checkpoint with the best accuracy on the test split.
    pub fn best(&self) -> PathBuf {
        self.dir.join("best.safetensors")
    }

    /// Every logged number, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }
}
