//! Projection of vectors to two dimensions by their principal components, for scatter plots.

use crate::matmul::{MatrixView, Threads, matmul};

/// Vectors projected to the plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// Coordinates (n, 2) in [-1, 1]; both axes have the same scale.
    pub points: Vec<[f32; 2]>,
    /// Share of the variance along each axis.
    pub explained: [f32; 2],
}

/// Projects vectors to the plane of largest variance.
///
/// # Shapes
/// `vectors` (n, D), flat; D is `dim`.
///
/// # Examples
/// ```
/// // Three points on a line.
/// let drawn = macrl_kernels::project(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0], 3);
/// assert!(drawn.explained[0] > 0.999);
/// assert!((drawn.points[1][0]).abs() < 1e-3);
/// ```
pub fn project(vectors: &[f32], dim: usize) -> Projection {
    let (coordinates, explained) = principal_components(vectors, dim);
    let frame = Frame::around(&coordinates);
    let points = coordinates.iter().map(|p| frame.place(p).map(|v| v as f32)).collect();
    Projection { points, explained: explained.map(|share| share as f32) }
}

/// Coordinates (n, 2) along the two directions of largest variance, and the share of the variance in each.
///
/// # Shapes
/// `vectors` (n, D), flat; D is `dim`.
pub fn principal_components(vectors: &[f32], dim: usize) -> (Vec<[f64; 2]>, [f64; 2]) {
    if dim == 0 || vectors.is_empty() {
        return (Vec::new(), [0.0; 2]);
    }
    let plane = Plane::fit(vectors, dim);
    (vectors.chunks_exact(dim).map(|row| plane.place(row)).collect(), plane.explained)
}

/// The plane through the mean of some vectors, along the two directions in which they vary most.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Mean of the vectors (D).
    pub mean: Vec<f32>,
    /// Two directions (D) of length 1.
    pub axes: [Vec<f64>; 2],
    /// Share of the variance along each axis.
    pub explained: [f64; 2],
}

impl Plane {
    /// The plane of these vectors, of which there is at least one.
    ///
    /// # Shapes
    /// `vectors` (n, D), flat; D is `dim`.
    pub fn fit(vectors: &[f32], dim: usize) -> Self {
        let n = vectors.len() / dim;
        let mut centred = vectors.to_vec();
        let mut mean = vec![0f64; dim];
        let share = |x: &f32| f64::from(*x) / n as f64;
        vectors.chunks_exact(dim).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += share(x)));
        let mean: Vec<f32> = mean.into_iter().map(|m| m as f32).collect();
        centred.chunks_exact_mut(dim).for_each(|row| row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m));
        let mut covariance = vec![0f32; dim * dim];
        let rows = MatrixView::new(&centred, n, dim);
        matmul(rows.t(), rows, 1.0 / n as f32, false, &mut covariance, dim, Threads::One);
        let covariance: Vec<f64> = covariance.into_iter().map(f64::from).collect();
        let total: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        let first = dominant(&covariance, dim, None);
        let second = dominant(&covariance, dim, Some(&first));
        let axes = [first, second];
        let explained = [0, 1].map(|a| dot(&axes[a], &product(&covariance, &axes[a])) / total.max(1e-30));
        Self { mean, axes, explained }
    }

    /// Coordinates of a vector (D) along the axes.
    pub fn place(&self, row: &[f32]) -> [f64; 2] {
        let centred = || row.iter().zip(&self.mean).map(|(x, m)| f64::from(x - m));
        [0, 1].map(|a| centred().zip(&self.axes[a]).map(|(x, along)| x * along).sum())
    }
}

/// A shift and a scale, the same for both axes, that bring coordinates into [-1, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// The middle of the coordinates.
    pub middle: [f64; 2],
    /// Half the larger extent.
    pub half: f64,
}

impl Frame {
    /// The frame of these coordinates.
    pub fn around(coordinates: &[[f64; 2]]) -> Self {
        let ends = [0, 1].map(|axis| {
            let values = coordinates.iter().map(|p| p[axis]);
            (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
        });
        let half = ends.iter().map(|(low, high)| (high - low) / 2.0).fold(1e-12, f64::max);
        Self { middle: ends.map(|(low, high)| (low + high) / 2.0), half }
    }

    /// The coordinates within the frame.
    pub fn place(&self, point: &[f64; 2]) -> [f64; 2] {
        [0, 1].map(|a| (point[a] - self.middle[a]) / self.half)
    }
}

/// The eigenvector of the largest eigenvalue among those orthogonal to `against`, by power iteration; its largest
/// coordinate is positive.
fn dominant(matrix: &[f64], dim: usize, against: Option<&[f64]>) -> Vec<f64> {
    // Features of a real encoder are never exactly orthogonal to this start vector.
    let mut v: Vec<f64> = (0..dim).map(|i| 1.0 + (i as f64 * 0.7).sin()).collect();
    for _ in 0..500 {
        v = product(matrix, &v);
        if let Some(other) = against {
            let along = dot(&v, other);
            v.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let length = dot(&v, &v).sqrt().max(1e-300);
        v.iter_mut().for_each(|x| *x /= length);
    }
    let largest = v.iter().copied().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
    v.iter_mut().for_each(|x| *x *= largest.signum());
    v
}

fn product(matrix: &[f64], v: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(v.len()).map(|row| dot(row, v)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // i = np.arange(200); x = np.sin(i * i * 0.61).reshape(40, 5) * [1, 2, 3, 4, 5]; c = x - x.mean(0)
    // u, s, v = np.linalg.svd(c, full_matrices=False); v *= np.sign(v[range(5), abs(v).argmax(1)])[:, None]
    // p = c @ v[:2].T; p -= (p.max(0) + p.min(0)) / 2; p /= abs(p).max()
    // p[:2], s[:2] ** 2 / (s ** 2).sum()
    #[test]
    fn components_equal_numpy() {
        let x: Vec<f32> = (0..200).map(|i| ((f64::from(i * i) * 0.61).sin() * f64::from(i % 5 + 1)) as f32).collect();
        let found = project(&x, 5);
        for (found, expected) in found.points[..2].iter().flatten().chain(&found.explained).zip(EXPECTED) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
    const EXPECTED: [f32; 6] = [-0.028129, -0.567065, -0.949257, 0.312565, 0.462305, 0.315073];

    #[test]
    fn few_or_equal_vectors_give_finite_points() {
        for vectors in [vec![], vec![1.0, 0.0], vec![1.0, 0.0, 1.0, 0.0]] {
            let found = project(&vectors, 2);
            assert_eq!(found.points.len(), vectors.len() / 2);
            assert!(found.points.iter().flatten().all(|v| v.is_finite()));
        }
    }
}
