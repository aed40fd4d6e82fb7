//! Matrix products and eigenvalues on plain slices.

pub(crate) use macrl_kernels::lbfgs::dot;
use rayon::prelude::*;

/// Rows or columns of a block; a block of each operand fits into the cache.
pub(super) const BLOCK: usize = 128;
/// Gram matrices narrower than this are summed over parts of the rows, each with a D x D sum; wider ones are computed in blocks of
/// columns.
const NARROW: usize = 512;

/// A matrix in a slice; transposing only swaps the strides.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// A row-major matrix (rows, columns).
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a {rows} x {columns} matrix");
        View { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The block (rows, columns) at the front of `data`, whose rows are `stride` values apart.
    pub(crate) fn block(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows == 0 || (columns <= stride && (rows - 1) * stride + columns <= data.len()), "a block's end");
        View { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// (columns, rows) of the same values.
    pub(crate) fn transposed(self) -> Self {
        View {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// out = keep * out + a b, on one thread; out is (a's rows, b's columns), row-major.
pub(crate) fn multiply(a: View, b: View, out: &mut [f32], keep: f32) {
    assert_eq!(out.len(), a.rows * b.columns, "shape of the product");
    let stride = b.columns;
    accumulate(a, b, out, stride, keep, 1.0, keep != 0.0);
}

/// out = keep * out + scale * a b on one thread, the rows of out `stride` values apart; the old values of out are used only
/// where `read` is true.
pub(super) fn accumulate<T: Copy + 'static>(
    a: View<T>,
    b: View<T>,
    out: &mut [T],
    stride: usize,
    keep: T,
    scale: T,
    read: bool,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    assert!(b.columns <= stride && (a.rows - 1) * stride + b.columns <= out.len(), "room for the product");
    // SAFETY: the views' strides stay inside their slices (checked where they are made, kept by `transposed`), and the
    // result's are checked above; `out` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride as isize,
            read,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            keep,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// X^T X / n of rows (n, D), as (D, D); each part in `f32`, their sum in `f64` in a fixed order.
pub(crate) fn gram(values: &[f32], dim: usize) -> Vec<f64> {
    let n = values.len() / dim;
    if dim > NARROW {
        return wide_gram(values, dim);
    }
    // Few parts, since each holds D x D; a fixed number of them, so that threads don't change the sum.
    let rows_per_part = n.div_ceil(8).max(1);
    let parts: Vec<Vec<f32>> = values
        .par_chunks(rows_per_part * dim)
        .map(|part| {
            let mut out = vec![0.0; dim * dim];
            for block in part.chunks(1024 * dim) {
                let block = View::new(block, block.len() / dim, dim);
                multiply(block.transposed(), block, &mut out, 1.0);
            }
            out
        })
        .collect();
    let mut sum = vec![0.0f64; dim * dim];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(p) / n as f64);
    }
    sum
}

/// The same for wide rows: blocks of the lower triangle in parallel, then mirrored.
fn wide_gram(values: &[f32], dim: usize) -> Vec<f64> {
    let n = values.len() / dim;
    let mut sum = vec![0.0f64; dim * dim];
    sum.par_chunks_mut(BLOCK * dim).enumerate().for_each(|(block, out)| {
        let (first, rows) = (block * BLOCK, out.len() / dim);
        let width = first + rows;
        let mut part = vec![0.0f32; rows * width];
        for chunk in values.chunks(4096 * dim) {
            let count = chunk.len() / dim;
            let own = View::block(&chunk[first..], count, rows, dim).transposed();
            multiply(own, View::block(chunk, count, width, dim), &mut part, 0.0);
            for (out, part) in out.chunks_exact_mut(dim).zip(part.chunks_exact(width)) {
                out.iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(*p) / n as f64);
            }
        }
    });
    for i in 0..dim {
        for j in i + 1..dim {
            sum[i * dim + j] = sum[j * dim + i];
        }
    }
    sum
}

/// X X^T of rows (n, D), as (n, n).
pub(crate) fn products(values: &[f64], dim: usize) -> Vec<f64> {
    let n = values.len() / dim;
    let mut out = vec![0.0f64; n * n];
    out.par_chunks_mut(BLOCK * n).zip(values.par_chunks(BLOCK * dim)).for_each(|(out, own)| {
        let all = View::new(values, n, dim).transposed();
        accumulate(View::new(own, own.len() / dim, dim), all, out, n, 0.0, 1.0, false);
    });
    out
}

/// Eigenvalues of a symmetric matrix (D, D), in no order: Householder's reduction to three diagonals, then QL steps
/// with implicit shifts (EISPACK's tred1 and tql1).
pub(crate) fn eigenvalues(a: Vec<f64>, dim: usize) -> Vec<f64> {
    let (mut diagonal, mut beside) = tridiagonal(a, dim);
    for l in 0..dim {
        // Convergence is cubic; thirty steps are never needed for finite input.
        for _ in 0..50 {
            let m = (l..dim.saturating_sub(1))
                .find(|&m| beside[m].abs() <= f64::EPSILON * (diagonal[m].abs() + diagonal[m + 1].abs()))
                .unwrap_or(dim - 1);
            if m == l {
                break;
            }
            ql_step(&mut diagonal, &mut beside, l, m);
        }
    }
    diagonal
}

/// One implicit QL step on rows l..=m.
fn ql_step(diagonal: &mut [f64], beside: &mut [f64], l: usize, m: usize) {
    let mut g = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
    let r = g.hypot(1.0);
    g = diagonal[m] - diagonal[l] + beside[l] / (g + r.copysign(g));
    let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let f = sine * beside[i];
        let b = cosine * beside[i];
        let r = f.hypot(g);
        beside[i + 1] = r;
        if r == 0.0 {
            diagonal[i + 1] -= p;
            beside[m] = 0.0;
            return;
        }
        sine = f / r;
        cosine = g / r;
        let h = diagonal[i + 1] - p;
        let t = (diagonal[i] - h) * sine + 2.0 * cosine * b;
        p = sine * t;
        diagonal[i + 1] = h + p;
        g = cosine * t - b;
    }
    diagonal[l] -= p;
    beside[l] = g;
    beside[m] = 0.0;
}

