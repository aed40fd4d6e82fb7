//! The network: fused operators on the CPU and, with the feature `cuda`, on NVIDIA GPUs; parameters; the Vision
//! Transformer; checkpoints as tensors.
//!
//! Losses, optimisers and views, which only training needs, are in macrl-train.
//!
//! Letters in shapes throughout: B batch, N patches, T tokens (1 + N), D width, H heads, P values in a patch,
//! S image edge, C classes.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use macrl_bundle::config::{EncoderConfig, Pooling};
//! use macrl_nn::Encoder;
//!
//! let config =
//!     EncoderConfig { image_size: 16, patch_size: 4, width: 24, depth: 1, heads: 2, ..macrl_bundle::Config::default().encoder };
//! let encoder = Encoder::init(&config, 7)?;
//! let images = Tensor::zeros((2, 3, 16, 16), DType::F32, &Device::Cpu)?;
//! // (B, 1 + N, D): a class token and 4 x 4 patches.
//! assert_eq!(encoder.forward_pixels(&images)?.dims(), [2, 17, 24]);
//! assert_eq!(encoder.features(&images, Pooling::Mean)?.dims(), [2, 24]);
//! # Ok::<(), candle_core::Error>(())
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)] // output goes through macrl_bundle::output

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
