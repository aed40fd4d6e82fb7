//! ONNX Runtime: found and loaded at run time, so that one binary serves on a CPU or on CUDA by the library it finds.
//!
//! `ort` panics where its library is missing; everything here goes through [`load`], which does not.
//!
//! ```no_run
//! use macrl_runtime::{Device, SessionOptions, session};
//!
//! let options = SessionOptions { device: Device::Cpu, threads: 2, ..SessionOptions::default() };
//! let loaded = session("bundle/onnx/model.onnx".as_ref(), &options)?;
//! assert_eq!(loaded.device, "cpu");
//! # Ok::<(), macrl_runtime::RuntimeError>(())
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)] // everything that is said goes through macrl_bundle::output

mod error;
mod library;
mod session;
mod weights;

pub use error::RuntimeError;
pub use library::{library_path, load};
pub use macrl_bundle::device::Device;
pub use session::{Loaded, SessionOptions, session};
pub use weights::SharedWeights;
