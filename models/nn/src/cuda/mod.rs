//! The fused operators on NVIDIA GPUs: the same functions as in [`crate::ops`], forward and backward, as CUDA kernels
//! (`kernels/`) and cuBLASLt products.
//!
//! Activations are float32 or bfloat16, sums float32; parameters are float32 master values with, for bfloat16, a copy
//! that the optimiser writes.  Tokens of both views of a batch lie behind each other in one (rows, D) matrix, so that
//! a layer is one product whatever the views' lengths.  Gradients of parameters are added to one flat vector instead
//! of passing through Candle's gradient store.
//!
//! Everything is queued on one stream; nothing here waits for the device, so a whole step can be captured.

mod address;
mod attention;
mod capture;
mod copy;
pub mod engine;
pub mod gemm;
pub mod layers;
pub mod memory;
pub mod node;
pub mod places;
mod real;
mod rows;
mod spans;
pub mod stack;

pub use address::{address, address_or_null, slice_address};
pub use engine::Engine;
pub use real::Real;
pub use spans::{Spans, rows_of};
