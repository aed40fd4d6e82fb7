//! Measures of collapsed features.

use super::matrix::{eigenvalues, gram};
use super::nearest::normalised;

/// Mean over coordinates of the standard deviation of L2-normalised features, times sqrt(D): about 1 when they
/// spread evenly over the sphere, 0 when all are equal (arXiv 2011.10566, section 4.1).
///
/// # Shapes
/// values (n, D), row-major.
pub fn feature_std(values: &[f32], dim: usize) -> f64 {
    let unit = normalised(values, dim);
    let n = (unit.len() / dim).max(1) as f64;
    let (mut sum, mut squares) = (vec![0.0f64; dim], vec![0.0f64; dim]);
    for row in unit.chunks_exact(dim) {
        for (i, x) in row.iter().enumerate() {
            sum[i] += f64::from(*x);
            squares[i] += f64::from(*x) * f64::from(*x);
        }
    }
    let std = |i: usize| (squares[i] / n - (sum[i] / n).powi(2)).max(0.0).sqrt();
    (0..dim).map(std).sum::<f64>() / dim as f64 * (dim as f64).sqrt()
}

/// RankMe (arXiv 2210.02885, equation 1): exp of the entropy of the normalised singular values of (n, D) features;
/// from 1 (all on one line) to min(n, D).
///
/// The singular values are the roots of the Gram matrix' eigenvalues, so those below 1e-7 of the largest are lost.
///
/// ```
/// use macrl_train::evaluate::diagnostics::effective_rank;
///
/// // Two orthogonal directions of equal strength, then a single one.
/// assert!((effective_rank(&[1.0, 0.0, 0.0, 1.0], 2) - 2.0).abs() < 1e-3);
/// assert!((effective_rank(&[1.0, 2.0, 2.0, 4.0], 2) - 1.0).abs() < 1e-3);
/// ```
pub fn effective_rank(values: &[f32], dim: usize) -> f64 {
    let eigenvalues = eigenvalues(gram(values, dim), dim);
    let largest = eigenvalues.iter().copied().fold(0.0, f64::max);
    // Exact zeros become at most this in single precision.
    let floor = largest * 1e-7;
    let singular: Vec<f64> = eigenvalues.into_iter().map(|e| if e > floor { e.sqrt() } else { 0.0 }).collect();
    let sum: f64 = singular.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let entropy: f64 = singular.iter().map(|s| s / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// Mean cosine between a query and its own key, and between a query and the other keys of the batch.
///
/// # Shapes
/// queries, keys (B, D), row-major and L2-normalised.  With one image there are no others: the second is 0.
pub fn similarities(queries: &[f32], keys: &[f32], dim: usize) -> (f64, f64) {
    let count = (queries.len() / dim) as f64;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let wide = |row: &[f32]| row.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let total = |rows: &[f32]| {
        let mut sum = vec![0.0f64; dim];
        rows.chunks_exact(dim).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
        sum
    };
    let own: f64 =
        queries.chunks_exact(dim).zip(keys.chunks_exact(dim)).map(|(q, k)| product(&wide(q), &wide(k))).sum();
    // All pairs at once: the sum of products is the product of sums.
    let all = product(&total(queries), &total(keys));
    let others = if count > 1.0 { (all - own) / (count * (count - 1.0)) } else { 0.0 };
    (own / count.max(1.0), others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::draws;

    #[test]
    fn collapse_is_seen() {
        let same = [0.3, -0.4, 1.2].repeat(50);
        assert!(feature_std(&same, 3) < 1e-3);
        assert!((effective_rank(&same, 3) - 1.0).abs() < 1e-6);
        assert_eq!(effective_rank(&[0.0; 12], 3), 0.0);
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert!((effective_rank(&identity, 3) - 3.0).abs() < 1e-9);
    }

    // x = draws(100 * 8, 7).reshape(100, 8) * np.arange(1, 9); s = np.linalg.svd(x, compute_uv=False); p = s / s.sum()
    // np.exp(-(p * np.log(p)).sum())
    // u = x / np.linalg.norm(x, axis=1, keepdims=True); u.std(0).mean() * 8 ** 0.5
    #[test]
    fn rank_and_spread_equal_numpy() {
        let x: Vec<f32> = draws(800, 7).iter().enumerate().map(|(i, x)| x * (i % 8 + 1) as f32).collect();
        assert!((effective_rank(&x, 8) - RANK).abs() < 1e-4, "{}", effective_rank(&x, 8));
        assert!((feature_std(&x, 8) - SPREAD).abs() < 1e-5, "{}", feature_std(&x, 8));
    }
    const RANK: f64 = 6.893719;
    const SPREAD: f64 = 0.904545;

    #[test]
    fn own_and_other_keys() {
        // Cosines (rows: queries): [1, 0], [0.6, 0.8].
        let (own, others) = similarities(&[1.0, 0.0, 0.6, 0.8], &[1.0, 0.0, 0.0, 1.0], 2);
        assert!((own - 0.9).abs() < 1e-6 && (others - 0.3).abs() < 1e-6);
        assert_eq!(similarities(&[1.0, 0.0], &[1.0, 0.0], 2).1, 0.0);
    }
}
