//! Features in two dimensions: principal components of the L2-normalised features, coloured by class.

use std::fmt::Write;

use super::html::{class_name, escape};
use crate::evaluate::Features;
use crate::evaluate::knn::normalised;
use crate::evaluate::matrix::{dot, gram};

const EDGE: f64 = 600.0;
const MARGIN: f64 = 12.0;
/// Points drawn at most.
const POINTS: usize = 3000;
/// Classes that get a colour of their own; of more, their hue turns.
const COLOURS: usize = 10;

/// The scatter plot and its legend.
pub(super) fn section(features: &Features, labels: &[String]) -> String {
    if features.len() < 3 {
        return String::new();
    }
    let (points, explained) = principal_components(&features.values, features.dim);
    let classes = features.classes();
    let mut svg =
        format!("<svg viewBox=\"0 0 {EDGE} {EDGE}\" class=\"scatter\" role=\"img\" aria-label=\"projection\">\n");
    let place = scale(&points);
    let every = features.len().div_ceil(POINTS);
    for (point, label) in points.iter().zip(&features.labels).step_by(every) {
        let (x, y) = (place(point[0], 0), EDGE - place(point[1], 1));
        let name = escape(&class_name(labels, *label as usize));
        let _ = writeln!(
            svg,
            "<circle {} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{name}</title></circle>",
            colour(*label as usize, classes)
        );
    }
    svg.push_str("</svg>\n");
    let note = format!(
        "<p class=\"note\">The two directions in which {} features of held-out images vary most ({:.0} and {:.0} % of their variance), \
         coloured by class. Classes that overlap here may still be apart in the other directions.</p>",
        features.len(),
        100.0 * explained[0],
        100.0 * explained[1]
    );
    let body = format!("{note}<div class=\"projection\">{svg}{}</div>", legend(labels, classes));
    super::html::section("projection", "Features in two dimensions", &body)
}

fn legend(labels: &[String], classes: usize) -> String {
    if classes > 30 {
        return String::new();
    }
    let entries: String = (0..classes)
        .map(|i| {
            format!(
                "<li><svg viewBox=\"0 0 10 10\"><circle {} cx=\"5\" cy=\"5\" r=\"5\"/></svg>{}</li>",
                colour(i, classes),
                escape(&class_name(labels, i))
            )
        })
        .collect();
    format!("<ul>{entries}</ul>")
}

fn colour(label: usize, classes: usize) -> String {
    if classes <= COLOURS {
        return format!("class=\"c{label}\"");
    }
    let hue = 360.0 * label as f64 / classes as f64;
    format!("style=\"fill:oklch(0.65 0.16 {hue:.0})\"")
}

/// Maps a coordinate of either axis into the drawing, both by the same factor.
fn scale(points: &[[f64; 2]]) -> impl Fn(f64, usize) -> f64 {
    let range = |axis: usize| {
        let values = points.iter().map(move |p| p[axis]);
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
    };
    let ranges = [range(0), range(1)];
    let span = ranges.iter().map(|(low, high)| high - low).fold(1e-12, f64::max);
    move |value, axis| {
        let (low, high) = ranges[axis];
        EDGE / 2.0 + (EDGE - 2.0 * MARGIN) * (value - (low + high) / 2.0) / span
    }
}

/// Coordinates (n, 2) along the two directions of largest variance, and the share of the variance in each.
pub(super) fn principal_components(values: &[f32], dim: usize) -> (Vec<[f64; 2]>, [f64; 2]) {
    let mut centred = normalised(values, dim);
    let n = (centred.len() / dim).max(1);
    let mut mean = vec![0.0f64; dim];
    centred
        .chunks_exact(dim)
        .for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / n as f64));
    centred.chunks_exact_mut(dim).for_each(|row| row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= *m as f32));
    let covariance = gram(&centred, dim);
    let total: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
    let first = dominant(&covariance, dim, None);
    let second = dominant(&covariance, dim, Some(&first));
    let variance = |axis: &[f64]| dot(axis, &product(&covariance, axis)) / total.max(1e-30);
    let shares = [variance(&first), variance(&second)];
    let along = |row: &[f32], axis: &[f64]| row.iter().zip(axis).map(|(x, a)| f64::from(*x) * a).sum();
    let points = centred.chunks_exact(dim).map(|row| [along(row, &first), along(row, &second)]).collect();
    (points, shares)
}

/// The eigenvector of the largest eigenvalue among those orthogonal to `against`, by power iteration; its largest
/// coordinate is positive.
fn dominant(matrix: &[f64], dim: usize, against: Option<&[f64]>) -> Vec<f64> {
    // No direction of real features is exactly orthogonal to this start.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::draws;

    // x = draws(50 * 6, 9).reshape(50, 6) * [1, 2, 3, 4, 5, 6]                               # see evaluate/testing.rs
    // x /= np.linalg.norm(x, axis=1, keepdims=True); x -= x.mean(0); u, s, v = np.linalg.svd(x, full_matrices=False)
    // v *= np.sign(v[range(6), abs(v).argmax(1)])[:, None]; (x @ v.T)[0, :2], (s ** 2 / (s ** 2).sum())[:2]
    #[test]
    fn components_equal_numpy() {
        let x: Vec<f32> = draws(300, 9).iter().enumerate().map(|(i, x)| x * (i % 6 + 1) as f32).collect();
        let (points, shares) = principal_components(&x, 6);
        for (found, expected) in points[0].iter().chain(&shares).zip(EXPECTED) {
            assert!((found - expected).abs() < 1e-5, "{:?} {shares:?}", points[0]);
        }
    }
    const EXPECTED: [f64; 4] = [0.8883535, -0.3992142, 0.3631211, 0.2761605];

    #[test]
    fn collapsed_features_still_draw() {
        let features = Features { values: vec![1.0; 30], labels: vec![0; 10], dim: 3 };
        let text = section(&features, &[]);
        assert!(text.contains("<circle") && !text.contains("NaN"));
    }
}
