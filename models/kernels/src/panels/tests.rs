use super::*;
use crate::matmul::{Threads, matmul};

/// Small whole numbers: their products and sums are exact in f32, in any order.
fn whole(n: usize, by: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * by) % 11) as f32 - 5.0).collect()
}

fn expected(a: MatrixView, b: MatrixView, scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; a.rows * b.cols];
    matmul(a, b, scale, false, &mut out, b.cols, Threads::One);
    out
}

#[test]
fn products_of_all_shapes_are_exact() {
    for (m, k, n) in [(1, 1, 1), (13, 5, 7), (6, 200, 64), (65, 32, 65), (25, 400, 48), (7, 193, 96), (30, 64, 130)] {
        let (left, right) = (whole(m * k, 3), whole(k * n, 7));
        for transposed in [false, true] {
            let a = if transposed { MatrixView::new(&left, k, m).t() } else { MatrixView::new(&left, m, k) };
            for b in [MatrixView::new(&right, k, n), MatrixView::new(&right, n, k).t()] {
                let expected = expected(a, b, 0.5);
                let bias = whole(n, 5);
                for panels in [Panels::packed(b), Panels::of(b)] {
                    let mut out = vec![f32::NAN; m * n];
                    product(a, &panels, 0.5, Start::Zero, &mut out, n);
                    assert_eq!(out, expected, "{m} {k} {n}");
                    product(a, &panels, 0.5, Start::Result, &mut out, n);
                    assert!(out.iter().zip(&expected).all(|(a, b)| *a == 2.0 * b), "{m} {k} {n}");
                    product(a, &panels, 0.5, Start::Row(&bias), &mut out, n);
                    assert!((0..m * n).all(|i| out[i] == expected[i] + bias[i % n]), "{m} {k} {n}");
                }
            }
        }
    }
}

#[test]
fn rows_and_columns_outside_of_the_result_stay() {
    let (left, right) = (whole(9 * 20, 3), whole(20 * 24, 7));
    // 24 of 40 columns; the matrices are parts of wider ones
    let a = MatrixView::strided(&left, 9, 12, 20);
    let b = MatrixView::strided(&right, 12, 16, 24);
    let mut out = vec![99.0; 9 * 40];
    product(a, &Panels::of(b), 1.0, Start::Zero, &mut out, 40);
    let expected = expected(a, b, 1.0);
    for (row, found) in out.chunks(40).enumerate() {
        assert_eq!(found[..16], expected[row * 16..][..16]);
        assert!(found[16..].iter().all(|v| *v == 99.0));
    }
}

#[test]
fn columns_of_padding_are_zeros() {
    let (left, right) = (whole(3 * 10, 3), whole(10 * 21, 7));
    let (a, b) = (MatrixView::new(&left, 3, 10), MatrixView::new(&right, 21, 10).t());
    let expected = expected(a, b, 1.0);
    for columns in [21, 32, 80] {
        let mut out = vec![f32::NAN; 3 * columns];
        product(a, &Panels::padded(b, columns), 1.0, Start::Zero, &mut out, columns);
        for (row, found) in out.chunks(columns).enumerate() {
            assert_eq!(found[..21], expected[row * 21..][..21]);
            assert!(found[21..].iter().all(|v| *v == 0.0));
        }
    }
}

#[test]
fn a_symmetric_product_is_the_whole_product() {
    for (n, k) in [(5, 9), (192, 40), (100, 16)] {
        let x = whole(n * k, 3);
        let x = MatrixView::new(&x, n, k);
        let mut out = vec![f32::NAN; n * n];
        symmetric_product(x, &Panels::of(x.t()), 2.0, Start::Zero, &mut out);
        assert_eq!(out, expected(x, x.t(), 2.0), "{n} {k}");
    }
}

/// Rows are computed alike whichever rows are computed with them.
#[test]
fn the_division_into_rows_changes_no_bit() {
    let left: Vec<f32> = (0..50 * 300).map(|i| (i as f32 * 0.7).sin()).collect();
    let right: Vec<f32> = (0..300 * 80).map(|i| (i as f32 * 0.3).cos()).collect();
    let panels = Panels::packed(MatrixView::new(&right, 300, 80));
    let run = |rows: usize| {
        let mut out = vec![0.0; 50 * 80];
        for (out, left) in out.chunks_mut(rows * 80).zip(left.chunks(rows * 300)) {
            product(MatrixView::new(left, left.len() / 300, 300), &panels, 1.0, Start::Zero, out, 80);
        }
        out
    };
    let whole = run(50);
    assert!([1, 7, 24].into_iter().all(|rows| run(rows) == whole));
}

/// The other instruction sets, which are chosen by the processor.
#[test]
fn every_instruction_set_computes_the_same() {
    let mut kernels = vec![Kernel::plain(), Kernel::best()];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        kernels.push(Kernel::avx2());
    }
    for (m, k, n) in [(13, 5, 7), (25, 200, 65), (7, 33, 96)] {
        let (left, right) = (whole(m * k, 3), whole(k * n, 7));
        let (a, b) = (MatrixView::new(&left, m, k), MatrixView::new(&right, n, k).t());
        for kernel in &kernels {
            let mut out = vec![f32::NAN; m * n];
            product(a, &Panels::packed_for(*kernel, b, n), 2.0, Start::Zero, &mut out, n);
            assert_eq!(out, expected(a, b, 2.0), "{m} {k} {n}, registers of {}", kernel.lanes);
        }
    }
}
