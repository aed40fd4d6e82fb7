//! ONNX Runtime, found and loaded at run time: the same binary runs on the CPU or with CUDA, depending on the library.
//!
//! `ort` panics if its library is missing.  Everything here goes through [`load`], which returns an error instead.
//!
//! ```no_run
//! use macrl_runtime::{Device, SessionOptions, session};
//!
//! let options = SessionOptions { device: Device::Cpu, threads: 2, ..SessionOptions::default() };
//! let loaded = session("bundle/onnx/model.onnx".as_ref(), &options)?;
//! assert_eq!(loaded.device, "cpu");
//! # Ok::<(), macrl_runtime::RuntimeError>(())
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)] // output goes through macrl_bundle::output

mod error;
mod library;
mod session;
mod weights;

pub use error::RuntimeError;
pub use library::{choose_library, library_path, load};
pub use macrl_bundle::device::Device;
pub use session::{Loaded, SessionOptions, session};
pub use weights::SharedWeights;
