//! metrics.jsonl: every logged number, one JSON object a line; also TensorBoard's event files where the
//! configuration asks for them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use macrl_bundle::atomic;
use serde_json::Value;

use crate::tensorboard::Board;

/// Appends lines to metrics.jsonl.  A line is in the file when `write` returns.
pub struct MetricsWriter {
    file: File,
    board: Option<Board>,
}

impl MetricsWriter {
    /// Opens the file and drops what was logged after `step`: a resumed run logs those steps again.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let named = || format!("cannot write {}", path.display());
        if path.exists() {
            let text = std::fs::read_to_string(path).with_context(named)?;
            let kept: String = lines(&text).filter(|(_, s)| *s <= step).map(|(line, _)| format!("{line}\n")).collect();
            if kept != text {
                atomic::write_file(path, kept.as_bytes()).with_context(named)?;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(named)?;
        Ok(MetricsWriter { file, board: None })
    }

    /// Where `wanted`, also writes TensorBoard's event files into `tensorboard/` beside metrics.jsonl.
    ///
    /// # Errors
    /// The event file cannot be written.
    pub fn with_tensorboard(self, wanted: bool, path: &Path, step: u64) -> Result<Self> {
        let board = wanted.then(|| Board::create(&path.with_file_name("tensorboard"), step)).transpose()?;
        Ok(MetricsWriter { board, ..self })
    }

    /// Appends one JSON object as a line.
    ///
    /// # Errors
    /// The file cannot be written, because the disk is full for instance.
    pub fn write(&mut self, line: &Value) -> Result<()> {
        if let Some(board) = &mut self.board {
            board.write(line)?;
        }
        // One write, so that a reader never sees half a line and a kill never leaves one.
        self.file.write_all(format!("{line}\n").as_bytes()).context("cannot write metrics.jsonl")
    }
}

/// Complete lines with their step.  A line that a crash has cut off is no JSON and is dropped.
fn lines(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((line, value.get("step")?.as_u64()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resuming_drops_later_and_broken_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"ste").unwrap();
        let mut metrics = MetricsWriter::open(&path, 2).unwrap();
        metrics.write(&serde_json::json!({"step": 3, "loss": 0.5})).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"loss\":0.5}\n");
    }
}
