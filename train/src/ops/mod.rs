//! What only training computes: the losses with their gradients, and the updates of whole vectors.
//!
//! [`contrast`] and [`reconstruction`] choose between the CPU's operators and those in `crate::cuda`.  As in [`macrl_nn::ops`], results do not
//! depend on the number of threads.

pub mod contrast;
pub mod info_nce;
pub mod l1;
pub mod muon;
pub mod reconstruction;
pub mod update;
