//! Arithmetic on plain slices: vectorised loops, matrix products, working memory that is used again, random numbers, and
//! vectors drawn in two dimensions.
//!
//! Nothing here knows tensors or files.

pub mod buffer;
pub mod matmul;
pub mod projection;
pub mod rng;
pub mod simd;

pub use matmul::{Mat, Threads, matmul};
pub use projection::{Projection, project};
pub use rng::Rng;
