//! What only training computes: the two losses with their gradients, and the updates of whole vectors.
//!
//! [`losses`] chooses between the CPU's operators and those in `crate::cuda`.  As in [`macrl_nn::ops`], results do not
//! depend on the number of threads.

pub mod info_nce;
pub mod l1;
pub mod losses;
pub mod muon;
pub mod update;
