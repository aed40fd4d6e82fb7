//! The network: fused operators on the CPU and, with the feature `cuda`, on NVIDIA GPUs; parameters; the Vision
//! Transformer; checkpoints as tensors.
//!
//! What only training computes (losses, optimisers, views) is in macrl-train.
//!
//! Letters in shapes throughout: B batch, N patches, T tokens (1 + N), D width, H heads, P values in a patch,
//! S image edge, C classes.

#![warn(clippy::print_stdout, clippy::print_stderr)] // everything that is said goes through macrl_bundle::output

pub mod checkpoint;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod ops;
pub mod params;
pub mod vit;

pub use checkpoint::Checkpoint;
pub use params::Group;
pub use vit::Encoder;
