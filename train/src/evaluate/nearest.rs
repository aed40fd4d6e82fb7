//! The k nearest rows of a bank, by comparing each query with all of them.

use rayon::prelude::*;

use super::matrix::{View, multiply};

/// Queries that one thread compares at a time.
pub(super) const QUERIES: usize = 128;
/// Bank rows that they are compared with at a time; 128 x 2,048 similarities are 1 MiB.
pub(super) const BANK: usize = 2048;

/// A neighbour: cosine similarity in [-1, 1] and row number in the bank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Cosine similarity to the query.
    pub similarity: f32,
    /// Row in the bank.
    pub index: u32,
}

/// Compares each query with all rows of the bank, and merges them into `found`; `first` is the index of the bank's first row.
pub(super) fn nearest_in_bank(
    bank: &[f32],
    queries: &[f32],
    dim: usize,
    mut found: Vec<Nearest>,
    first: usize,
) -> Vec<Vec<Neighbour>> {
    let m = queries.len() / dim;
    let mut similarities = vec![0.0f32; m * BANK.min(bank.len() / dim)];
    for (tile_number, tile) in bank.chunks(BANK * dim).enumerate() {
        let columns = tile.len() / dim;
        let out = &mut similarities[..m * columns];
        multiply(View::new(queries, m, dim), View::new(tile, columns, dim).transposed(), out, 0.0);
        for (row, nearest) in out.chunks_exact(columns).zip(&mut found) {
            nearest.offer(row, (first + tile_number * BANK) as u32);
        }
    }
    found.into_iter().map(Nearest::into_kept).collect()
}

/// The k nearest rows so far, nearest first.
#[derive(Clone)]
pub(super) struct Nearest {
    kept: Vec<Neighbour>,
    k: usize,
}

impl Nearest {
    pub(super) fn new(k: usize) -> Self {
        Nearest { kept: Vec::with_capacity(k + 1), k }
    }

    pub(super) fn into_kept(self) -> Vec<Neighbour> {
        self.kept
    }

    /// The similarity that a row needs to be kept.
    pub(super) fn worst(&self) -> f32 {
        match self.kept.last() {
            Some(last) if self.kept.len() == self.k => last.similarity,
            _ if self.k == 0 => f32::INFINITY,
            _ => f32::NEG_INFINITY,
        }
    }

    /// Merges in the similarities of the bank rows `first`, `first + 1`, ...
    fn offer(&mut self, similarities: &[f32], first: u32) {
        // Nearly every block has no row to keep, which one vectorised maximum shows.
        for (block, values) in similarities.chunks(64).enumerate() {
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            if largest > self.worst() {
                for (i, &similarity) in values.iter().enumerate() {
                    self.insert(Neighbour { similarity, index: first + (block * 64 + i) as u32 });
                }
            }
        }
    }

    pub(super) fn insert(&mut self, new: Neighbour) {
        if new.similarity < self.worst() {
            return;
        }
        let nearer = |old: &Neighbour| (old.similarity, new.index) > (new.similarity, old.index);
        let place = self.kept.partition_point(nearer);
        self.kept.insert(place, new);
        self.kept.truncate(self.k);
    }
}

/// Rows divided by their lengths; a row of zeros stays one.
pub fn normalised(values: &[f32], dim: usize) -> Vec<f32> {
    let mut out = values.to_vec();
    out.par_chunks_mut(dim).with_min_len(256).for_each(|row| {
        let square: f32 = row.iter().map(|x| x * x).sum();
        let scale = 1.0 / square.sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x *= scale);
    });
    out
}
