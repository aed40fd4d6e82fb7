//! What passes between the stages as files, and what is needed to read and write them: the configuration, images and how
//! they become the network's input, checkpoints, probes, evaluations, bundles; atomic writing, locks, and what the binaries
//! say.
//!
//! Nothing here computes with the network: no tensors, no ONNX Runtime.

#![warn(clippy::print_stdout, clippy::print_stderr)] // everything that is said goes through macrl_bundle::output

pub mod atomic;
pub mod bundle;
pub mod checkpoint;
pub mod config;
pub mod decode;
pub mod device;
pub mod evaluation;
pub mod folder;
pub mod lock;
pub mod onnx;
pub mod output;
pub mod owned;
pub mod parameters;
pub mod preprocess;
pub mod probe;
pub mod progress;
pub mod tokens;

pub use bundle::{Bundle, BundleError};
pub use config::{Config, ConfigError};
pub use decode::{DecodeError, DecodeLimits, decode};
pub use evaluation::Evaluation;
pub use preprocess::Preprocess;
pub use probe::Probe;
