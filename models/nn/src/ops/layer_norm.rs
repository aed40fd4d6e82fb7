//! Layer normalisation over the last dimension (arXiv 1607.06450), with eps 1e-6 as in timm's ViT.

use macrl_kernels::simd::{LANES, fma, reduce};
use macrl_kernels::vectorised;
use rayon::prelude::*;

use super::ROWS_PER_PART;

/// Added to the variance, against division by zero.
pub const EPS: f32 = 1e-6;

vectorised! {
    /// [`forward`] on the rows of one thread.
    pub(super) fn forward_rows(x: &[f32], gamma: &[f32], beta: &[f32], out: &mut [f32]) {
        let width = gamma.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, scale) = statistics(x);
            for (((out, &x), &g), &b) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
                *out = fma::<FMA>((x - mean) * scale, g, b);
            }
        }
    }
}

/// (mean, 1 / standard deviation) of one row.  Two passes: E[x^2] - E[x]^2 would lose precision.
#[inline(always)]
fn statistics(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = reduce(x.len(), |i| x[i]) / n;
    let variance = reduce(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + EPS).sqrt())
}

vectorised! {
    /// Adds the gradients of a part's rows to `dx`, and its share of gamma's and beta's to `dgamma` and `dbeta`.
    pub(super) fn backward_rows(x: &[f32], gamma: &[f32], dy: &[f32], dx: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
        let width = gamma.len();
        let n = width as f32;
        for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let (mean, scale) = statistics(x);
            let gamma = &gamma[..width];
            let sum = reduce(width, |i| dy[i] * gamma[i]) / n;
            let sum_x = reduce(width, |i| dy[i] * gamma[i] * (x[i] - mean)) * scale / n;
            for i in 0..width {
                let normal = (x[i] - mean) * scale;
                dgamma[i] = fma::<FMA>(dy[i], normal, dgamma[i]);
                dbeta[i] += dy[i];
                dx[i] += scale * (dy[i] * gamma[i] - fma::<FMA>(normal, sum_x, sum));
            }
        }
    }
}

/// `out = (x - mean) / sqrt(variance + eps) * gamma + beta`, row by row.
///
/// # Shapes
/// `x`, `out` (rows, D); `gamma`, `beta` (D).
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], out: &mut [f32]) {
    let part = ROWS_PER_PART * gamma.len();
    out.par_chunks_mut(part).zip(x.par_chunks(part)).for_each(|(out, x)| forward_rows(x, gamma, beta, out));
}

/// **Adds** the gradient to `dx`; overwrites `dgamma` and `dbeta`.  The statistics are recomputed from `x`.
///
/// # Shapes
/// `x`, `dy`, `dx` (rows, D); `gamma`, `dgamma`, `dbeta` (D).
pub fn backward(x: &[f32], gamma: &[f32], dy: &[f32], dx: &mut [f32], dgamma: &mut [f32], dbeta: &mut [f32]) {
    let width = gamma.len();
    let part = ROWS_PER_PART * width;
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(part)
        .zip(x.par_chunks(part))
        .zip(dy.par_chunks(part))
        .map(|((dx, x), dy)| {
            let mut sums = vec![0f32; 2 * width];
            let (dgamma, dbeta) = sums.split_at_mut(width);
            backward_rows(x, gamma, dy, dx, dgamma, dbeta);
            sums
        })
        .collect();
    dgamma.fill(0.0);
    dbeta.fill(0.0);
    for sums in &partial {
        add(dgamma, &sums[..width]);
        add(dbeta, &sums[width..]);
    }
}

vectorised! {
    /// `out += values`, element by element.
    pub(crate) fn add(out: &mut [f32], values: &[f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out += value;
        }
    }
}

const _: () = assert!(LANES.is_power_of_two());
