//! The memory bank on a GPU.

use candle_core::{Result, Tensor, bail};
use macrl_nn::cuda::{Engine, ScalarType, address};

use super::flat::{StepNumbers, u32_address};
use super::kernels::launch;

/// The memory bank on the device.
#[derive(Debug, Clone)]
pub struct DeviceBank {
    /// (M, C): the keys; those not filled yet are 0.
    pub keys: Tensor,
    /// (M) u32: the image that each key came from; `u32::MAX` where no key has been written yet.
    pub images: Tensor,
}

impl DeviceBank {
    /// Queues the entry of a batch of keys, `offset` keys behind [`StepNumbers::bank_next`].  Nothing changes where `stopped`
    /// holds 1.
    ///
    /// # Shapes
    /// `keys` (B, C), `images` (B) u32, `step` u32 words that begin with the [`StepNumbers`], `stopped` (1) u32.
    ///
    /// # Errors
    /// Shapes that do not fit, or a launch that fails.
    pub fn push(&self, keys: &Tensor, images: &Tensor, step: &Tensor, stopped: &Tensor, offset: usize) -> Result<()> {
        let (batch, width) = keys.dims2()?;
        let capacity = self.images.elem_count();
        if images.elem_count() != batch || self.keys.dims() != [capacity, width] || self.keys.dtype() != keys.dtype() {
            bail!("a batch of {batch} keys of {width} for a bank of {:?}", self.keys.shape())
        }
        let (engine, scalar) = (Engine::at(keys.device())?, ScalarType::of(keys.dtype())?);
        let next = StepNumbers::address(step)? + std::mem::offset_of!(StepNumbers, bank_next) as u64;
        let stopped = u32_address(stopped, 1)?;
        // SAFETY: types and sizes were compared; the kernel takes the index of the next key modulo the capacity.
        unsafe {
            launch!(
                engine, scalar.kernel("bank_push"), (batch as u32, 1), 128, 0;
                address(keys)?, address(images)?, address(&self.keys)?, address(&self.images)?, next, stopped, offset as i32,
                batch as i32, capacity as i32, width as i32,
            )
        }
    }
}
