//! What is wrong with a bundle.

use std::path::PathBuf;

use super::names::{CONFIG, ONNX, PREPROCESSOR, WEIGHTS};
use crate::evaluation::EvaluationError;
use crate::probe::ProbeError;

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The folder itself.
    #[error("there is no bundle at {0}: expected a folder with {CONFIG}, {PREPROCESSOR}, {WEIGHTS} and {ONNX}")]
    NoFolder(PathBuf),
    /// An export was killed while it replaced the files.
    #[error("{0} is half replaced by an export that was interrupted; `macrl-export bundle {dir}` finishes it", dir = .0.display())]
    Unfinished(PathBuf),
    /// A file that every bundle has.
    #[error("{0} is missing from the bundle; `macrl-export bundle` writes it")]
    Missing(PathBuf),
    /// A file that is there and cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Not JSON, or not the entries expected.
    #[error("{path} is not valid: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Entry, line and column.
        cause: String,
    },
    /// Entries that contradict each other or describe another network.
    #[error("{path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// Truncated, or not safetensors at all.
    #[error("{path} is not a whole safetensors file: {cause}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        cause: String,
    },
    /// A tensor that is missing or has another shape than the configuration's.
    #[error("{path}: tensor {name} should have shape {expected:?}, found {found}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// timm's name.
        name: String,
        /// From `config.json`.
        expected: Vec<usize>,
        /// What is there.
        found: String,
    },
    /// The graph file is empty or not a protobuf of a model.
    #[error("{path} is not an ONNX model: {cause}")]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// A graph whose weights lie in another file, which is missing or another one by now.
    #[error("{path}: {cause}; `macrl-export bundle` writes both")]
    External {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
    /// The probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The evaluation.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// Two files that do not belong together.
    #[error("{path} does not fit {CONFIG}: {cause}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        cause: String,
    },
}
