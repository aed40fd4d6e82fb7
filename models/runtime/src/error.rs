//! Why a session could not be opened.

/// Why ONNX Runtime or a session on it is not available.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message shows its fields")]
pub enum RuntimeError {
    /// No ONNX Runtime library was found.
    #[error(
        "ONNX Runtime's library (libonnxruntime.so, 1.{minor} or later) was not found{looked}; \
         `make setup` fetches it, or set ORT_DYLIB_PATH to it",
        minor = ort::MINOR_VERSION
    )]
    NotFound {
        /// Libraries that were found but did not load; empty if there are none.
        looked: String,
    },
    /// The library that the option or the environment variable names does not load.
    #[error("{by} is not a usable ONNX Runtime library: {cause}; unset it, or run `make setup`")]
    Named { by: String, cause: String },
    /// The library was loaded, but its environment could not be created.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
    /// CUDA was requested but is not available.
    #[error("CUDA was requested, but ONNX Runtime cannot use it: {0}; use --device cpu, or `make setup ORT=gpu`")]
    Cuda(String),
    /// ONNX Runtime cannot load the model file.
    #[error("{path} is not a model that ONNX Runtime loads: {cause}")]
    Model { path: String, cause: String },
}

/// ONNX Runtime's message without line breaks.
pub(crate) fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