/// The diagonal (D) and the one beside it (D, last unused) of a similar tridiagonal matrix.
fn tridiagonal(mut a: Vec<f64>, dim: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; dim];
    for k in 0..dim.saturating_sub(2) {
        // Reflect column k below the diagonal onto its first coordinate: v is the mirror's normal.
        let mut v: Vec<f64> = (k + 1..dim).map(|i| a[i * dim + k]).collect();
        let length = dot(&v, &v).sqrt();
        beside[k] = -length.copysign(v[0]);
        v[0] -= beside[k];
        let square = dot(&v, &v);
        if square == 0.0 {
            continue;
        }
        // With w = 2 (A v - (v.A v / v.v) v) / v.v the mirrored block is A - v w^T - w v^T, for symmetric A.
        let block = &mut a[(k + 1) * dim..];
        let mut w: Vec<f64> = block.par_chunks(dim).with_min_len(64).map(|row| dot(&row[k + 1..], &v)).collect();
        let along = dot(&v, &w) / square;
        w.iter_mut().zip(&v).for_each(|(w, v)| *w = 2.0 * (*w - along * v) / square);
        block.par_chunks_mut(dim).with_min_len(64).enumerate().for_each(|(i, row)| {
            for (x, (v_j, w_j)) in row[k + 1..].iter_mut().zip(v.iter().zip(&w)) {
                *x -= v[i] * w_j + w[i] * v_j;
            }
        });
    }
    if dim >= 2 {
        beside[dim - 2] = a[(dim - 1) * dim + dim - 2];
    }
    ((0..dim).map(|i| a[i * dim + i]).collect(), beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::draws;

    #[test]
    fn products_of_transposes() {
        // numpy: a = [[1, 2, 3], [4, 5, 6]]; a @ a.T = [[14, 32], [32, 77]]; a.T @ a has 17, 22, 27 in its first row
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let view = View::new(&a, 2, 3);
        let mut out = [1.0; 4];
        multiply(view, view.transposed(), &mut out, 0.0);
        assert_eq!(out, [14.0, 32.0, 32.0, 77.0]);
        multiply(view, view.transposed(), &mut out, 1.0);
        assert_eq!(out, [28.0, 64.0, 64.0, 154.0]);
        assert_eq!(gram(&a, 3)[..3], [8.5, 11.0, 13.5]);
    }

    #[test]
    fn sums_of_products_agree() {
        let (n, dim) = (70, NARROW + 9);
        let x = draws(n * dim, 1);
        let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let (wide, rows) = (gram(&x, dim), products(&exact, dim));
        let column = |i: usize| (0..n).map(move |r| r * dim + i);
        for (i, j) in [(0, 0), (3, dim - 1), (dim - 1, 3), (200, 300)] {
            let exact: f64 = column(i).zip(column(j)).map(|(a, b)| f64::from(x[a]) * f64::from(x[b])).sum();
            assert!((wide[i * dim + j] - exact / n as f64).abs() < 1e-5);
        }
        for (i, j) in [(0, 0), (3, 69), (69, 3)] {
            let exact: f64 = (0..dim).map(|k| f64::from(x[i * dim + k]) * f64::from(x[j * dim + k])).sum();
            assert!((rows[i * n + j] - exact).abs() < 1e-9);
        }
    }

    // a = np.array([[4, 1, -2, 2], [1, 2, 0, 1], [-2, 0, 3, -2], [2, 1, -2, -1]])
    // np.linalg.eigvalsh(a)       # [-2.19751698, 1.08436446, 2.26853141, 6.84462111]
    #[test]
    fn eigenvalues_equal_lapack() {
        let a = vec![4.0, 1.0, -2.0, 2.0, 1.0, 2.0, 0.0, 1.0, -2.0, 0.0, 3.0, -2.0, 2.0, 1.0, -2.0, -1.0];
        let mut found = eigenvalues(a, 4);
        found.sort_by(f64::total_cmp);
        for (x, y) in found.iter().zip([-2.19751698, 1.08436446, 2.26853141, 6.84462111]) {
            assert!((x - y).abs() < 1e-8, "{found:?}");
        }
    }

    #[test]
    fn eigenvalues_of_degenerate_matrices() {
        assert_eq!(eigenvalues(vec![7.0], 1), [7.0]);
        assert_eq!(eigenvalues(vec![0.0; 9], 3), [0.0; 3]);
        let mut ones = eigenvalues(vec![1.0; 100], 10);
        ones.sort_by(f64::total_cmp);
        assert!((ones[9] - 10.0).abs() < 1e-12 && ones[..9].iter().all(|x| x.abs() < 1e-12), "{ones:?}");
    }
}
