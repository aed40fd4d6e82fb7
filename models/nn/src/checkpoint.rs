//! Checkpoints as tensors; the file is [`macrl_bundle::checkpoint`]'s.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
pub use macrl_bundle::checkpoint::CheckpointError;
use macrl_bundle::checkpoint::{CheckpointFile, write};
use macrl_bundle::config::Config;

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
    write(path, config, notes, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
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
    let file = CheckpointFile::read(path)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors()?.tensors() {
        let tensor = view.load(&Device::Cpu).map_err(|e| CheckpointError::Tensor(path.to_path_buf(), e.to_string()))?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint { tensors, path: path.to_path_buf(), config: file.config, notes: file.notes })
}
