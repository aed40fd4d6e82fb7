//! Matrix products with a right-hand matrix that is prepared once and used for many left-hand matrices.
//!
//! The columns of the right-hand matrix are divided into panels, so wide that the sums of a few rows of the result fit into
//! the registers.  A product computes on the calling thread only; callers divide the rows among threads.  Each value of the
//! result is summed in an order that depends on the inner dimension alone, so that this division changes no bit.

mod pack;
mod tile;
mod vector;

use crate::buffer::Buffer;
use crate::matmul::MatrixView;
use tile::Kernel;

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start<'a> {
    /// Nothing: the old contents of the result are overwritten.
    Zero,
    /// A row, added to each row of the product (a bias).
    Row(&'a [f32]),
    /// The old contents of the result.
    Result,
}

/// The right-hand matrix of a product.
pub struct Panels<'a> {
    values: Values<'a>,
    depth: usize,
    columns: usize,
    kernel: Kernel,
}

enum Values<'a> {
    /// Panel after panel, each row-major and padded with zeros to whole registers.
    Packed(Buffer),
    /// Not copied: row-major with this distance between rows.
    InPlace(&'a [f32], usize),
}

impl<'a> Panels<'a> {
    /// Copies a matrix into panels.
    pub fn packed(matrix: MatrixView) -> Panels<'static> {
        Panels::packed_for(Kernel::best(), matrix, matrix.cols)
    }

    /// Copies a matrix into panels and gives it zeros as further columns, up to `columns` of them.
    pub fn padded(matrix: MatrixView, columns: usize) -> Panels<'static> {
        Panels::packed_for(Kernel::best(), matrix, columns)
    }

    fn packed_for(kernel: Kernel, matrix: MatrixView, columns: usize) -> Panels<'static> {
        let shape = Shape::new(kernel, columns);
        let mut values = Buffer::dirty(matrix.rows * shape.padded());
        pack::pack(matrix, &shape, &mut values);
        Panels { values: Values::Packed(values), depth: matrix.rows, columns, kernel }
    }

    /// Uses a matrix where it is if its layout allows it, else copies it.
    pub fn of(matrix: MatrixView<'a>) -> Panels<'a> {
        let kernel = Kernel::best();
        if matrix.col_stride != 1 || !matrix.cols.is_multiple_of(kernel.lanes) {
            return Panels::packed_for(kernel, matrix, matrix.cols);
        }
        let values = Values::InPlace(matrix.data, matrix.row_stride);
        Panels { values, depth: matrix.rows, columns: matrix.cols, kernel }
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// How the columns of a matrix are divided into panels.
struct Shape {
    /// Values in a register.
    lanes: usize,
    /// Registers for all columns.
    vectors: usize,
    /// Registers of a panel; the last panel may have fewer.
    wide: usize,
}

impl Shape {
    fn new(kernel: Kernel, columns: usize) -> Self {
        let vectors = columns.div_ceil(kernel.lanes);
        // Panels of three registers where they divide the columns and four do not.
        let three = kernel.widest == 4 && !vectors.is_multiple_of(4) && vectors.is_multiple_of(3);
        Shape { lanes: kernel.lanes, vectors, wide: if three { 3 } else { kernel.widest } }
    }

    /// Columns with padding.
    fn padded(&self) -> usize {
        self.vectors * self.lanes
    }

    /// First column and registers of each panel.
    fn panels(&self) -> impl Iterator<Item = (usize, usize)> {
        let (vectors, wide, lanes) = (self.vectors, self.wide, self.lanes);
        (0..vectors).step_by(wide).map(move |first| (first * lanes, wide.min(vectors - first)))
    }
}

/// `out = start + scale * a . b`; rows of `out` start `out_stride` values apart.
///
/// # Shapes
/// `a` (m, k), `b` (k, n), `out` (m, n), the row in `start` (n).
///
/// # Examples
/// ```
/// use macrl_kernels::{MatrixView, Panels, Start, product};
///
/// let a = MatrixView::new(&[1.0, 2.0, 3.0, 4.0], 2, 2);
/// let mut out = [0.0; 4];
/// product(a, &Panels::packed(a.t()), 1.0, Start::Row(&[1.0, 0.0]), &mut out, 2);
/// assert_eq!(out, [6.0, 11.0, 12.0, 25.0]);
/// ```
pub fn product(a: MatrixView, b: &Panels, scale: f32, start: Start, out: &mut [f32], out_stride: usize) {
    product_from(a, b, scale, start, out, out_stride, |_| 0);
}

/// The product of symmetric result `a . b` (n, n): computes the panels on and below the diagonal and mirrors them.
///
/// # Shapes
/// `a` (n, k), `b` (k, n), `out` (n, n).
pub fn symmetric_product(a: MatrixView, b: &Panels, scale: f32, start: Start, out: &mut [f32]) {
    let n = b.columns;
    product_from(a, b, scale, start, out, n, |column| column);
    // Blocks of 16 x 16: each value of a row above the diagonal comes from another cache line.
    for (i, j) in (0..n).step_by(16).flat_map(|i| (i..n).step_by(16).map(move |j| (i, j))) {
        for row in i..n.min(i + 16) {
            for column in j.max(row + 1)..n.min(j + 16) {
                out[row * n + column] = out[column * n + row];
            }
        }
    }
}

/// As [`product`], but each panel's rows above `first_row(first column)` are left as they are.
fn product_from(
    a: MatrixView,
    b: &Panels,
    scale: f32,
    start: Start,
    out: &mut [f32],
    out_stride: usize,
    first_row: impl Fn(usize) -> usize,
) {
    let (m, k, n) = (a.rows, a.cols, b.columns);
    assert_eq!(k, b.depth, "inner dimensions differ");
    assert!(m == 0 || n == 0 || (m - 1) * out_stride + n <= out.len(), "result exceeds its memory");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), n, "the row has another width than the product");
    }
    let shape = Shape::new(b.kernel, n);
    for (column, vectors) in shape.panels() {
        let row = first_row(column);
        if row >= m || k == 0 {
            continue;
        }
        let (panel, b_stride) = match &b.values {
            Values::Packed(values) => (&values[column * k..], vectors * shape.lanes),
            Values::InPlace(values, stride) => (&values[column..], *stride),
        };
        let strip = tile::Strip {
            rows: m - row,
            depth: k,
            columns: (n - column).min(vectors * shape.lanes),
            a: a.data[row * a.row_stride..].as_ptr(),
            a_strides: [a.row_stride, a.col_stride],
            b: panel.as_ptr(),
            b_stride,
            out: out[row * out_stride + column..].as_mut_ptr(),
            out_stride,
            start: match start {
                Start::Zero => tile::Start::Zero,
                Start::Row(values) => tile::Start::Row(values[column..].as_ptr()),
                Start::Result => tile::Start::Result,
            },
            scale,
        };
        // SAFETY: the processor has the instructions of `Kernel::best`.  `MatrixView` keeps the rows of `a` inside its slice, and those of `b` if it is not copied (its columns are
        // whole registers then); a packed panel has `k` rows of whole registers; the asserts above are for `out` and `start`.
        unsafe { (b.kernel.run)(strip) };
    }
}

#[cfg(test)]
mod tests;
