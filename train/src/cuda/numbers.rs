//! Numbers that the kernels of an update read; each mirrors a struct in `update.cuh`.

use bytemuck::{Pod, Zeroable};
use candle_core::cuda::cudarc::driver::DeviceRepr;

/// What changes from step to step; mirrors `StepNumbers` in `update.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
pub struct StepNumbers {
    /// Learning rate of AdamW.
    pub lr: f32,
    /// Momentum of the moving average.
    pub momentum: f32,
    /// 1 - beta^t for both betas.
    pub corrections: [f32; 2],
    /// Index of the bank's next key.
    pub bank_next: u32,
    /// Row of the ring for this step's numbers.
    pub slot: u32,
    /// Learning rate of Muon.
    pub muon_lr: f32,
    /// Fills the structure up to the size that the kernel reads.
    pub unused: u32,
}

/// What is the same in all steps; mirrors `UpdateNumbers`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct UpdateNumbers {
    pub(super) betas: [f32; 2],
    pub(super) eps: f32,
    pub(super) weight_decay: f32,
    pub(super) clip: f32,
    pub(super) share: f32,
    pub(super) first_projector: u32,
    pub(super) first_decoder: u32,
    pub(super) total: u32,
    pub(super) keys: u32,
}

// SAFETY: plain numbers in C's order.
unsafe impl DeviceRepr for StepNumbers {}
// SAFETY: plain numbers in C's order.
unsafe impl DeviceRepr for UpdateNumbers {}

const _: () = assert!(size_of::<StepNumbers>() == 32 && size_of::<UpdateNumbers>() == 40, "update.cuh says so");
