//! The number format of activations.

use candle_core::{DType, Result, bail};

/// Number format of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScalarType {
    /// 32-bit floating point.
    F32,
    /// bfloat16: the upper 16 bits of a float32.
    Bf16,
}

impl ScalarType {
    /// The number format of a tensor's dtype.
    ///
    /// # Errors
    /// The dtype is neither f32 nor bf16.
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(ScalarType::F32),
            DType::BF16 => Ok(ScalarType::Bf16),
            other => bail!("the CUDA operators compute in f32 or bf16, found {other:?}"),
        }
    }

    /// Candle's dtype of the same format.
    pub fn dtype(self) -> DType {
        match self {
            ScalarType::F32 => DType::F32,
            ScalarType::Bf16 => DType::BF16,
        }
    }

    /// Size of a value in bytes.
    pub fn size(self) -> usize {
        match self {
            ScalarType::F32 => 4,
            ScalarType::Bf16 => 2,
        }
    }

    /// Name of the kernel's variant for this format: `NAME_f32` or `NAME_bf16`.
    pub fn kernel(self, name: &str) -> String {
        match self {
            ScalarType::F32 => format!("{name}_f32"),
            ScalarType::Bf16 => format!("{name}_bf16"),
        }
    }
}
