//! The files that training, export and serving exchange: configuration, checkpoints, probes, evaluations and bundles.
//! Also image decoding and preprocessing, atomic writing, locks, and the binaries' output.
//!
//! This crate computes nothing with the network: it uses neither tensors nor ONNX Runtime.
//!
//! ```
//! use macrl_bundle::{Bundle, DecodeLimits, decode};
//!
//! let bundle = Bundle::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../pretrained/cifar10").as_ref())?;
//! assert_eq!(bundle.config.hidden_size, 192);
//!
//! // An image of 2 x 1 pixels becomes the encoder's input (3, 32, 32).
//! let image = decode(b"P6 2 1 255\nABCabc", &DecodeLimits::DEFAULT)?;
//! let mut input = vec![0.0; bundle.preprocess.values()];
//! bundle.preprocess.normalize(bundle.preprocess.fit(&image).as_raw(), &mut input);
//! assert_eq!(input.len(), 3 * 32 * 32);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)] // output goes through macrl_bundle::output

pub mod atomic;
pub mod bundle;
pub mod checkpoint;
mod comparison;
pub mod config;
pub mod decode;
pub mod device;
pub mod evaluation;
pub mod folder;
pub mod lock;
pub mod npy;
pub mod onnx;
pub mod output;
pub mod owned;
pub mod parameters;
pub mod places;
pub mod preprocess;
pub mod probe;
pub mod progress;
pub mod quantized;
pub mod regular;
pub mod tokens;

pub use bundle::{Bundle, BundleError};
pub use config::{Config, ConfigError};
pub use decode::{DecodeError, DecodeLimits, decode};
pub use device::Device;
pub use evaluation::Evaluation;
pub use preprocess::Preprocess;
pub use probe::Probe;
