//! This crate's kernels (`kernels/`): views, losses, updates.

use macrl_nn::cuda::engine::Kernels;

pub(super) static KERNELS: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// [`macrl_nn::launch_from!`] with this crate's kernels.
macro_rules! launch {
    ($($all:tt)*) => { macrl_nn::launch_from!($crate::cuda::kernels::KERNELS; $($all)*) };
}
pub(super) use launch;
