//! Arithmetic on plain slices: vectorised loops, matrix products, a buffer pool, random numbers, L-BFGS, and a
//! projection to two dimensions.
//!
//! This crate knows neither tensors nor files.

pub mod bf16;
pub mod buffer;
pub mod lbfgs;
pub mod matmul;
pub mod panels;
pub mod projection;
pub mod rng;
pub mod simd;

pub use matmul::{MatrixView, Threads, matmul};
pub use panels::{Panels, Start, product};
pub use projection::{Projection, project};
pub use rng::Rng;
