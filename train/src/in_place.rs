//! Operations that change a tensor's values where they are.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use crate::ops::update;

/// The values of an f32 tensor on the CPU, writable.
///
/// # Errors
/// The tensor has another dtype.
pub(crate) fn f32_mut(storage: &mut CpuStorage) -> Result<&mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => candle_core::bail!("expected f32 values"),
    }
}

/// average = momentum average + (1 - momentum) values.
///
/// # Errors
/// Tensors of different sizes.
pub(crate) fn moving_average(average: &Tensor, values: &Tensor, momentum: f32) -> Result<()> {
    average.inplace_op2(values, &MovingAverage { momentum })
}

struct MovingAverage {
    momentum: f32,
}

impl InplaceOp2 for MovingAverage {
    fn name(&self) -> &'static str {
        "moving_average"
    }

    fn cpu_fwd(&self, average: &mut CpuStorage, _: &Layout, values: &CpuStorage, _: &Layout) -> Result<()> {
        let values = values.as_slice::<f32>()?;
        update::moving_average(f32_mut(average)?, values, self.momentum);
        Ok(())
    }
}
