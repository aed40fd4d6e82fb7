//! Finds the same neighbours as [`super::nearest`] in wide features, and rules out most pairs by a few directions.
//!
//! P (K, D) holds orthonormal directions in which the features vary most.  For unit vectors q and x, with r(x) the length
//! of what P leaves of x,  q x <= (P q)(P x) + r(q) r(x):  one product of K + 1 values each.  All D values are
//! compared only where this bound reaches the k nearest rows so far, so the result is exact.  Where the bound rules out too few
//! pairs, the rest of the bank is compared in full.

use rayon::prelude::*;

use super::draw::mix;
use super::matrix::{View, multiply};
use super::nearest::{BANK, Nearest, Neighbour, QUERIES, nearest_in_bank, normalised};

/// K, the number of directions.
const DIRECTIONS: usize = 256;
/// Bank rows from which the directions are found.
const SAMPLED: usize = 2048;
/// Features narrower than this are compared in full.
const WIDE: usize = 4 * DIRECTIONS;
/// Sets with fewer multiplications are compared in full too: finding the directions would cost more than it saves.
const WORTH: f64 = 2e10;
/// Bound on the rounding errors of similarities and squared lengths in single precision.
const ROUNDING: f32 = 1e-5;
/// If more than this share of the pairs passes the bound, the bound costs more than it saves.
const LOOSE: f64 = 0.1;

/// Whether this search is faster than a full comparison.
pub(super) fn pays(bank: usize, queries: usize, dim: usize) -> bool {
    dim >= WIDE && bank > 2 * SAMPLED && bank as f64 * queries as f64 * dim as f64 > WORTH
}

