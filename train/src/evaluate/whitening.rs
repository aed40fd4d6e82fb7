//! Whitening: a linear map, fitted without labels, after which features vary about equally in all directions.
//!
//! Cosines of raw features are dominated by a few directions in which all images differ; whitened features compare images
//! in all of them.

use rayon::prelude::*;

use super::cholesky::cholesky;
use super::features::{Features, Split};
use super::matrix::{View, gram, multiply};

/// Added to the variance in every direction, as a share of the mean variance: directions that hardly vary are mostly noise.
pub const DAMPING: f64 = 0.1;

/// z = (x - mean) W.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// W (D, D), row-major: W W^T is the inverse of the damped covariance.  W is only determined up to a rotation, which changes
    /// no cosine; here it is upper triangular.
    pub weight: Vec<f32>,
    /// (D), mean of the features that the map was fitted on.
    pub mean: Vec<f32>,
}

impl Whitening {
    /// Fits the map.
    ///
    /// # Shapes
    /// values (n, D), row-major.
    pub fn fit(values: &[f32], dim: usize) -> Self {
        let n = (values.len() / dim).max(1) as f64;
        let mut mean = vec![0.0f64; dim];
        values.chunks_exact(dim).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / n));
        let mut covariance = gram(values, dim);
        for (i, row) in covariance.chunks_exact_mut(dim).enumerate() {
            row.iter_mut().zip(&mean).for_each(|(c, m)| *c -= mean[i] * m);
        }
        let trace: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        let damping = (DAMPING * trace / dim as f64).max(f64::MIN_POSITIVE);
        (0..dim).for_each(|i| covariance[i * dim + i] += damping);
        let weight = inverse_transposed(&cholesky(covariance, dim), dim);
        Whitening { weight, mean: mean.into_iter().map(|m| m as f32).collect() }
    }

    /// Maps every row.
    ///
    /// # Shapes
    /// values (n, D) -> (n, D), row-major.
    pub fn apply(&self, values: &[f32]) -> Vec<f32> {
        const ROWS: usize = 256;
        let dim = self.mean.len();
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(ROWS * dim).zip(values.par_chunks(ROWS * dim)).for_each(|(out, rows)| {
            let centred: Vec<f32> =
                rows.chunks_exact(dim).flat_map(|row| row.iter().zip(&self.mean).map(|(x, m)| x - m)).collect();
            multiply(View::new(&centred, rows.len() / dim, dim), View::new(&self.weight, dim, dim), out, 0.0);
        });
        out
    }

    /// Both splits after the map.
    pub fn apply_to(&self, split: &Split) -> Split {
        let whitened = |f: &Features| Features { values: self.apply(&f.values), labels: f.labels.clone(), dim: f.dim };
        Split { train: whitened(&split.train), test: whitened(&split.test) }
    }
}

/// The transposed inverse (D, D) of a lower triangular matrix.
fn inverse_transposed(lower: &[f64], dim: usize) -> Vec<f32> {
    // Row i of the result is column i of the inverse: the solution of L x = e_i.
    let mut out = vec![0.0f32; dim * dim];
    out.par_chunks_mut(dim).enumerate().for_each(|(i, row)| {
        let mut x = vec![0.0f64; dim];
        for j in i..dim {
            let known: f64 = lower[j * dim + i..j * dim + j].iter().zip(&x[i..j]).map(|(l, x)| l * x).sum();
            x[j] = (if i == j { 1.0 } else { 0.0 } - known) / lower[j * dim + j];
        }
        row.iter_mut().zip(x).for_each(|(to, from)| *to = from as f32);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::draws;

    /// numpy: `c = np.cov(x.T, bias=True); l, u = np.linalg.eigh(c); w = u / np.sqrt(l + 0.1 * l.mean())`, and the cosines of
    /// `(x - x.mean(0)) @ w`.
    #[test]
    fn cosines_are_those_of_the_definition() {
        let x = [1.0, 2.0, 0.5, -1.0, 0.0, 3.0, 2.0, -2.0, 1.0, 0.0, 1.0, -1.0, 4.0, 0.5, 0.0];
        let whitening = Whitening::fit(&x, 3);
        let z = whitening.apply(&x);
        let cosine = |i: usize, j: usize| {
            let (a, b) = (&z[3 * i..3 * i + 3], &z[3 * j..3 * j + 3]);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        for (pair, expected) in [((0, 1), 0.0124489), ((0, 2), -0.978697), ((1, 4), -0.6081511), ((2, 3), -0.2022014)] {
            let found = cosine(pair.0, pair.1);
            assert!((found - expected).abs() < 1e-5, "{pair:?}: {found}, expected {expected}");
        }
    }

    #[test]
    fn every_direction_has_about_the_same_variance() {
        // Variances of 33.3 and 0.33, and a damping of 1.68: 33.3 / 35.0 and 0.33 / 2.01 remain.
        let x: Vec<f32> = draws(4000, 5).chunks(2).flat_map(|pair| [10.0 * pair[0], pair[1]]).collect();
        let z = Whitening::fit(&x, 2).apply(&x);
        let covariance = gram(&z, 2);
        assert!(covariance[1].abs() < 1e-3, "{covariance:?}");
        assert!((0.94..0.97).contains(&covariance[0]) && (0.15..0.18).contains(&covariance[3]), "{covariance:?}");
    }

    #[test]
    fn features_that_never_vary_stay_finite() {
        let z = Whitening::fit(&[0.5; 30], 3).apply(&[0.5; 30]);
        assert!(z.iter().all(|z| z.is_finite()));
    }
}
