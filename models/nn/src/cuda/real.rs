//! The number format of activations.

use candle_core::{DType, Result, bail};

/// Storage of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Real {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Real {
    /// Of a tensor.
    ///
    /// # Errors
    /// Another dtype.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Real::F32),
            DType::BF16 => Ok(Real::Bf16),
            other => bail!("the CUDA operators compute in f32 or bf16, found {other:?}"),
        }
    }

    /// Candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Real::F32 => DType::F32,
            Real::Bf16 => DType::BF16,
        }
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Real::F32 => 4,
            Real::Bf16 => 2,
        }
    }

    /// `NAME_f32` or `NAME_bf16`.
    pub fn kernel(self, name: &str) -> String {
        match self {
            Real::F32 => format!("{name}_f32"),
            Real::Bf16 => format!("{name}_bf16"),
        }
    }
}
