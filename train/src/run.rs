//! A run's folder: which file lies where.

use std::path::{Path, PathBuf};

/// The folder of one run, `runs/NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    dir: PathBuf,
}

impl Run {
    /// Names the files in `dir`, which may not exist yet.
    pub fn new(dir: &Path) -> Self {
        Run { dir: dir.to_path_buf() }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration with all defaults filled in.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Every logged number, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    /// The newest checkpoint.
    pub fn last(&self) -> PathBuf {
        self.dir.join("checkpoints/last.safetensors")
    }

    /// The checkpoint with the best online kNN accuracy.
    pub fn best(&self) -> PathBuf {
        self.dir.join("checkpoints/best.safetensors")
    }

    /// The checkpoint after a given step.
    pub fn numbered(&self, step: u64) -> PathBuf {
        self.dir.join(format!("checkpoints/step-{step:08}.safetensors"))
    }

    /// Numbered checkpoints, oldest first.  Files with other names were not written by us.
    pub fn all_numbered(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.join("checkpoints")).into_iter().flatten().flatten();
        let step = |path: PathBuf| {
            let digits = path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?;
            let step: u64 = digits.parse().ok()?;
            (self.numbered(step) == path).then_some((step, path))
        };
        let mut found: Vec<(u64, PathBuf)> = entries.filter_map(|e| step(e.path())).collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// Files in the folder that pretraining would replace.
    pub fn in_the_way(&self) -> Vec<PathBuf> {
        let fixed = [
            self.config(),
            self.data(),
            self.metrics(),
            self.samples(),
            self.replay(),
            self.last(),
            self.best(),
            self.replay_state(),
        ];
        fixed.into_iter().filter(|path| path.symlink_metadata().is_ok()).chain(self.all_numbered()).collect()
    }

    /// Description of a step that was not finite, for `macrl-train replay`.
    pub fn replay(&self) -> PathBuf {
        self.dir.join("replay.json")
    }

    /// The state right before that step.
    pub fn replay_state(&self) -> PathBuf {
        self.dir.join("checkpoints/replay.safetensors")
    }

    /// Held-out images after the evaluation transform, for the export's parity check and the report.
    pub fn samples(&self) -> PathBuf {
        self.dir.join("samples.safetensors")
    }

    /// Labelled images of both splits, on which the export measures the 8-bit graph's accuracy.
    pub fn evaluation_images(&self) -> PathBuf {
        self.dir.join("evaluation_images.safetensors")
    }

    /// Accuracies of the encoder and of the baselines.
    pub fn evaluation(&self) -> PathBuf {
        self.dir.join("evaluation.json")
    }

    /// Results of fine-tuning.
    pub fn finetuned(&self) -> PathBuf {
        self.dir.join("finetune.json")
    }

    /// Folder with fine-tuning's checkpoints and metrics.
    pub fn finetune(&self) -> PathBuf {
        self.dir.join("finetune")
    }

    /// The linear probe that is served.
    pub fn probe(&self) -> PathBuf {
        self.dir.join("probe.safetensors")
    }

    /// The report about the run, one HTML page.
    pub fn report(&self) -> PathBuf {
        self.dir.join("report.html")
    }

    /// Path of the data set, so that later commands find it.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data.txt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_count() {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::new(dir.path());
        std::fs::create_dir(dir.path().join("checkpoints")).unwrap();
        let own = [run.numbered(9), run.numbered(100), run.numbered(123_456_789)];
        let others = ["step-keep.safetensors", "step-9.safetensors", "step-00000009-copy.safetensors", "notes.txt"];
        let others = others.map(|name| dir.path().join("checkpoints").join(name));
        own.iter().chain(&others).for_each(|path| std::fs::write(path, "").unwrap());
        assert_eq!(run.all_numbered(), own);
        std::fs::write(run.metrics(), "").unwrap();
        assert_eq!(run.in_the_way(), [&[run.metrics()][..], &own].concat());
    }
}
