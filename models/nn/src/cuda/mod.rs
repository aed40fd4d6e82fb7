//! The fused operators on NVIDIA GPUs: the functions of [`crate::ops`], forward and backward, as CUDA kernels
//! (`kernels/`) and cuBLASLt products.
//!
//! Activations are float32 or bfloat16, sums are float32.  Parameters are float32 master values; for bfloat16 the
//! optimiser also writes a bfloat16 copy.  The tokens of both views of a batch are consecutive rows of one (rows, D)
//! matrix, so that a layer is one product for views of any length.  Gradients of parameters are added to one flat
//! vector instead of passing through Candle's gradient store.
//!
//! All work is queued on one stream, and nothing here waits for the device, so a whole step can be captured.

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
mod rows;
mod scalar;
mod spans;
pub mod stack;

pub use address::{address, address_or_null, slice_address};
pub use engine::Engine;
pub use scalar::ScalarType;
pub use spans::{Spans, rows_of};
