//! Copies of matrices in panels.

use rayon::prelude::*;

use super::Shape;
use crate::matmul::MatrixView;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Matrices of more values are copied by all threads.
const LARGE: usize = 1 << 16;

/// Writes panel after panel; columns of padding are 0.
pub(super) fn pack(matrix: MatrixView, shape: &Shape, out: &mut [f32]) {
    let depth = matrix.rows;
    if depth == 0 {
        return;
    }
    let size = shape.wide * shape.lanes * depth;
    let copy = |(index, out): (usize, &mut [f32])| {
        let first = index * shape.wide * shape.lanes;
        let width = out.len() / depth;
        let used = width.min(matrix.cols.saturating_sub(first));
        panel(matrix, first, used, width, out);
    };
    match out.len() > LARGE {
        true => out.par_chunks_mut(size).enumerate().for_each(copy),
        false => out.chunks_mut(size).enumerate().for_each(copy),
    }
}

/// One panel: `used` columns of the matrix from `first` on, padded to `width`.
fn panel(matrix: MatrixView, first: usize, used: usize, width: usize, out: &mut [f32]) {
    if used == 0 {
        return out.fill(0.0);
    }
    if matrix.col_stride == 1 {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let start = i * matrix.row_stride + first;
            out[..used].copy_from_slice(&matrix.data[start..start + used]);
            out[used..].fill(0.0);
        }
    } else {
        if used < width {
            out.chunks_exact_mut(width).for_each(|out| out[used..].fill(0.0));
        }
        let from = &matrix.data[first * matrix.col_stride..];
        columns(from, [matrix.row_stride, matrix.col_stride], used, width, out);
    }
}

/// Side of the square blocks that are transposed at once.
const SIDE: usize = 8;

/// The columns of a matrix whose columns are far apart, block by block.
fn columns(from: &[f32], strides: [usize; 2], used: usize, width: usize, out: &mut [f32]) {
    let [row, column] = strides;
    let depth = out.len() / width;
    let (whole_depth, whole) = match row {
        1 => (depth - depth % SIDE, used - used % SIDE),
        _ => (0, 0),
    };
    let transpose = block_transposition();
    for i in (0..whole_depth).step_by(SIDE) {
        for j in (0..whole).step_by(SIDE) {
            transpose(&from[j * column + i..], column, &mut out[i * width + j..], width);
        }
    }
    for i in 0..depth {
        let done = if i < whole_depth { whole } else { 0 };
        for j in done..used {
            out[i * width + j] = from[i * row + j * column];
        }
    }
}

type Transposition = fn(&[f32], usize, &mut [f32], usize);

/// The fastest function for this processor that transposes a block of 8 x 8 values; rows start the given strides apart.
fn block_transposition() -> Transposition {
    #[cfg(target_arch = "x86_64")]
    if level() != Level::Baseline {
        return avx2::transpose;
    }
    |from, from_stride, to, to_stride| {
        for r in 0..SIDE {
            for c in 0..SIDE {
                to[r * to_stride + c] = from[c * from_stride + r];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::SIDE;

    /// Only for processors with AVX2.
    pub(super) fn transpose(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        assert!(from.len() >= (SIDE - 1) * from_stride + SIDE && to.len() >= (SIDE - 1) * to_stride + SIDE);
        // SAFETY: the assert; the caller has checked the processor.
        unsafe { block(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride) }
    }

    /// # Safety
    /// Both pointers are valid for 8 rows of 8 values at their strides.
    #[target_feature(enable = "avx2")]
    unsafe fn block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        let mut rows = [_mm256_setzero_ps(); SIDE];
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            *row = unsafe { _mm256_loadu_ps(from.add(i * from_stride)) };
        }
        let pairs = |a: __m256, b: __m256| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
        let [p, q, r, s] = [0, 2, 4, 6].map(|i| pairs(rows[i], rows[i + 1]));
        let fours = |[a, b]: [__m256; 2], [c, d]: [__m256; 2]| {
            [
                _mm256_shuffle_ps::<0x44>(a, c),
                _mm256_shuffle_ps::<0xee>(a, c),
                _mm256_shuffle_ps::<0x44>(b, d),
                _mm256_shuffle_ps::<0xee>(b, d),
            ]
        };
        let (upper, lower) = (fours(p, q), fours(r, s));
        for i in 0..SIDE {
            let (a, b) = (upper[i % 4], lower[i % 4]);
            let row = if i < 4 { _mm256_permute2f128_ps::<0x20>(a, b) } else { _mm256_permute2f128_ps::<0x31>(a, b) };
            // SAFETY: the caller's contract.
            unsafe { _mm256_storeu_ps(to.add(i * to_stride), row) };
        }
    }
}
