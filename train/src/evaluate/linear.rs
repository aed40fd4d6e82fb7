//! The linear probe: multinomial logistic regression on standardised features, minimised to convergence.
//!
//! Minimised is (1 / n) sum_i -log softmax(W z_i + b)[y_i] + l2 / 2 |W|^2 with z = (x - mean) / std; scikit-learn's
//! `LogisticRegression(C = 1 / (l2 n))` after `StandardScaler`.

use macrl_bundle::probe::Probe;
use macrl_kernels::lbfgs::{Stop, minimise};
use rayon::prelude::*;

use super::cholesky::{Inverse, divide, semidefinite};
use super::draw::shuffled;
use super::features::Features;
use super::matrix::{View, accumulate, gram, multiply, products};

/// L2 strengths tried, strongest first: each fit starts from the one before.
pub const L2_GRID: [f64; 6] = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// Images held out to choose among them: a sixth of the images, and at most this many.
const HELD_OUT: usize = 10_000;
/// Largest absolute value in the gradient at the end of a fit (scikit-learn's default is 1e-4).
const CONVERGED: Stop = Stop { gradient: 1e-5, iterations: 500 };
/// The criteria while strengths are compared.
const COMPARED: Stop = Stop { gradient: 2e-4, iterations: 100 };

/// A fitted probe and the L2 strength it was fitted with.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The fitted classifier.
    pub probe: Probe,
    /// Its L2 strength, on the mean loss.
    pub l2: f64,
    /// Iterations of the last fit.
    pub iterations: usize,
}

/// Chooses the L2 strength on a held-out part of `train`, then fits on all of it.  `labels` are the class names.
pub fn fit(train: &Features, labels: &[String], seed: u64) -> Fit {
    let classes = labels.len().max(train.classes());
    // The covariance of all images preconditions both fits.
    let covariance = (train.len() >= train.dim).then(|| {
        let (mean, std) = moments(&train.values, train.dim);
        gram(&standardised(train.values.clone(), &mean, &std), train.dim)
    });
    let l2 = choose_l2(train, classes, seed, covariance.as_deref());
    fitted(train, labels, classes, l2, covariance)
}

/// Fits with a given L2 strength.
pub fn fit_with(train: &Features, labels: &[String], l2: f64) -> Fit {
    fitted(train, labels, labels.len().max(train.classes()), l2, None)
}

fn fitted(train: &Features, labels: &[String], classes: usize, l2: f64, covariance: Option<Vec<f64>>) -> Fit {
    let mut problem = Problem::new(train.clone(), classes, covariance);
    let iterations = problem.solve(l2, CONVERGED);
    Fit { probe: problem.probe(labels), l2, iterations }
}

/// The class that `probe` gives to every image.
pub fn predict(probe: &Probe, features: &Features) -> Vec<u32> {
    let rows = features.values.par_chunks(1024 * features.dim);
    rows.flat_map_iter(|block| {
        let z = standardised(block.to_vec(), &probe.mean, &probe.std);
        let scores = scores(&z, &probe.weight, &probe.bias);
        scores.chunks_exact(probe.classes()).map(first_largest).collect::<Vec<u32>>()
    })
    .collect()
}

