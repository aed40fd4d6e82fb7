//! Row-major matrix products over the `gemm` crates.
//!
//! Only the one for `f32` is built: `gemm` itself brings f64, halves and complex numbers, which cost a minute to compile.

use gemm_common::Parallelism;
use gemm_f32::gemm::f32::get_gemm_fn;

/// A matrix in memory: pointer to the first element by slice, distance between rows and between columns.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `rows` x `cols`, rows behind each other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows` x `cols`, `row_stride` values from one row to the next.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix exceeds its memory");
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose; nothing is moved.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Whether a product uses all threads or only the calling one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Split over the rayon pool where it is large enough to pay.
    All,
    /// The caller runs many products side by side.
    One,
}

/// `out = accumulate * out + scale * a . b`, `out` with `out_stride` values from row to row.
///
/// # Shapes
/// `a` (m, k), `b` (k, n), `out` (m, n).
///
/// # Examples
/// ```
/// use macrl_kernels::{Mat, Threads, matmul};
///
/// let a = Mat::new(&[1.0, 2.0, 3.0, 4.0], 2, 2);
/// let mut out = [0.0; 4];
/// matmul(a, a.t(), 1.0, false, &mut out, 2, Threads::One);
/// assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
/// ```
pub fn matmul(a: Mat, b: Mat, scale: f32, accumulate: bool, out: &mut [f32], out_stride: usize, threads: Threads) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions differ");
    assert!(m == 0 || n == 0 || (m - 1) * out_stride + n <= out.len(), "result exceeds its memory");
    let worth_splitting = m * n * k > 1 << 18;
    let parallelism = match threads {
        Threads::All if worth_splitting && rayon::current_num_threads() > 1 => {
            Parallelism::Rayon(rayon::current_num_threads())
        }
        _ => Parallelism::None,
    };
    // `gemm` does the same in front of its dispatch: its kernels like results whose columns lie behind each other, which
    // a row-major matrix's transpose is.
    let (m, n, a, b, [columns, rows]) = match out_stride {
        0 | 1 => (m, n, a, b, [1, out_stride]),
        _ => (n, m, b.t(), a.t(), [out_stride, 1]),
    };
    // SAFETY: the three asserts above and those of `Mat::strided` keep every access inside the slices, and `out`
    // is borrowed mutably, so it overlaps neither input.
    unsafe {
        get_gemm_fn()(
            m,
            n,
            k,
            out.as_mut_ptr(),
            columns as isize,
            rows as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
