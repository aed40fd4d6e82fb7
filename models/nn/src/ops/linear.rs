//! `y = x W^T + b`, as in `torch.nn.Linear`.

use macrl_kernels::matmul::{MatrixView, Threads, matmul};
use rayon::prelude::*;

use super::ROWS_PER_PART;
use super::layer_norm::add;

/// `out = x W^T + b`; with `accumulate` the result is added to `out` (a residual branch).
///
/// # Shapes
/// `x` (rows, I), `weight` (O, I), `bias` (O), `out` (rows, O).
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32], accumulate: bool) {
    let (width_out, rows) = (bias.len(), out.len() / bias.len().max(1));
    let width_in = weight.len() / width_out.max(1);
    let part = ROWS_PER_PART * width_out;
    // The bias is written first and the product added to it, which saves a pass over the result.
    out.par_chunks_mut(part).for_each(|out| {
        for row in out.chunks_exact_mut(width_out) {
            if accumulate { add(row, bias) } else { row.copy_from_slice(bias) }
        }
    });
    let (x, w) = (MatrixView::new(x, rows, width_in), MatrixView::new(weight, width_out, width_in));
    matmul(x, w.t(), 1.0, true, out, width_out, Threads::All);
}

/// Writes the gradients of the weight and the bias.
///
/// # Shapes
/// `x` (rows, I), `dy` (rows, O), `dweight` (O, I), `dbias` (O).
pub fn backward_parameters(x: &[f32], dy: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let width_out = dbias.len();
    let (rows, width_in) = (dy.len() / width_out.max(1), dweight.len() / width_out.max(1));
    let (x, g) = (MatrixView::new(x, rows, width_in), MatrixView::new(dy, rows, width_out));
    matmul(g.t(), x, 1.0, false, dweight, width_in, Threads::All);
    column_sums(dy, dbias);
}

/// Writes the gradient of the input, or adds it if `accumulate`.
///
/// # Shapes
/// `dy` (rows, O), `weight` (O, I), `dx` (rows, I).
pub fn backward_input(dy: &[f32], weight: &[f32], width_out: usize, dx: &mut [f32], accumulate: bool) {
    let (rows, width_in) = (dy.len() / width_out.max(1), weight.len() / width_out.max(1));
    let (g, w) = (MatrixView::new(dy, rows, width_out), MatrixView::new(weight, width_out, width_in));
    matmul(g, w, 1.0, accumulate, dx, width_in, Threads::All);
}

/// Sums each column; the order of the additions does not depend on the number of threads.
///
/// # Shapes
/// `values` (rows, O), `sums` (O).
pub fn column_sums(values: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let partial: Vec<Vec<f32>> = values
        .par_chunks(ROWS_PER_PART * width)
        .map(|rows| {
            let mut sums = vec![0f32; width];
            rows.chunks_exact(width).for_each(|row| add(&mut sums, row));
            sums
        })
        .collect();
    sums.fill(0.0);
    for part in &partial {
        add(sums, part);
    }
}
