//! What only training computes on a GPU: the losses, the optimisers over flat vectors, and making the views.  The network's
//! operators are in [`macrl_nn::cuda`], the steps in [`crate::step::gpu`].

mod batched;
pub mod flat;
mod kernels;
pub mod losses;
mod muon;
pub mod views;
