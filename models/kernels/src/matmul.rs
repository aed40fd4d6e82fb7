//! Row-major `f32` matrix products with the `gemm` crates.
//!
//! `gemm-f32` is used directly: `gemm` also compiles f64, half-precision and complex products, which takes a minute.

use gemm_common::Parallelism;
use gemm_f32::gemm::f32::get_gemm_fn;

/// A view of a matrix in a slice, with a stride between rows and one between columns.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// A contiguous row-major matrix of `rows` x `cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix of `rows` x `cols` whose rows start `row_stride` values apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "matrix exceeds its memory");
        MatrixView { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, as a view: no value is moved.
    pub fn t(self) -> Self {
        MatrixView {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Whether a product uses all threads or only the calling one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// Uses all threads of the rayon pool if the product is large enough.
    All,
    /// Uses the calling thread only, for callers that run many products in parallel.
    One,
}

/// `out = accumulate * out + scale * a . b`; rows of `out` start `out_stride` values apart.
///
/// # Shapes
/// `a` (m, k), `b` (k, n), `out` (m, n).
///
/// # Examples
/// ```
/// use macrl_kernels::{MatrixView, Threads, matmul};
///
/// let a = MatrixView::new(&[1.0, 2.0, 3.0, 4.0], 2, 2);
/// let mut out = [0.0; 4];
/// matmul(a, a.t(), 1.0, false, &mut out, 2, Threads::One);
/// assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
/// ```
pub fn matmul(
    a: MatrixView,
    b: MatrixView,
    scale: f32,
    accumulate: bool,
    out: &mut [f32],
    out_stride: usize,
    threads: Threads,
) {
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
    // As `gemm` does before it dispatches: its kernels are fastest if the result's columns are contiguous, and the
    // transpose of a row-major matrix has contiguous columns.
    let (m, n, a, b, [columns, rows]) = match out_stride {
        0 | 1 => (m, n, a, b, [1, out_stride]),
        _ => (n, m, b.t(), a.t(), [out_stride, 1]),
    };
    // SAFETY: the three asserts above and those of `MatrixView::strided` keep every access inside the slices, and `out`
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
