//! Fused operators of the network; each file has the forward and the backward pass of one.
//!
//! The arithmetic works on row-major `f32` slices ([`linear`], [`layer_norm`], [`activation`], [`attention`],
//! [`block`]).  [`graph`] wraps the operators for Candle's `backward`.  A whole transformer block is one operator,
//! because Candle adds a zero-fill and an addition to every edge of the gradient graph.  The network calls [`tokens`],
//! which selects these operators or the GPU's.
//!
//! Results do not depend on the number of threads: work is divided into parts of a fixed size, and partial sums are
//! added in the order of the parts.  A part is large enough to be worth a task and small enough for the cache of a core.

pub mod activation;
pub mod attention;
pub mod block;
pub mod graph;
pub mod layer_norm;
pub mod linear;
pub mod tokens;

/// Rows in one parallel part of a row-wise pass; fixed, so that sums do not depend on the number of threads.
pub(crate) const ROWS_PER_PART: usize = 64;
