//! Errors of opening and writing a bundle.

use std::path::PathBuf;

use super::names::{CONFIG, ONNX, PREPROCESSOR, WEIGHTS};
use crate::evaluation::EvaluationError;
use crate::probe::ProbeError;

/// Why a bundle was refused or not written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum BundleError {
    /// The path is not a folder.
    #[error("there is no bundle at {0}: expected a folder with {CONFIG}, {PREPROCESSOR}, {WEIGHTS} and {ONNX}")]
    NoFolder(PathBuf),
    /// An export was killed while it moved its files into the bundle.
    #[error("{0} is half replaced: an export was interrupted; `macrl-export bundle {dir}` finishes it", dir = .0.display())]
    Unfinished(PathBuf),
    /// A required file is missing.
    #[error("{0} is missing from the bundle; `macrl-export bundle` writes it")]
    Missing(PathBuf),
    /// A file exists but cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read { path: PathBuf, cause: std::io::Error },
    /// A file cannot be written.
    #[error("cannot write {path}: {cause}")]
    Write { path: PathBuf, cause: std::io::Error },
    /// A file is not JSON, or an entry is missing or has the wrong type.
    #[error("{path} is not valid: {cause}")]
    Json {
        path: PathBuf,
        /// The parser's message with entry, line and column.
        cause: String,
    },
    /// Entries contradict each other or describe a network that macrl does not support.
    #[error("{path}: {cause}")]
    Config { path: PathBuf, cause: String },
    /// The weights are not a complete safetensors file.
    #[error("{path} is not a whole safetensors file: {cause}")]
    Weights { path: PathBuf, cause: String },
    /// A tensor is missing or does not have the shape that `config.json` implies.
    #[error("{path}: tensor {name} should have shape {expected:?}, found {found}")]
    Tensor { path: PathBuf, name: String, expected: Vec<usize>, found: String },
    /// The graph file is empty or does not start like an ONNX model.
    #[error("{path} is not an ONNX model: {cause}")]
    Onnx { path: PathBuf, cause: String },
    /// The graph's weights are in another file, which is missing or has changed.
    #[error("{path}: {cause}; `macrl-export bundle` writes both")]
    External { path: PathBuf, cause: String },
    /// A file is not the one that was exported.
    #[error(
        "{path} was changed after the export: expected SHA-256 {expected:.8}..., found {found:.8}...; export it again"
    )]
    Changed { path: PathBuf, expected: String, found: String },
    /// The probe is invalid.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The evaluation is invalid.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// Two files of the bundle do not belong together.
    #[error("{path} does not fit {CONFIG}: {cause}")]
    Mismatch { path: PathBuf, cause: String },
}