fn first_largest(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// The strength with the best accuracy on held-out images; the stronger one where two are equal.
fn choose_l2(train: &Features, classes: usize, seed: u64, covariance: Option<&[f64]>) -> f64 {
    let order = shuffled(train.len(), seed);
    let (held_out, kept) = order.split_at((train.len() / 6).min(HELD_OUT));
    if held_out.is_empty() {
        return L2_GRID[2];
    }
    let held_out = train.select(held_out);
    let mut problem = Problem::new(train.select(kept), classes, covariance.map(<[f64]>::to_vec));
    let mut best = (0, L2_GRID[0]);
    for l2 in L2_GRID {
        problem.solve(l2, COMPARED);
        let answers = predict(&problem.probe(&[]), &held_out);
        let right = answers.iter().zip(&held_out.labels).filter(|(a, b)| a == b).count();
        if right > best.0 {
            best = (right, l2);
        }
    }
    best.1
}

/// Standardised features, the preconditioner of their fit, and the current parameters.
///
/// With fewer images than values, the best W lies in the span of the images.  The fit then uses coordinates in that span (n
/// instead of D), and gives the same value and the same answers.
struct Problem {
    /// (n, R): R = D, or n where there are fewer images.
    z: Vec<f32>,
    labels: Vec<u32>,
    classes: usize,
    mean: Vec<f32>,
    std: Vec<f32>,
    /// The span, where R = n.
    span: Option<Span>,
    /// (R, R), about z^T z / n.
    covariance: Vec<f64>,
    /// W (C, R), then b (C).
    parameters: Vec<f64>,
}

/// Rows x (n, D) as coordinates in an orthonormal basis of their span: x = L Q, L (n, n) lower triangular; a row that
/// depends on others adds no direction.
struct Span {
    x: Vec<f64>,
    lower: Vec<f64>,
}

impl Problem {
    /// `covariance` (D, D), where it is known.
    fn new(train: Features, classes: usize, covariance: Option<Vec<f64>>) -> Self {
        let Features { values, labels, dim } = train;
        let (mean, std) = moments(&values, dim);
        let x = standardised(values, &mean, &std);
        let n = labels.len();
        let (z, width, span) = if n < dim {
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let lower = semidefinite(products(&x, dim), n);
            let coordinate = |l: &f64| if l.is_finite() { *l as f32 } else { 0.0 };
            (lower.iter().map(coordinate).collect(), n, Some(Span { x, lower }))
        } else {
            (x, dim, None)
        };
        let covariance = covariance.filter(|c| c.len() == width * width).unwrap_or_else(|| gram(&z, width));
        let parameters = vec![0.0; classes * (width + 1)];
        Problem { z, labels, classes, mean, std, span, covariance, parameters }
    }

    /// R, the number of coordinates.
    fn width(&self) -> usize {
        self.parameters.len() / self.classes.max(1) - 1
    }

    /// Minimises from the current parameters; returns the number of iterations.
    fn solve(&mut self, l2: f64, stop: Stop) -> usize {
        let (width, classes) = (self.width(), self.classes);
        // The Hessian's blocks are about p (1 - p) z^T z + l2; half of p (1 - p) at p = 1 / C stands for its mean
        // along the way.  Its scale matters little: the search corrects it (gamma), only the ratio to l2 stays.
        let chance = 1.0 / classes.max(2) as f64;
        let curvature = 0.5 * chance * (1.0 - chance);
        let mut hessian: Vec<f64> = self.covariance.iter().map(|x| curvature * x).collect();
        (0..width).for_each(|i| hessian[i * width + i] += l2 + 1e-9);
        let inverse = Inverse::new(hessian, width);
        let precondition = |q: &mut [f64]| {
            let (weights, biases) = q.split_at_mut(classes * width);
            let mut narrow: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
            inverse.apply(&mut narrow);
            weights.iter_mut().zip(narrow).for_each(|(w, n)| *w = f64::from(n));
            biases.iter_mut().for_each(|b| *b /= curvature);
        };
        let mut parameters = std::mem::take(&mut self.parameters);
        let iterations = minimise(&mut parameters, stop, |x, g| self.loss(x, width, l2, g), precondition);
        self.parameters = parameters;
        iterations
    }

    /// The value that is minimised, and its gradient.  Sums run over a fixed number of parts in a fixed order, so that the
    /// result doesn't depend on the number of threads.
    fn loss(&self, parameters: &[f64], width: usize, l2: f64, gradient: &mut [f64]) -> f64 {
        let (classes, n) = (self.classes, self.labels.len());
        let narrow: Vec<f32> = parameters.iter().map(|x| *x as f32).collect();
        let (weight, bias) = narrow.split_at(classes * width);
        let rows = n.div_ceil(32).max(1);
        let parts: Vec<(f64, Vec<f32>)> = self
            .z
            .par_chunks(rows * width)
            .zip(self.labels.par_chunks(rows))
            .map(|(z, labels)| part_loss(z, labels, weight, bias))
            .collect();
        let (gradient_weight, gradient_bias) = gradient.split_at_mut(classes * width);
        gradient_weight.iter_mut().zip(parameters).for_each(|(g, w)| *g = l2 * w);
        gradient_bias.fill(0.0);
        let mut loss = 0.5 * l2 * parameters[..classes * width].iter().map(|w| w * w).sum::<f64>();
        for (part, part_gradient) in &parts {
            loss += part / n as f64;
            gradient.iter_mut().zip(part_gradient).for_each(|(g, p)| *g += f64::from(*p) / n as f64);
        }
        loss
    }

    fn probe(&self, labels: &[String]) -> Probe {
        let (weight, bias) = self.parameters.split_at(self.classes * self.width());
        let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let numbered = (labels.len()..self.classes).map(|i| i.to_string());
        Probe {
            weight: self.span.as_ref().map_or_else(|| narrow(weight), |span| span.weight(weight, self.mean.len())),
            bias: narrow(bias),
            mean: self.mean.clone(),
            std: self.std.clone(),
            labels: labels.iter().cloned().chain(numbered).collect(),
        }
    }
}

impl Span {
    /// W (C, n) in the span's coordinates -> W (C, D): with Q = L^-1 x, W Q = (W L^-1) x.
    fn weight(&self, coordinates: &[f64], dim: usize) -> Vec<f32> {
        let (n, mut shares) = (self.x.len() / dim, coordinates.to_vec());
        divide(&mut shares, &self.lower, n);
        let rows = shares.len() / n;
        let mut weight = vec![0.0f64; rows * dim];
        accumulate(
            View::new(&shares[..], rows, n),
            View::new(&self.x[..], n, dim),
            &mut weight[..],
            dim,
            0.0,
            1.0,
            false,
        );
        weight.into_iter().map(|w| w as f32).collect()
    }
}

/// Sums over some images: -log p[y], and the gradient of W (C, D) and b (C).
fn part_loss(z: &[f32], labels: &[u32], weight: &[f32], bias: &[f32]) -> (f64, Vec<f32>) {
    let (classes, dim) = (bias.len(), weight.len() / bias.len());
    // Blocks of half a MiB stay in the cache between the two products.
    let rows = (131_072 / dim).clamp(16, 2048);
    let (mut loss, mut gradient) = (0.0, vec![0.0f32; classes * (dim + 1)]);
    for (z, labels) in z.chunks(rows * dim).zip(labels.chunks(rows)) {
        let mut scores = scores(z, weight, bias);
        for (row, label) in scores.chunks_exact_mut(classes).zip(labels) {
            loss += residual(row, *label as usize);
        }
        let residuals = View::new(&scores, labels.len(), classes);
        let (gradient_weight, gradient_bias) = gradient.split_at_mut(classes * dim);
        multiply(residuals.transposed(), View::new(z, labels.len(), dim), gradient_weight, 1.0);
        for row in scores.chunks_exact(classes) {
            gradient_bias.iter_mut().zip(row).for_each(|(g, r)| *g += r);
        }
    }
    (loss, gradient)
}

/// Turns scores into softmax minus the label's one, and returns -log softmax[label].
fn residual(scores: &mut [f32], label: usize) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at_label = scores[label] - largest;
    let mut sum = 0.0f32;
    for s in scores.iter_mut() {
        *s = (*s - largest).exp();
        sum += *s;
    }
    scores.iter_mut().for_each(|s| *s /= sum);
    scores[label] -= 1.0;
    f64::from(sum).ln() - f64::from(at_label)
}

