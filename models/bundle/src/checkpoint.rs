//! Checkpoint files: safetensors files that contain the configuration they were made with.
//!
//! Writing is atomic: a reader finds the old file or the new one, never a part of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{SafeTensorError, SafeTensors, View};

use crate::atomic;
use crate::config::{Config, ConfigError};
use crate::regular;

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("checkpoint {0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// The file is not a complete safetensors file.
    #[error("checkpoint {0} is damaged or not a safetensors file: {1}")]
    Format(PathBuf, String),
    /// The file has no configuration: weights without their geometry are not loaded.
    #[error("checkpoint {0} carries no configuration; was it written by macrl-train?")]
    NoConfig(PathBuf),
    /// The configuration in the file is not valid.
    #[error("checkpoint {0}: {1}")]
    Config(PathBuf, ConfigError),
    /// A tensor is missing, has another shape, or has a dtype that Candle does not support.
    #[error("checkpoint {0}: {1}")]
    Tensor(PathBuf, String),
}

/// A checkpoint file in memory: its configuration, its notes, and its tensors as bytes.
#[derive(Debug)]
pub struct CheckpointFile {
    /// The run's resolved configuration.
    pub config: Config,
    /// Other metadata: counters of the run, as text.
    pub notes: HashMap<String, String>,
    path: PathBuf,
    bytes: Vec<u8>,
}

const CONFIG: &str = "config";

impl CheckpointFile {
    /// Reads a file; [`CheckpointFile::tensors`] validates its tensors.
    ///
    /// # Errors
    /// Every [`CheckpointError`] except `Tensor`.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let at = || path.to_path_buf();
        let bytes = regular::read(path).map_err(|e| CheckpointError::Io(at(), e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| format_error(path, &e))?;
        let mut notes = header.metadata().clone().unwrap_or_default();
        let text = notes.remove(CONFIG).ok_or_else(|| CheckpointError::NoConfig(at()))?;
        let config =
            Config::parse_resolved(&text, "its configuration").map_err(|e| CheckpointError::Config(at(), e))?;
        Ok(Self { config, notes, path: at(), bytes })
    }

    /// Views of the tensors; no value is copied.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] if the tensors do not match the file's size.
    pub fn tensors(&self) -> Result<SafeTensors<'_>, CheckpointError> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| format_error(&self.path, &e))
    }

    /// The path that the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn format_error(path: &Path, error: &SafeTensorError) -> CheckpointError {
    CheckpointError::Format(path.to_path_buf(), error.to_string())
}

/// Writes a checkpoint.
///
/// # Errors
/// [`CheckpointError::Io`]; an existing file is then unchanged.
pub fn write<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    config: &Config,
    notes: &HashMap<String, String>,
    tensors: impl IntoIterator<Item = (S, V)>,
) -> Result<(), CheckpointError> {
    let io = |e| CheckpointError::Io(path.to_path_buf(), e);
    let mut metadata = notes.clone();
    metadata.insert(CONFIG.into(), config.to_toml());
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| io(std::io::Error::other(e)))?;
    atomic::write_file(path, &bytes).map_err(io)
}
