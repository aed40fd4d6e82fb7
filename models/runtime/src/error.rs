//! What can keep a session from opening.

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// No library anywhere.
    #[error(
        "ONNX Runtime's library (libonnxruntime.so, 1.{minor} or later) was not found{looked}; \
         `make setup` fetches it, or set ORT_DYLIB_PATH to it",
        minor = ort::MINOR_VERSION
    )]
    NotFound {
        /// What was found and did not load, if anything.
        looked: String,
    },
    /// The file that the user named does not load.
    #[error("ORT_DYLIB_PATH={path} is not a usable ONNX Runtime library: {cause}; unset it, or run `make setup`")]
    Named {
        /// The variable's value.
        path: String,
        /// What the loader said.
        cause: String,
    },
    /// The library is there and refuses to start.
    #[error("ONNX Runtime does not start: {0}")]
    Start(String),
    /// CUDA was asked for and is not to be had.
    #[error("CUDA was asked for, but ONNX Runtime cannot use it: {0}; use --device cpu, or `make setup ORT=gpu`")]
    Cuda(String),
    /// The model is not one that ONNX Runtime loads.
    #[error("{path} is not a model that ONNX Runtime loads: {cause}")]
    Model {
        /// The file.
        path: String,
        /// What ONNX Runtime said.
        cause: String,
    },
}

/// What ONNX Runtime said, without its line breaks.
pub(crate) fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