/// z W^T + b: (rows, C).
fn scores(z: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let (classes, dim) = (bias.len(), weight.len() / bias.len());
    let rows = z.len() / dim;
    let mut out = bias.repeat(rows);
    multiply(View::new(z, rows, dim), View::new(weight, classes, dim).transposed(), &mut out, 1.0);
    out
}

/// Mean and standard deviation (D) of rows (n, D).  A constant column gets 1, as in scikit-learn's StandardScaler.
pub(crate) fn moments(values: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (values.len() / dim).max(1) as f64;
    let mean = column_sums(values, dim, |_, x| x).into_iter().map(|s| s / n).collect::<Vec<f64>>();
    let variance = column_sums(values, dim, |i, x| (x - mean[i]) * (x - mean[i]));
    let std = mean.iter().zip(variance).map(|(mean, sum)| {
        let std = (sum / n).sqrt();
        if std > 1e-6 * mean.abs().max(1e-6) { std as f32 } else { 1.0 }
    });
    let std = std.collect();
    (mean.into_iter().map(|m| m as f32).collect(), std)
}

fn column_sums(values: &[f32], dim: usize, term: impl Fn(usize, f64) -> f64 + Sync) -> Vec<f64> {
    let parts: Vec<Vec<f64>> = values
        .par_chunks(4096 * dim)
        .map(|part| {
            let mut sums = vec![0.0; dim];
            for row in part.chunks_exact(dim) {
                sums.iter_mut().zip(row).enumerate().for_each(|(i, (s, x))| *s += term(i, f64::from(*x)));
            }
            sums
        })
        .collect();
    let mut sums = vec![0.0; dim];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sums
}

