//! The Cholesky factor of a symmetric positive definite matrix, computed in blocks, and products with its inverse.

use rayon::prelude::*;

use super::matrix::{BLOCK, View, accumulate, dot, multiply};

/// The lower triangle L, row-major, of a symmetric positive definite matrix L L^T (D, D).  Pivots that rounding has made too
/// small are raised, so that the factor always exists.
pub(crate) fn cholesky(a: Vec<f64>, dim: usize) -> Vec<f64> {
    factor(a, dim, |square, largest| square.max(1e-12 * largest).sqrt())
}

/// The same for a positive semidefinite matrix.  A row that depends on earlier rows gets an infinite pivot, so that its column
/// is zero and a division by it gives zero.
pub(crate) fn semidefinite(a: Vec<f64>, dim: usize) -> Vec<f64> {
    // An exact zero becomes at most this in single precision: 1e-7 squared, times the number of rows.
    factor(a, dim, |square, largest| if square > 1e-10 * largest { square.sqrt() } else { f64::INFINITY })
}

/// `pivot` gives L's diagonal entry from the reduced one and the largest diagonal entry of the matrix.
fn factor(mut a: Vec<f64>, dim: usize, pivot: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let largest = (0..dim).map(|i| a[i * dim + i]).fold(f64::MIN_POSITIVE, f64::max);
    for first in (0..dim).step_by(BLOCK) {
        let (end, width) = ((first + BLOCK).min(dim), BLOCK.min(dim - first));
        let (upper, below) = a.split_at_mut(end * dim);
        let corner = &mut upper[first * dim..];
        for j in 0..width {
            let (above, rest) = corner.split_at_mut((j + 1) * dim);
            let row = &mut above[j * dim + first..j * dim + end];
            let pivot = pivot(row[j] - dot(&row[..j], &row[..j]), largest);
            row[j] = pivot;
            rest.chunks_mut(dim).for_each(|other| {
                let other = &mut other[first..end];
                other[j] = (other[j] - dot(&other[..j], &row[..j])) / pivot;
            });
        }
        below.par_chunks_mut(dim).with_min_len(16).for_each(|other| {
            let other = &mut other[first..end];
            for j in 0..width {
                let row = &corner[j * dim + first..j * dim + first + j + 1];
                other[j] = (other[j] - dot(&other[..j], &row[..j])) / row[j];
            }
        });
        // Subtract the contribution of these columns from the rest of the triangle: one matrix product.
        let panel: Vec<f64> = below.chunks(dim).flat_map(|row| row[first..end].iter().copied()).collect();
        below.par_chunks_mut(BLOCK * dim).enumerate().for_each(|(block, out)| {
            let (start, rows) = (block * BLOCK, out.len() / dim);
            let own = View::new(&panel[start * width..(start + rows) * width], rows, width);
            let all = View::new(&panel[..(start + rows) * width], start + rows, width);
            accumulate(own, all.transposed(), &mut out[end..], dim, 1.0, -1.0, true);
        });
    }
    (0..dim).for_each(|i| a[i * dim + i + 1..(i + 1) * dim].fill(0.0));
    a
}

/// A Cholesky factor L (D, D) in single precision, to multiply rows by the inverse of L L^T.
pub(crate) struct Inverse {
    lower: Vec<f32>,
    dim: usize,
}

impl Inverse {
    /// Factors a symmetric positive definite matrix (D, D).
    pub(crate) fn new(matrix: Vec<f64>, dim: usize) -> Self {
        Inverse { lower: cholesky(matrix, dim).into_iter().map(|x| x as f32).collect(), dim }
    }

    /// Replaces every row x (D) by (L L^T)^-1 x.
    ///
    /// # Shapes
    /// rows (n, D).
    pub(crate) fn apply(&self, rows: &mut [f32]) {
        // As few parts as there are threads: each part reads the whole factor.
        let part = rows.len().div_ceil(self.dim).div_ceil(4).clamp(4, 16);
        rows.par_chunks_mut(part * self.dim).for_each(|rows| {
            self.forward(rows);
            self.backward(rows);
        });
    }

    /// Solves L y = x, block of columns by block of columns.
    fn forward(&self, rows: &mut [f32]) {
        let (dim, count) = (self.dim, rows.len() / self.dim);
        for first in (0..dim).step_by(BLOCK) {
            let width = BLOCK.min(dim - first);
            let before = View::block(&self.lower[first * dim..], width, first, dim).transposed();
            self.subtract(rows, (0, first), before, first..first + width);
            for row in 0..count {
                let x = &mut rows[row * dim + first..row * dim + first + width];
                for j in 0..width {
                    let l = &self.lower[(first + j) * dim + first..][..j + 1];
                    let known: f32 = l[..j].iter().zip(&x[..j]).map(|(l, x)| l * x).sum();
                    x[j] = (x[j] - known) / l[j];
                }
            }
        }
    }

