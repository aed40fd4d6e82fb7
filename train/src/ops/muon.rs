//! Muon's step on one matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the momentum's singular
//! values are all brought near 1 before it is taken from the weights.
//!
//! Each matrix is computed by one thread and callers run many side by side, so that results do not depend on the number of
//! threads.

use macrl_kernels::buffer::Buffer;
use macrl_kernels::matmul::MatrixView;
use macrl_kernels::panels::{Panels, Start, product, symmetric_product};
use macrl_kernels::simd::{fma, reduce};
use macrl_kernels::vectorised;

/// Of the quintic x -> a x + b x^3 + c x^5, which takes (0, 1] to about [0.7, 1.2] in [`STEPS`] steps (the same source).
pub const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
/// Newton-Schulz steps.
pub const STEPS: usize = 5;
/// Added to the Frobenius norm that a matrix is divided by.
pub const EPS: f32 = 1e-7;

vectorised! {
    /// `momentum = keep * momentum + (1 - keep) * g`, `direction = keep * momentum + (1 - keep) * g` (Nesterov's look
    /// ahead), with the gradient `g` multiplied by `scale`; all of one length.
    pub fn accumulate(gradient: &[f32], momentum: &mut [f32], direction: &mut [f32], keep: f32, scale: f32) {
        for ((&g, m), d) in gradient.iter().zip(momentum).zip(direction) {
            let g = (1.0 - keep) * (g * scale);
            *m = fma::<FMA>(keep, *m, g);
            *d = fma::<FMA>(keep, *m, g);
        }
    }
}

vectorised! {
    /// `weights = decay * weights - rate * direction`.
    pub fn apply(weights: &mut [f32], direction: &[f32], rate: f32, decay: f32) {
        for (w, &d) in weights.iter_mut().zip(direction) {
            *w = fma::<FMA>(-rate, d, *w * decay);
        }
    }
}

vectorised! {
    fn squares(x: &[f32]) -> f32 {
        reduce(x.len(), |i| x[i] * x[i])
    }
}

vectorised! {
    fn scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|v| *v *= by);
    }
}

vectorised! {
    fn scaled(x: &[f32], by: f32, out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, &v)| *out = by * v);
    }
}

/// Factor on a matrix's learning rate: changes of an output's values are then of one size whatever the shape.
pub fn shape_factor(rows: usize, columns: usize) -> f32 {
    (rows as f32 / columns as f32).max(1.0).sqrt()
}

/// Replaces a matrix by nearly the orthogonal one that is closest to it.
///
/// # Shapes
/// `x` (`rows`, `columns`).
pub fn orthogonalise(x: &mut [f32], rows: usize, columns: usize) {
    scale(x, 1.0 / (squares(x).sqrt() + EPS));
    let (short, long) = (rows.min(columns), rows.max(columns));
    // Directly it takes 20 s^2 l + 10 s^3 operations, by the Gram matrix 4 s^2 l + 34 s^3 (s short, l long).
    match 2 * long > 3 * short {
        true => by_gram(x, rows, columns),
        false => directly(x, rows, columns),
    }
}

/// X <- (a I + b A + c A^2) X with A = X X^T, five times; X as it lies or transposed, so that A is the smaller.
fn directly(x: &mut [f32], rows: usize, columns: usize) {
    let n = rows.min(columns);
    let (mut gram, mut polynomial) = (Buffer::dirty(n * n), Buffer::dirty(n * n));
    let mut old = Buffer::dirty(x.len());
    for _ in 0..STEPS {
        products(x, rows, columns, &mut gram);
        quintic(&gram, n, &mut polynomial);
        old.copy_from_slice(x);
        multiply(&polynomial, &old, rows, columns, x);
    }
}

/// The same for long matrices: A, its polynomials Q and their product P commute, so A's next value is Q A Q, and X is
/// multiplied once, by P.
fn by_gram(x: &mut [f32], rows: usize, columns: usize) {
    let n = rows.min(columns);
    let [mut gram, mut q, mut p, mut room] = [(); 4].map(|()| Buffer::dirty(n * n));
    products(x, rows, columns, &mut gram);
    quintic(&gram, n, &mut p);
    square(&p, &gram, n, &mut room);
    square(&room, &p, n, &mut gram);
    for step in 1..STEPS {
        quintic(&gram, n, &mut q);
        square(&q, &p, n, &mut room);
        std::mem::swap(&mut p, &mut room);
        if step + 1 < STEPS {
            square(&q, &gram, n, &mut room);
            square(&room, &q, n, &mut gram);
        }
    }
    let mut old = Buffer::dirty(x.len());
    old.copy_from_slice(x);
    multiply(&p, &old, rows, columns, x);
}

/// X X^T, or X^T X where that is smaller.
fn products(x: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    let x = MatrixView::new(x, rows, columns);
    let (a, b) = if rows > columns { (x.t(), x) } else { (x, x.t()) };
    symmetric_product(a, &Panels::of(b), 1.0, Start::Zero, out);
}

/// P X, or X P where P has as many rows as X has columns; P symmetric.
fn multiply(p: &[f32], x: &[f32], rows: usize, columns: usize, out: &mut [f32]) {
    let n = rows.min(columns);
    let (p, x) = (MatrixView::new(p, n, n), MatrixView::new(x, rows, columns));
    let (a, b) = if rows > columns { (x, p) } else { (p, x) };
    product(a, &Panels::of(b), 1.0, Start::Zero, out, columns);
}

/// Product of symmetric (n, n) matrices that commute, which is symmetric.
fn square(a: &[f32], b: &[f32], n: usize, out: &mut [f32]) {
    symmetric_product(MatrixView::new(a, n, n), &Panels::of(MatrixView::new(b, n, n)), 1.0, Start::Zero, out);
}

/// a I + b A + c A^2.
fn quintic(gram: &[f32], n: usize, out: &mut [f32]) {
    let [a, b, c] = QUINTIC;
    scaled(gram, b, out);
    let matrix = MatrixView::new(gram, n, n);
    symmetric_product(matrix, &Panels::of(matrix), c, Start::Result, out);
    out.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal += a);
}
