//! Multinomial logistic regression on a few labelled vectors, minimised by L-BFGS.
//!
//! Minimised is (1 / n) sum_i -log softmax(W z_i + b)[y_i] + l2 / 2 |W|^2, as in the evaluation's linear probe.  Here z = (x -
//! mean) / std with the moments of all items, labelled or not: a hundred examples alone would give poor ones.

use macrl_bundle::probe::Probe;
use macrl_kernels::lbfgs::{Stop, minimise};
use macrl_kernels::{MatrixView, Threads, matmul};

/// Classes that a classifier needs at least.
pub const MIN_CLASSES: usize = 2;
/// The strength on the sum of the losses.  With 100 examples that is 0.1 on their mean, as in the evaluation's few-shot
/// protocol; it falls as examples are added.
const STRENGTH: f64 = 10.0;
const CONVERGED: Stop = Stop { gradient: 1e-4, iterations: 200 };
/// Parts of the examples, each of which is left out once to judge the classifier.
const FOLDS: usize = 5;

/// Labelled vectors.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// (n, D), flat, each of length 1.
    pub vectors: Vec<f32>,
    /// (n), indices of `names`.
    pub classes: Vec<usize>,
    /// The classes' names.
    pub names: Vec<String>,
}

/// Accuracy on examples that were left out of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// Share of the judged examples that were classified right.
    pub accuracy: f64,
    /// Number of judged examples: those of classes with at least two.
    pub judged: usize,
}

/// Fits a classifier and judges it by cross-validation; `background` (m, D) are vectors of the index, labelled or not.
///
/// # Shapes
/// D is `dim`, n and m are at least 1.
pub fn fit(examples: &Examples, background: &[f32], dim: usize) -> (Probe, Option<HeldOut>) {
    let (mean, std) = moments(if background.is_empty() { &examples.vectors } else { background }, dim);
    let mut z = examples.vectors.clone();
    z.chunks_exact_mut(dim).for_each(|row| standardise(row, &mean, &std));
    let classes = examples.names.len();
    let all: Vec<usize> = (0..examples.classes.len()).collect();
    let (weight, bias) = solve(&z, &examples.classes, &all, classes, dim);
    let held_out = cross_validate(&z, &examples.classes, classes, dim);
    (Probe { weight, bias, mean, std, labels: examples.names.clone() }, held_out)
}

/// The accuracy on examples that were left out; `None` if no class has two examples.
fn cross_validate(z: &[f32], labels: &[usize], classes: usize, dim: usize) -> Option<HeldOut> {
    let mut seen = vec![0; classes];
    // The examples of each class go to the folds in turn, so that every fold has about the same classes.
    let fold: Vec<usize> = labels
        .iter()
        .map(|label| {
            seen[*label] += 1;
            (seen[*label] - 1) % FOLDS
        })
        .collect();
    let (mut judged, mut right) = (0, 0);
    for part in 0..FOLDS {
        let (left_out, kept): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|i| fold[*i] == part);
        let left_out: Vec<usize> = left_out.into_iter().filter(|i| seen[labels[*i]] > 1).collect();
        if left_out.is_empty() {
            continue;
        }
        let (weight, bias) = solve(z, labels, &kept, classes, dim);
        judged += left_out.len();
        right += left_out.iter().filter(|i| best(row(z, **i, dim), &weight, &bias) == labels[**i]).count();
    }
    (judged > 0).then(|| HeldOut { accuracy: right as f64 / judged as f64, judged })
}

fn row(z: &[f32], i: usize, dim: usize) -> &[f32] {
    &z[i * dim..(i + 1) * dim]
}

fn best(z: &[f32], weight: &[f32], bias: &[f32]) -> usize {
    let score = |row: &[f32], b: &f32| b + row.iter().zip(z).map(|(w, x)| w * x).sum::<f32>();
    let scores = weight.chunks_exact(z.len()).zip(bias).map(|(row, b)| score(row, b)).enumerate();
    scores.fold((0, f32::NEG_INFINITY), |best, (i, s)| if s > best.1 { (i, s) } else { best }).0
}

/// W (C, D) and b (C) of the examples at `chosen`.
fn solve(z: &[f32], labels: &[usize], chosen: &[usize], classes: usize, dim: usize) -> (Vec<f32>, Vec<f32>) {
    let rows: Vec<f32> = chosen.iter().flat_map(|i| row(z, *i, dim)).copied().collect();
    let labels: Vec<usize> = chosen.iter().map(|i| labels[*i]).collect();
    let l2 = STRENGTH / labels.len().max(1) as f64;
    let mut parameters = vec![0.0; classes * (dim + 1)];
    // The Hessian's diagonal is about p (1 - p) + l2 at p = 1 / C: the features have variance 1.
    let chance = 1.0 / classes.max(2) as f64;
    let curvature = chance * (1.0 - chance);
    let precondition = |q: &mut [f64]| {
        let (weights, biases) = q.split_at_mut(classes * dim);
        weights.iter_mut().for_each(|w| *w /= curvature + l2);
        biases.iter_mut().for_each(|b| *b /= curvature);
    };
    minimise(&mut parameters, CONVERGED, |x, gradient| loss(x, &rows, &labels, classes, l2, gradient), precondition);
    let (weight, bias) = parameters.split_at(classes * dim);
    let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect();
    (narrow(weight), narrow(bias))
}

