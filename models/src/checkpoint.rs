//! Checkpoints: safetensors files that carry the configuration they were made with.
//!
//! Written beside and renamed, so that a reader finds the old file or the new one, never a part of one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::atomic;
use crate::config::Config;

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("checkpoint {0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// Not a whole safetensors file.
    #[error("checkpoint {0} is damaged or not a safetensors file: {1}")]
    Format(PathBuf, String),
    /// No configuration inside: weights without their geometry are not loaded.
    #[error("checkpoint {0} carries no configuration; was it written by macrl-train?")]
    NoConfig(PathBuf),
    /// The configuration inside is not valid.
    #[error("checkpoint {0}: {1}")]
    Config(PathBuf, crate::config::ConfigError),
    /// A tensor is missing, has another shape, or cannot be held.
    #[error("checkpoint {0}: {1}")]
    Tensor(PathBuf, candle_core::Error),
}

/// Named tensors, the run's configuration, and what else is to be remembered, as text.
#[derive(Debug)]
pub struct Checkpoint {
    /// The run's resolved configuration.
    pub config: Config,
    /// Counters and the like.
    pub notes: HashMap<String, String>,
    /// f32 and integer tensors by name.
    pub tensors: HashMap<String, Tensor>,
    /// Where it was read from.
    pub path: PathBuf,
}

const CONFIG: &str = "config";

/// Writes a checkpoint.
///
/// # Errors
/// The file cannot be written; the old one is then as it was.
pub fn save(
    path: &Path,
    config: &Config,
    notes: &HashMap<String, String>,
    tensors: &[(String, Tensor)],
) -> Result<(), CheckpointError> {
    let io = |e| CheckpointError::Io(path.to_path_buf(), e);
    let mut metadata = notes.clone();
    metadata.insert(CONFIG.into(), config.to_toml());
    let bytes = to_bytes(tensors, metadata).map_err(|e| io(std::io::Error::other(e)))?;
    atomic::write_file(path, &bytes).map_err(io)
}

/// A safetensors file's bytes.
///
/// # Errors
/// A dtype that safetensors does not have.
pub fn to_bytes(tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> candle_core::Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize(views, Some(metadata)).map_err(candle_core::Error::wrap)
}

/// Reads and validates a checkpoint.
///
/// # Errors
/// Every [`CheckpointError`].
pub fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let at = || path.to_path_buf();
    let bytes = std::fs::read(path).map_err(|e| CheckpointError::Io(at(), e))?;
    let format = |e: safetensors::SafeTensorError| CheckpointError::Format(at(), e.to_string());
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
    let mut notes = header.metadata().clone().unwrap_or_default();
    let text = notes.remove(CONFIG).ok_or_else(|| CheckpointError::NoConfig(at()))?;
    let config = Config::parse(&text, "its configuration", &[]).map_err(|e| CheckpointError::Config(at(), e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(format)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        let tensor = view.load(&Device::Cpu).map_err(|e| CheckpointError::Tensor(at(), e))?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint { config, notes, tensors, path: at() })
}
