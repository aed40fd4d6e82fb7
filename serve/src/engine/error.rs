//! Errors of the engine.  It knows nothing of HTTP; the routes turn them into answers.

use macrl_bundle::decode::DecodeError;
use macrl_runtime::RuntimeError;

use crate::pool::WorkError;

/// Why an engine cannot be started for a bundle.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// ONNX Runtime or the model file cannot be loaded.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The graph can be loaded but does not do what the bundle says.
    #[error("{path} does not fit config.json: {cause}")]
    Graph {
        /// The model file.
        path: String,
        /// What was expected and what was found.
        cause: String,
    },
    /// The precision that was asked for is not available.
    #[error("{0}")]
    Precision(String),
    /// The system could not start a thread.
    #[error("cannot start an inference thread: {0}")]
    Thread(std::io::Error),
}

/// Why an image has no feature.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbedError {
    /// The image cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The decoder did not finish.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// ONNX Runtime failed.
    #[error("{0}")]
    Inference(String),
    /// The workers have ended.
    #[error("the server is stopping")]
    Stopped,
}
