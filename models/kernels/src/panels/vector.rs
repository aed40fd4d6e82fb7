//! One register of `f32` values, for each instruction set that products are compiled for.

/// One register of `f32` values.
///
/// # Safety
/// Every method needs a processor with the type's instruction set; [`Vector::load`] and [`Vector::store`] also need a
/// pointer that is valid for `LANES` values.
pub(super) trait Vector: Copy {
    /// Values in a register.
    const LANES: usize;
    /// Largest number of registers in a row of a tile.
    const WIDEST: usize;
    /// Registers that the sums of a tile may take; the others hold columns of B and a value of A.
    const SUMS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * by + sum`.
    unsafe fn mul_add(self, by: Self, sum: Self) -> Self;

    /// Rows of a tile that is `vectors` registers wide; for more than 8 the addresses would not fit into registers.
    #[inline(always)]
    fn rows(vectors: usize) -> usize {
        (Self::SUMS / vectors).min(8)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_storeu_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Vector;

    macro_rules! vector {
        ($type:ty, $lanes:literal, $widest:literal, $sums:literal, $splat:ident, $load:ident, $store:ident, $mul:ident, $mul_add:ident) => {
            // SAFETY: each method's caller keeps to the contract of the trait, which is that of the instruction.
            impl Vector for $type {
                const LANES: usize = $lanes;
                const WIDEST: usize = $widest;
                const SUMS: usize = $sums;

                #[inline(always)]
                unsafe fn splat(value: f32) -> Self {
                    unsafe { $splat(value) }
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    unsafe { $mul(self, other) }
                }
                #[inline(always)]
                unsafe fn mul_add(self, by: Self, sum: Self) -> Self {
                    unsafe { $mul_add(self, by, sum) }
                }
            }
        };
    }

    // 32 registers: 24 sums, 4 of B, 1 of A.
    vector! {
        __m512, 16, 4, 24, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_mul_ps, _mm512_fmadd_ps
    }
    // 16 registers: 12 sums, 2 of B, 1 of A.
    vector! {
        __m256, 8, 2, 12, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_mul_ps, _mm256_fmadd_ps
    }
}

/// Eight values that the compiler puts into the registers of the baseline instruction set, two of four values each.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Vector for Plain {
    const LANES: usize = 8;
    // 64-bit ARM has 32 registers, x86-64 without AVX has 16.
    const WIDEST: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };
    const SUMS: usize = if cfg!(target_arch = "aarch64") { 12 } else { 4 };

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Plain([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 8 values.
        Plain(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Self, sum: Self) -> Self {
        const FMA: bool = cfg!(target_arch = "aarch64");
        Plain(std::array::from_fn(|i| crate::simd::fma::<FMA>(self.0[i], by.0[i], sum.0[i])))
    }
}
