//! Training steps: one contract, one implementation for each device.
//!
//! [`contract`] says what a step takes and gives, [`rule`] holds what all steps on the CPU share (pretraining's and
//! fine-tuning's), [`cpu`] makes pretraining's steps with it, and `gpu` makes the same steps on a GPU.

pub mod contract;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod rule;

use std::sync::Arc;

use anyhow::Result;
use candle_core::Device;
use macrl_bundle::config::Config;

use contract::Stepper;

use crate::data::Dataset;
use crate::state::State;

/// Starts making steps on a device, at the state's step; on a GPU the state's networks move there.
///
/// # Errors
/// Too few images for a batch, or a device that this build cannot train on.
pub fn open(device: &Device, data: Arc<dyn Dataset>, config: &Config, state: &mut State) -> Result<Box<dyn Stepper>> {
    match device {
        Device::Cpu => Ok(Box::new(cpu::CpuStepper::new(data, config, state.step)?)),
        #[cfg(feature = "cuda")]
        device => Ok(Box::new(gpu::GpuStepper::new(device, data, config, state)?)),
        #[cfg(not(feature = "cuda"))]
        other => anyhow::bail!("this build does not train on {other:?}"),
    }
}