    /// Solves L^T x = y, from the last block of columns to the first.
    fn backward(&self, rows: &mut [f32]) {
        let (dim, count) = (self.dim, rows.len() / self.dim);
        for first in (0..dim).step_by(BLOCK).rev() {
            let (width, end) = (BLOCK.min(dim - first), (first + BLOCK).min(dim));
            if end < dim {
                let behind = View::block(&self.lower[end * dim + first..], dim - end, width, dim);
                self.subtract(rows, (end, dim - end), behind, first..end);
            }
            for row in 0..count {
                let x = &mut rows[row * dim + first..row * dim + first + width];
                for j in (0..width).rev() {
                    x[j] /= self.lower[(first + j) * dim + first + j];
                    let (before, own) = x.split_at_mut(j);
                    let l = &self.lower[(first + j) * dim + first..][..j];
                    before.iter_mut().zip(l).for_each(|(x, l)| *x -= own[0] * l);
                }
            }
        }
    }

    /// Subtracts from the columns `to` of the rows the product of `count` columns, beginning with `from`, and `factor` (count, columns).
    fn subtract(&self, rows: &mut [f32], (from, count): (usize, usize), factor: View, to: std::ops::Range<usize>) {
        if count == 0 {
            return;
        }
        let (dim, n) = (self.dim, rows.len() / self.dim);
        let mut known = vec![0.0f32; n * to.len()];
        multiply(View::block(&rows[from..], n, count, dim), factor, &mut known, 0.0);
        for (row, known) in rows.chunks_exact_mut(dim).zip(known.chunks_exact(to.len())) {
            row[to.clone()].iter_mut().zip(known).for_each(|(x, k)| *x -= k);
        }
    }
}

/// x L^-1 for every row x (D), given L (D, D) row-major.
pub(crate) fn divide(rows: &mut [f64], lower: &[f64], dim: usize) {
    rows.par_chunks_mut(dim).for_each(|x| {
        for j in (0..dim).rev() {
            x[j] /= lower[j * dim + j];
            let (before, own) = x.split_at_mut(j);
            before.iter_mut().zip(&lower[j * dim..]).for_each(|(x, l)| *x -= own[0] * l);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::matrix::gram;
    use crate::evaluate::testing::draws;

    /// X^T X / n of fixed numbers, with a tenth more on its diagonal (D, D).
    fn positive(dim: usize) -> Vec<f64> {
        let mut a = gram(&draws(2 * dim * dim, 3), dim);
        (0..dim).for_each(|i| a[i * dim + i] += 0.1);
        a
    }

    #[test]
    fn cholesky_solves() {
        // np.linalg.solve([[4, 2, 1], [2, 5, 3], [1, 3, 6]], [1, 2, 3])       # [0.08955224, 0.10447761, 0.43283582]
        let matrix = vec![4.0, 2.0, 1.0, 2.0, 5.0, 3.0, 1.0, 3.0, 6.0];
        let mut x = [1.0, 2.0, 3.0];
        Inverse::new(matrix.clone(), 3).apply(&mut x);
        for (x, y) in x.iter().zip([0.08955224, 0.10447761, 0.43283582]) {
            assert!((x - y).abs() < 1e-6, "{x}");
        }
        let lower = cholesky(matrix, 3);
        let mut x = [1.0, 2.0, 3.0];
        divide(&mut x, &lower, 3);
        let back: Vec<f64> = (0..3).map(|j| (0..3).map(|i| x[i] * lower[i * 3 + j]).sum()).collect();
        assert!(back.iter().zip([1.0, 2.0, 3.0]).all(|(x, y)| (x - y).abs() < 1e-12), "{back:?}");
    }

    #[test]
    fn blocks_do_not_show() {
        for dim in [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37] {
            let matrix = positive(dim);
            let lower = cholesky(matrix.clone(), dim);
            for (i, j) in [(0, 0), (dim - 1, dim - 1), (dim - 1, 0), (dim - 1, dim / 2), (dim / 2, dim / 3)] {
                let product = dot(&lower[i * dim..][..dim], &lower[j * dim..][..dim]);
                assert!((product - matrix[i * dim + j]).abs() < 1e-9, "{dim}: {i}, {j}");
            }
            assert!(lower.iter().enumerate().all(|(at, x)| at % dim <= at / dim || *x == 0.0));
            let expected = draws(20 * dim, 4);
            let mut rows = vec![0.0f32; 20 * dim];
            let narrow: Vec<f32> = matrix.iter().map(|x| *x as f32).collect();
            multiply(View::new(&expected, 20, dim), View::new(&narrow, dim, dim), &mut rows, 0.0);
            Inverse::new(matrix, dim).apply(&mut rows);
            let worst = rows.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{dim}: {worst}");
        }
    }
}
