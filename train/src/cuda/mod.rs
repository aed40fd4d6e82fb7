//! What only training computes on a GPU: the losses, the optimisers over flat vectors, and making the views.  The network's
//! operators are in [`macrl_nn::cuda`], the steps in [`crate::step::gpu`].

pub mod bank;
mod batched;
pub mod flat;
pub mod info_nce;
mod kernels;
pub mod l1;
mod muon;
mod numbers;
pub mod views;