fn standardised(mut values: Vec<f32>, mean: &[f32], std: &[f32]) -> Vec<f32> {
    values.par_chunks_mut(mean.len()).with_min_len(256).for_each(|row| {
        row.iter_mut().zip(mean.iter().zip(std)).for_each(|(x, (mean, std))| *x = (*x - mean) / std);
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing;

    // x = draws(60 * 4, 5).reshape(60, 4); y = (x[:, 0] + 0.5 * draws(60, 6) > 0) + (x[:, 1] > 0.3)     # see `testing`
    // m = LogisticRegression(C=1 / (1e-2 * 60), tol=1e-10, max_iter=10000).fit(StandardScaler().fit_transform(x), y)
    // m.coef_, m.intercept_
    #[test]
    fn parameters_equal_scikit_learn() {
        let train = testing::three_classes();
        let fit = fit_with(&train, &[], 1e-2);
        let probe = &fit.probe;
        for (found, expected) in probe.weight.iter().zip(WEIGHT).chain(probe.bias.iter().zip(BIAS)) {
            assert!((found - expected).abs() < 2e-3, "{probe:?}");
        }
        assert_eq!(probe.labels, ["0", "1", "2"]);
        assert!(fit.iterations < 40);
    }
    const WEIGHT: [f32; 12] = [
        -1.892796, -1.833642, -0.432517, 0.134486, 0.295768, -0.353438, 0.381372, 0.025282, 1.597028, 2.18708,
        0.051145, -0.159768,
    ];
    const BIAS: [f32; 3] = [-0.559153, 1.730096, -1.170943];

    #[test]
    fn chosen_strength_generalises() {
        // Two informative values among 200 of noise, for 240 images: nearly unregularised fits learn the noise.
        let n = 240;
        let noise = testing::draws(n * 200, 8);
        let mut train = Features { values: noise, labels: Vec::new(), dim: 200 };
        train.labels = (0..n).map(|i| u32::from(train.row(i)[0] + train.row(i)[1] > 0.0)).collect();
        let chosen = fit(&train, &["a".into(), "b".into()], 0);
        assert!(chosen.l2 >= 1e-2, "{}", chosen.l2);
        assert_eq!(fit(&train, &["a".into(), "b".into()], 0), chosen);
    }

    // x = draws(12 * 40, 5).reshape(12, 40); z = torch.tensor((x - x.mean(0)) / x.std(0))               # see `testing`
    // loss = cross_entropy(z @ W.T + b, torch.arange(12) % 3) + 0.5 * 1e-2 * (W ** 2).sum()
    // torch.optim.LBFGS([W, b], tolerance_grad=1e-12, line_search_fn="strong_wolfe"); W[:, :4], b - b.mean()
    #[test]
    fn fewer_images_than_values_give_the_same_answer() {
        let mut train = Features { values: testing::draws(12 * 40, 5), labels: Vec::new(), dim: 40 };
        train.labels = (0..12).map(|i| i % 3).collect();
        let probe = fit_with(&train, &[], 1e-2).probe;
        let first: Vec<f32> = probe.weight.chunks(40).flat_map(|row| row[..4].to_vec()).collect();
        for (found, expected) in first.iter().zip(FEW_WEIGHT).chain(probe.bias.iter().zip(FEW_BIAS)) {
            assert!((found - expected).abs() < 2e-3, "{first:?} {:?}", probe.bias);
        }
    }
    const FEW_WEIGHT: [f32; 12] = [
        -0.377119, 0.104033, 0.057811, 0.057768, 0.029552, -0.200343, -0.03954, 0.105146, 0.347567, 0.096309,
        -0.018271, -0.162914,
    ];
    const FEW_BIAS: [f32; 3] = [-0.066005, 0.025183, 0.040822];

    #[test]
    fn repeated_images_do_not_show() {
        // 24 images, of which 3 are different, in 40 dimensions: what separates them is one direction for each pair.
        let three = testing::draws(3 * 40, 5);
        let labels: Vec<u32> = (0..24).map(|i| i % 3).collect();
        let values = labels.iter().flat_map(|l| three[*l as usize * 40..][..40].to_vec()).collect();
        let train = Features { values, labels, dim: 40 };
        // A quarter of the first class is called the second: no weight can tell them apart.
        let mut noisy = train.clone();
        [0, 12].iter().for_each(|i| noisy.labels[*i] = 1);
        for l2 in [1e-1, 1e-6] {
            let probe = fit_with(&noisy, &[], l2).probe;
            assert_eq!(predict(&probe, &train), train.labels, "{l2}");
        }
        assert_eq!(predict(&fit(&noisy, &[], 0).probe, &train), train.labels);
    }

    #[test]
    fn constant_and_collapsed_features_stay_finite() {
        let train = Features { values: [3.0, 1e9].repeat(10), labels: [0, 1].repeat(5), dim: 2 };
        let fit = fit(&train, &[], 0);
        assert_eq!(fit.probe.std, [1.0, 1.0]);
        assert!(fit.probe.weight.iter().chain(&fit.probe.bias).all(|x| x.is_finite()));
    }
}
