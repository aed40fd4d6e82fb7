//! What outlives training: the network, its configuration, preprocessing, checkpoints and bundles.
//!
//! Letters in shapes throughout: B batch, N patches, T tokens (1 + N), D width, H heads, P values in a patch,
//! S image edge, C classes.

#![warn(clippy::print_stdout, clippy::print_stderr)] // everything that is said goes through macrl_models::output

pub mod atomic;
pub mod bundle;
pub mod checkpoint;
pub mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod device;
pub mod evaluation;
pub mod folder;
pub mod lock;
pub mod ops;
pub mod output;
pub mod owned;
pub mod params;
pub mod preprocess;
pub mod probe;
pub mod progress;
pub mod projection;
pub mod rng;
pub mod runtime;
pub mod vit;
pub mod weights;
