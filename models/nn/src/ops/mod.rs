//! Fused operators of the network, each with its forward and its backward pass in one place.
//!
//! The arithmetic works on plain row-major `f32` slices ([`linear`], [`layer_norm`], [`activation`], [`attention`],
//! [`block`]); [`graph`] wraps what the network calls as Candle operators, so that Candle's `backward` drives them.  One
//! transformer block is one operator: Candle adds a zero-fill and an addition to every edge of the gradient graph, and a
//! coarse graph has few edges.  [`tokens`] is what the network calls: it chooses between these and the GPU's operators.
//!
//! All results are independent of the number of threads: work is split into parts of a fixed size, and partial
//! sums are added up in the order of the parts.

pub mod activation;
pub mod attention;
pub mod block;
pub mod graph;
pub mod layer_norm;
pub mod linear;
pub mod tokens;

/// Rows that one parallel part of a row-wise pass handles: fixed, so that sums do not depend on the thread count.
pub(crate) const ROWS_PER_PART: usize = 64;