/// For each query its k nearest bank rows, in the order of [`super::knn::neighbours`].
///
/// # Shapes
/// bank (n, D), of unit rows; queries (m, D), of any length.
pub(super) fn neighbours(bank: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Vec<Neighbour>> {
    let directions = directions(bank, dim);
    let short = shortened(bank, &directions, dim);
    queries
        .par_chunks(QUERIES * dim)
        .flat_map_iter(|block| {
            let block = normalised(block, dim);
            let bounded = shortened(&block, &directions, dim);
            search(bank, &short, &block, &bounded, dim, k)
        })
        .collect()
}

/// Compares one block of queries with the whole bank, tile by tile.
fn search(bank: &[f32], short: &[f32], queries: &[f32], bounded: &[f32], dim: usize, k: usize) -> Vec<Vec<Neighbour>> {
    let (m, width) = (queries.len() / dim, bounded.len() / (queries.len() / dim));
    let mut found = vec![Nearest::new(k); m];
    let mut bounds = vec![0.0f32; m * BANK.min(bank.len() / dim)];
    let (mut compared, mut seen) = (0, 0);
    for (number, tile) in short.chunks(BANK * width).enumerate() {
        let (first, columns) = (number * BANK, tile.len() / width);
        if compared as f64 > LOOSE * seen as f64 && number > 1 {
            return nearest_in_bank(&bank[first * dim..], queries, dim, found, first);
        }
        let out = &mut bounds[..m * columns];
        multiply(View::new(bounded, m, width), View::new(tile, columns, width).transposed(), out, 0.0);
        for ((bounds, query), nearest) in out.chunks_exact(columns).zip(queries.chunks_exact(dim)).zip(&mut found) {
            let count = compare(bounds, &bank[first * dim..], query, first, nearest);
            // Every row of the first tile passes, since nothing was found before.
            compared += if number == 0 { 0 } else { count };
        }
        seen += if number == 0 { 0 } else { m * columns };
    }
    found.into_iter().map(Nearest::into_kept).collect()
}

/// Compares a query with the rows of a tile whose bound reaches the nearest rows so far, largest bound first; returns the number
/// of compared rows.
fn compare(bounds: &[f32], rows: &[f32], query: &[f32], first: usize, nearest: &mut Nearest) -> usize {
    let reach = |bound: f32, nearest: &Nearest| bound + ROUNDING >= nearest.worst();
    let mut hopeful: Vec<(f32, usize)> = Vec::new();
    for (block, values) in bounds.chunks(64).enumerate() {
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if reach(largest, nearest) {
            let passed = values.iter().enumerate().filter(|(_, bound)| reach(**bound, nearest));
            hopeful.extend(passed.map(|(i, bound)| (*bound, block * 64 + i)));
        }
    }
    hopeful.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut compared = 0;
    for (bound, i) in hopeful {
        if !reach(bound, nearest) {
            break;
        }
        let similarity = product(query, &rows[i * query.len()..(i + 1) * query.len()]);
        nearest.insert(Neighbour { similarity, index: (first + i) as u32 });
        compared += 1;
    }
    compared
}

/// Sum of products, in lanes so that it vectorises.
fn product(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0.0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_lanes.zip(b_lanes) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Unit rows (n, D) -> (n, K + 1): their coordinates along the directions, and the length of the rest, rounded up.
fn shortened(rows: &[f32], directions: &[f32], dim: usize) -> Vec<f32> {
    let k = directions.len() / dim;
    let shorten = |block: &[f32]| {
        let n = block.len() / dim;
        let mut along = vec![0.0f32; n * k];
        multiply(View::new(block, n, dim), View::new(directions, k, dim).transposed(), &mut along, 0.0);
        let rest = |row: &[f32]| (1.0 - product(row, row)).max(0.0) + ROUNDING;
        along.chunks_exact(k).flat_map(|row| row.iter().copied().chain([rest(row).sqrt()])).collect::<Vec<f32>>()
    };
    rows.par_chunks(512 * dim).flat_map_iter(shorten).collect()
}

/// Orthonormal rows (K, D) that span most of the rows' variation: random mixtures of some of the rows (n, D), improved by one
/// power iteration (Halko, Martinsson and Tropp 2011, algorithm 4.3).
fn directions(rows: &[f32], dim: usize) -> Vec<f32> {
    let n = rows.len() / dim;
    let sampled: Vec<f32> = (0..SAMPLED).flat_map(|i| rows[i * n / SAMPLED * dim..][..dim].iter().copied()).collect();
    let noise: Vec<f32> =
        (0..(DIRECTIONS * SAMPLED) as u64).map(|i| (mix(0, i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
    let mut mixed = mixtures(&noise, &sampled, dim);
    let mut shares = vec![0.0f32; DIRECTIONS * SAMPLED];
    shares.par_chunks_mut(16 * SAMPLED).zip(mixed.par_chunks(16 * dim)).for_each(|(out, rows)| {
        let all = View::new(&sampled, SAMPLED, dim).transposed();
        multiply(View::new(rows, rows.len() / dim, dim), all, out, 0.0);
    });
    mixed = mixtures(&shares, &sampled, dim);
    orthonormal(mixed, dim)
}

/// The product of shares (K, n) and rows (n, D).
fn mixtures(shares: &[f32], rows: &[f32], dim: usize) -> Vec<f32> {
    let n = rows.len() / dim;
    let mut out = vec![0.0f32; shares.len() / n * dim];
    out.par_chunks_mut(16 * dim).zip(shares.par_chunks(16 * n)).for_each(|(out, shares)| {
        multiply(View::new(shares, shares.len() / n, n), View::new(rows, n, dim), out, 0.0);
    });
    out
}

/// Gram-Schmidt, applied twice to each row.  Rows that depend on earlier ones are dropped.
fn orthonormal(mut rows: Vec<f32>, dim: usize) -> Vec<f32> {
    let mut kept = 0;
    for i in 0..rows.len() / dim {
        let (before, rest) = rows.split_at_mut(i * dim);
        let row = &mut rest[..dim];
        let length = product(row, row).sqrt();
        for _ in 0..2 {
            for other in before[..kept * dim].chunks_exact(dim) {
                let along = product(row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
        }
        let left = product(row, row).sqrt();
        if left > 1e-4 * length && left > 0.0 {
            row.iter_mut().for_each(|x| *x /= left);
            rows.copy_within(i * dim..(i + 1) * dim, kept * dim);
            kept += 1;
        }
    }
    rows.truncate(kept * dim);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing::draws;

    const DIM: usize = 1100;

    /// Rows that vary mostly along a few directions, `noise` everywhere else.
    fn rows(n: usize, seed: u64, noise: f32) -> Vec<f32> {
        let (axes, places, rest) = (draws(8 * DIM, 1), draws(n * 8, seed), draws(n * DIM, seed + 1));
        let mut out = vec![0.0f32; n * DIM];
        multiply(View::new(&places, n, 8), View::new(&axes, 8, DIM), &mut out, 0.0);
        out.iter_mut().zip(rest).for_each(|(x, r)| *x += noise * r);
        out
    }

    #[test]
    fn neighbours_are_those_of_a_full_comparison() {
        // Tight bounds, loose ones, and useless ones; one row occurs twice.
        for noise in [0.05, 0.5, 20.0] {
            let (mut bank, queries) = (rows(3000, 10, noise), rows(40, 20, noise));
            bank.copy_within(5 * DIM..6 * DIM, 2500 * DIM);
            let unit = normalised(&bank, DIM);
            let full = |queries: &[f32]| {
                let unit_queries = normalised(queries, DIM);
                nearest_in_bank(&unit, &unit_queries, DIM, vec![Nearest::new(7); queries.len() / DIM], 0)
            };
            let (found, expected) = (neighbours(&unit, &queries, DIM, 7), full(&queries));
            assert_eq!(found.len(), 40);
            for (found, expected) in found.iter().zip(&expected) {
                for (a, b) in found.iter().zip(expected) {
                    // Rows may change places where rounding decides.
                    assert!((a.similarity - b.similarity).abs() < 1e-5, "{noise}: {found:?} {expected:?}");
                }
            }
            let own = neighbours(&unit, &bank[5 * DIM..6 * DIM], DIM, 2);
            assert_eq!(own[0].iter().map(|n| n.index).collect::<Vec<_>>(), [5, 2500], "{noise}");
        }
    }

    #[test]
    fn directions_are_orthonormal_and_hold_the_rows() {
        let unit = normalised(&rows(SAMPLED, 10, 0.0), DIM);
        let directions = directions(&unit, DIM);
        let k = directions.len() / DIM;
        assert!((8..=DIRECTIONS).contains(&k), "{k}");
        for (i, a) in directions.chunks(DIM).enumerate() {
            for (j, b) in directions.chunks(DIM).enumerate() {
                assert!((product(a, b) - f32::from(u8::from(i == j))).abs() < 1e-4, "{i} {j}");
            }
        }
        let rest = shortened(&unit, &directions, DIM);
        assert!(rest.chunks(k + 1).all(|row| row[k] < 0.01));
        assert_eq!((pays(50_000, 10_000, 3072), pays(50_000, 10_000, 768), pays(300, 40, 3072)), (true, false, false));
    }
}