/// The value that is minimised, and its gradient.
fn loss(x: &[f64], z: &[f32], labels: &[usize], classes: usize, l2: f64, gradient: &mut [f64]) -> f64 {
    let (n, dim) = (labels.len(), x.len() / classes - 1);
    let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
    let (weight, bias) = narrow.split_at(classes * dim);
    let rows = MatrixView::new(z, n, dim);
    let mut scores = bias.repeat(n);
    matmul(rows, MatrixView::new(weight, classes, dim).t(), 1.0, true, &mut scores, classes, Threads::One);
    let sum: f64 = scores.chunks_exact_mut(classes).zip(labels).map(|(row, label)| residual(row, *label)).sum();
    let mut narrow_gradient = vec![0.0f32; classes * dim];
    let residuals = MatrixView::new(&scores, n, classes);
    matmul(residuals.t(), rows, 1.0 / n as f32, false, &mut narrow_gradient, dim, Threads::One);
    let (gradient_weight, gradient_bias) = gradient.split_at_mut(classes * dim);
    for ((g, w), narrow) in gradient_weight.iter_mut().zip(x).zip(&narrow_gradient) {
        *g = l2 * w + f64::from(*narrow);
    }
    for (class, g) in gradient_bias.iter_mut().enumerate() {
        *g = scores.iter().skip(class).step_by(classes).map(|r| f64::from(*r)).sum::<f64>() / n as f64;
    }
    sum / n as f64 + 0.5 * l2 * x[..classes * dim].iter().map(|w| w * w).sum::<f64>()
}

/// Turns scores into softmax minus the label's one, and returns -log softmax[label].
fn residual(scores: &mut [f32], label: usize) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at_label = scores[label] - largest;
    scores.iter_mut().for_each(|s| *s = (*s - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
    scores[label] -= 1.0;
    f64::from(sum).ln() - f64::from(at_label)
}

fn standardise(row: &mut [f32], mean: &[f32], std: &[f32]) {
    row.iter_mut().zip(mean.iter().zip(std)).for_each(|(x, (mean, std))| *x = (*x - mean) / std);
}

/// Mean and standard deviation (D) of rows (n, D); a constant column gets 1.
fn moments(values: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (values.len() / dim).max(1) as f64;
    let sum = |term: &dyn Fn(usize, f64) -> f64| {
        let mut sums = vec![0f64; dim];
        for row in values.chunks_exact(dim) {
            sums.iter_mut().zip(row).enumerate().for_each(|(i, (s, x))| *s += term(i, f64::from(*x)) / n);
        }
        sums
    };
    let mean = sum(&|_, x| x);
    let variance = sum(&|i, x| (x - mean[i]) * (x - mean[i]));
    let std = variance.iter().map(|v| if v.sqrt() > 1e-6 { v.sqrt() as f32 } else { 1.0 });
    let std = std.collect();
    (mean.iter().map(|m| *m as f32).collect(), std)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of two standardised columns: 1 and -1 in all four combinations, `times` times.
    fn square(times: usize) -> Vec<f32> {
        [[1.0f32, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]].concat().repeat(times)
    }

    // z = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 3); y = [0, 1, 2, 2] * 3                      # 12 examples
    // m = LogisticRegression(C=1 / 10, tol=1e-10, max_iter=10000).fit(z, y); m.coef_, m.intercept_
    // (C = 1 / (l2 n) with l2 = 10 / n)
    #[test]
    fn parameters_equal_scikit_learn() {
        let vectors = square(3);
        let names = ["a", "b", "c"].map(String::from).to_vec();
        let examples = Examples { vectors: vectors.clone(), classes: [0, 1, 2, 2].repeat(3), names };
        let (probe, held_out) = fit(&examples, &vectors, 2);
        for (found, expected) in probe.weight.iter().zip(WEIGHT).chain(probe.bias.iter().zip(BIAS)) {
            assert!((found - expected).abs() < 1e-3, "{probe:?}");
        }
        assert_eq!((probe.mean, probe.std), (vec![0.0; 2], vec![1.0; 2]));
        assert_eq!(held_out.unwrap().judged, 12);
    }
    const WEIGHT: [f32; 6] = [0.208939, 0.231706, 0.208939, -0.231706, -0.417879, 0.0];
    const BIAS: [f32; 3] = [-0.239918, -0.239918, 0.479836];

    #[test]
    fn classes_apart_are_learnt_and_noise_is_not() {
        let names = ["a", "b"].map(String::from).to_vec();
        let apart = Examples { vectors: square(5), classes: [0, 0, 1, 1].repeat(5), names: names.clone() };
        assert_eq!(fit(&apart, &[], 2).1, Some(HeldOut { accuracy: 1.0, judged: 20 }));
        // Each vector has both labels equally often.
        let classes: Vec<usize> = (0..40).map(|i| i / 4 % 2).collect();
        let noise = Examples { vectors: square(10), classes, names: names.clone() };
        assert!(fit(&noise, &[], 2).1.unwrap().accuracy <= 0.5);
        let single = Examples { vectors: vec![1.0, 0.0, 0.0, 1.0], classes: vec![0, 1], names };
        let (probe, held_out) = fit(&single, &[], 2);
        assert!(held_out.is_none() && probe.weight.iter().all(|w| w.is_finite()));
    }
}
