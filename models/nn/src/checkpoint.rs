//! Checkpoints as Candle tensors; the file format is in [`macrl_bundle::checkpoint`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
pub use macrl_bundle::checkpoint::CheckpointError;
use macrl_bundle::checkpoint::{CheckpointFile, write};
use macrl_bundle::config::Config;

/// A checkpoint: named tensors, the run's configuration and its notes.
#[derive(Debug)]
pub struct Checkpoint {
    /// The run's resolved configuration.
    pub config: Config,
    /// Other metadata: counters of the run, as text.
    pub notes: HashMap<String, String>,
    /// f32 and integer tensors by name.
    pub tensors: HashMap<String, Tensor>,
    /// The path that the checkpoint was read from.
    pub path: PathBuf,
}

/// Writes a checkpoint atomically.
///
/// # Errors
/// [`CheckpointError::Io`]; an existing file is then unchanged.
pub fn save(
    path: &Path,
    config: &Config,
    notes: &HashMap<String, String>,
    tensors: &[(String, Tensor)],
) -> Result<(), CheckpointError> {
    write(path, config, notes, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
}

/// Serialises tensors to the bytes of a safetensors file.
///
/// # Errors
/// A tensor has a dtype that safetensors does not support.
pub fn to_bytes(tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> candle_core::Result<Vec<u8>> {
    let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize(views, Some(metadata)).map_err(candle_core::Error::wrap)
}

/// Reads and validates a checkpoint.
///
/// # Errors
/// [`CheckpointError`]: an unreadable or damaged file, or one without a valid configuration.
pub fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let file = CheckpointFile::read(path)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors()?.tensors() {
        let tensor = view.load(&Device::Cpu).map_err(|e| CheckpointError::Tensor(path.to_path_buf(), e.to_string()))?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint { tensors, path: path.to_path_buf(), config: file.config, notes: file.notes })
}
