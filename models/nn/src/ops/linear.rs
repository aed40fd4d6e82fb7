//! `y = x W^T + b`, as in `torch.nn.Linear`.

use macrl_kernels::buffer::Buffer;
use macrl_kernels::matmul::MatrixView;
use macrl_kernels::panels::{Panels, Start, product};
use rayon::prelude::*;

use super::layer_norm::add;

/// Rows that a thread computes at once.  Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 128;

/// Side of the square parts of a weight whose gradients are computed at once.
const SIDE: usize = 192;

/// Rows whose products are added to a gradient at once.
const DEPTH: usize = 192;

/// A weight (O, I), prepared for the forward pass.
pub(super) fn prepare(weight: &[f32], outputs: usize) -> Panels<'static> {
    Panels::packed(MatrixView::new(weight, outputs, weight.len() / outputs.max(1)).t())
}

/// `out = x W^T + b` for the rows of one thread; `residual`: the result is added to `out`.
///
/// # Shapes
/// `x` (rows, I), `bias` (O), `out` (rows, O).
pub(super) fn rows(x: &[f32], weight: &Panels, bias: &[f32], out: &mut [f32], residual: bool) {
    let outputs = bias.len();
    let count = out.len() / outputs.max(1);
    let x = MatrixView::new(x, count, x.len() / count.max(1));
    let start = if residual {
        out.chunks_exact_mut(outputs).for_each(|row| add(row, bias));
        Start::Result
    } else {
        Start::Row(bias)
    };
    product(x, weight, 1.0, start, out, outputs);
}

/// `dx = dy W` for the rows of one thread.
///
/// # Shapes
/// `dy` (rows, O), `weight` (O, I), `dx` (rows, I).
pub(super) fn rows_backward(dy: &[f32], weight: &[f32], outputs: usize, dx: &mut [f32]) {
    let (count, inputs) = (dy.len() / outputs.max(1), weight.len() / outputs.max(1));
    let weight = MatrixView::new(weight, outputs, inputs);
    product(MatrixView::new(dy, count, outputs), &Panels::of(weight), 1.0, Start::Zero, dx, inputs);
}

/// `out = x W^T + b`.
///
/// # Shapes
/// `x` (rows, I), `weight` (O, I), `bias` (O), `out` (rows, O).
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let (outputs, inputs) = (bias.len(), weight.len() / bias.len().max(1));
    let weight = prepare(weight, outputs);
    let parts = out.par_chunks_mut(ROWS * outputs).zip(x.par_chunks(ROWS * inputs));
    parts.for_each(|(out, x)| rows(x, &weight, bias, out, false));
}

/// Writes the gradient of the input.
///
/// # Shapes
/// `dy` (rows, O), `weight` (O, I), `dx` (rows, I).
pub fn backward_input(dy: &[f32], weight: &[f32], outputs: usize, dx: &mut [f32]) {
    let inputs = weight.len() / outputs.max(1);
    let parts = dx.par_chunks_mut(ROWS * inputs).zip(dy.par_chunks(ROWS * outputs));
    parts.for_each(|(dx, dy)| rows_backward(dy, weight, outputs, dx));
}

/// Writes the gradients of the weight and the bias.
///
/// # Shapes
/// `x` (rows, I), `dy` (rows, O), `dweight` (O, I), `dbias` (O).
pub fn backward_parameters(x: &[f32], dy: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let outputs = dbias.len();
    weight_gradients(vec![Gradient { x, dy, outputs, dweight }]);
    column_sums(dy, dbias);
}

/// A weight whose gradient is `dy^T x`.
///
/// # Shapes
/// `x` (rows, I), `dy` (rows, O), `dweight` (O, I).
pub(super) struct Gradient<'a> {
    pub(super) x: &'a [f32],
    pub(super) dy: &'a [f32],
    /// O.
    pub(super) outputs: usize,
    pub(super) dweight: &'a mut [f32],
}

impl Gradient<'_> {
    fn inputs(&self) -> usize {
        self.dweight.len() / self.outputs.max(1)
    }

    /// The gradient of the weights from `outputs` x `inputs`.
    fn part(&self, [o, i]: [usize; 2]) -> Buffer {
        let (outputs, inputs) = (self.outputs, self.inputs());
        let (rows, columns) = (SIDE.min(outputs - o), SIDE.min(inputs - i));
        let mut out = Buffer::dirty(rows * columns);
        let mut start = Start::Zero;
        for (x, dy) in self.x.chunks(DEPTH * inputs).zip(self.dy.chunks(DEPTH * outputs)) {
            let depth = x.len() / inputs;
            let dy = MatrixView::strided(&dy[o..], depth, rows, outputs);
            let x = MatrixView::strided(&x[i..], depth, columns, inputs);
            product(dy.t(), &Panels::of(x), 1.0, start, &mut out, columns);
            start = Start::Result;
        }
        if start == Start::Zero {
            out.fill(0.0); // no rows
        }
        out
    }
}

/// Writes the gradients of several weights; all their parts are computed in parallel, each by one thread.
pub(super) fn weight_gradients(mut gradients: Vec<Gradient>) {
    let parts = |(index, gradient): (usize, &Gradient)| {
        let (outputs, inputs) = (gradient.outputs, gradient.inputs());
        let corners = move |o: usize| (0..inputs).step_by(SIDE).map(move |i| (index, [o, i]));
        (0..outputs).step_by(SIDE).flat_map(corners)
    };
    let parts: Vec<(usize, [usize; 2])> = gradients.iter().enumerate().flat_map(parts).collect();
    let done: Vec<Buffer> = parts.par_iter().map(|(index, corner)| gradients[*index].part(*corner)).collect();
    for ((index, [o, i]), values) in parts.iter().zip(&done) {
        let inputs = gradients[*index].inputs();
        let columns = SIDE.min(inputs - i);
        let rows = gradients[*index].dweight[o * inputs..].chunks_mut(inputs);
        rows.zip(values.chunks_exact(columns)).for_each(|(to, from)| to[*i..i + columns].copy_from_slice(from));
    }
}

/// Sums each column; the order of the additions does not depend on the number of threads.
///
/// # Shapes
/// `values` (rows, O), `sums` (O).
pub fn column_sums(values: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    let partial: Vec<Vec<f32>> = values
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sums = vec![0f32; width];
            add_rows(&mut sums, rows);
            sums
        })
        .collect();
    sums.fill(0.0);
    for part in &partial {
        add(sums, part);
    }
}

/// Adds each row to `sums`.
pub(super) fn add_rows(sums: &mut [f32], rows: &[f32]) {
    rows.chunks_exact(sums.len()).for_each(|row| add(sums, row));
}
