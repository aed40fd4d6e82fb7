//! Exact search: queries are compared with all vectors, or one query with the vectors of some slots.
//!
//! A single query is limited by the speed of memory: it reads every vector once.  Several queries share that pass: a block of
//! vectors that fits into the cache is multiplied with all of them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use macrl_kernels::matmul::{MatrixView, Threads, matmul};
use macrl_kernels::simd::fma;
use macrl_kernels::vectorised;
use rayon::prelude::*;

use super::super::item::{Hit, ScoredId};
use super::super::query::Query;
use super::item_table::ItemTable;

/// Vectors of a block: with 192 numbers each they take 768 KiB, about a core's own cache.
const ROWS: usize = 1024;
/// From so many queries on, blocks are multiplied as matrices; fewer queries are compared one by one.
const GEMM: usize = 4;
/// Slots of a subset that a thread compares at a time.
const SUBSET: usize = 4096;

vectorised! {
    /// The product of each row with the query.
    ///
    /// # Shapes
    /// `rows` (n, D), `query` (D), `out` (n).
    fn products(rows: &[f32], query: &[f32], out: &mut [f32]) {
        let tail = query.len() - query.len() % 16;
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            // Two independent sums: the additions of one run while those of the other wait for their results.
            let mut lanes = [[0f32; 16]; 2];
            for (i, (x, y)) in row.chunks_exact(16).zip(query.chunks_exact(16)).enumerate() {
                for l in 0..16 {
                    lanes[i % 2][l] = fma::<FMA>(x[l], y[l], lanes[i % 2][l]);
                }
            }
            let mut sum = 0f32;
            for (x, y) in row[tail..].iter().zip(&query[tail..]) {
                sum = fma::<FMA>(*x, *y, sum);
            }
            let mut both = [0f32; 16];
            for l in 0..16 {
                both[l] = lanes[0][l] + lanes[1][l];
            }
            for width in [8, 4, 2, 1] {
                for l in 0..width {
                    both[l] += both[l + width];
                }
            }
            *out = both[0] + sum;
        }
    }
}

vectorised! {
    /// Collects the positions of the scores that are at least `threshold`.
    fn positions_above(scores: &[f32], threshold: f32, found: &mut Vec<u32>) {
        found.clear();
        for (chunk, start) in scores.chunks(64).zip((0u32..).step_by(64)) {
            let mut any = false;
            for score in chunk {
                any |= *score >= threshold;
            }
            if any {
                found.extend((start..).zip(chunk).filter(|(_, score)| **score >= threshold).map(|(i, _)| i));
            }
        }
    }
}

/// A scored item; sorted best first: by descending score, then by id.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    score: f32,
    slot: u32,
    id: &'a str,
}

impl Ord for Candidate<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then_with(|| self.id.cmp(other.id))
    }
}

impl PartialOrd for Candidate<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate<'_> {}

/// The k best candidates so far; the worst of them is on top of the heap.
#[derive(Debug)]
struct TopK<'a> {
    k: usize,
    except: Option<&'a str>,
    heap: BinaryHeap<Candidate<'a>>,
}

impl<'a> TopK<'a> {
    fn new(query: &'a Query) -> Self {
        Self { k: query.k, except: query.except.as_deref(), heap: BinaryHeap::new() }
    }

    /// The score that a further candidate must reach.
    fn threshold(&self) -> f32 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() >= self.k => worst.score,
            _ => f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, table: &'a ItemTable, slot: u32, score: f32) {
        let Some(entry) = table.entry(slot) else { return };
        if self.except == Some(&*entry.id) {
            return;
        }
        self.push(Candidate { score, slot, id: &entry.id });
    }

    fn push(&mut self, candidate: Candidate<'a>) {
        if self.heap.len() < self.k {
            self.heap.push(candidate);
        } else if self.heap.peek().is_some_and(|worst| candidate < *worst) {
            self.heap.pop();
            self.heap.push(candidate);
        }
    }

    fn merge(mut self, other: Self) -> Self {
        other.heap.into_iter().for_each(|candidate| self.push(candidate));
        self
    }

    fn hits(self, table: &ItemTable) -> Vec<Hit> {
        let best = self.heap.into_sorted_vec();
        best.into_iter().filter_map(|c| table.hit(c.slot, c.score)).collect()
    }
}

/// The nearest items of each query among all items; filters are ignored.
pub(super) fn all(table: &ItemTable, queries: &[&Query]) -> Vec<Vec<Hit>> {
    if queries.iter().any(|q| q.vector.len() != table.dim()) {
        // While the queries waited, the index was emptied for another encoder.
        return vec![Vec::new(); queries.len()];
    }
    let block: Vec<f32> = queries.iter().flat_map(|q| q.vector.iter().copied()).collect();
    let parts = rayon::current_num_threads() * 4;
    // Each part is a whole number of blocks.
    let share = table.slots().div_ceil(parts).next_multiple_of(ROWS).max(ROWS);
    let starts: Vec<usize> = (0..table.slots()).step_by(share).collect();
    let none = || queries.iter().map(|q| TopK::new(q)).collect::<Vec<_>>();
    let best = starts
        .par_iter()
        .map(|&start| part(table, queries, &block, start..(start + share).min(table.slots())))
        .reduce(none, |a, b| a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect());
    best.into_iter().map(|best| best.hits(table)).collect()
}

/// The best candidates of each query among one thread's slots.
///
/// # Shapes
/// `block` (Q, D).
fn part<'a>(
    table: &'a ItemTable,
    queries: &[&'a Query],
    block: &[f32],
    slots: std::ops::Range<usize>,
) -> Vec<TopK<'a>> {
    let dim = table.dim();
    let mut best: Vec<TopK> = queries.iter().map(|q| TopK::new(q)).collect();
    let mut scores = vec![0f32; queries.len() * ROWS];
    let mut found = Vec::new();
    for start in slots.clone().step_by(ROWS) {
        let n = ROWS.min(slots.end - start);
        let rows = &table.vectors()[start * dim..(start + n) * dim];
        score(rows, block, dim, &mut scores);
        for (best, scores) in best.iter_mut().zip(scores.chunks_exact(ROWS)) {
            positions_above(&scores[..n], best.threshold(), &mut found);
            found.iter().for_each(|i| best.offer(table, start as u32 + i, scores[*i as usize]));
        }
    }
    best
}

/// Scores of each query with each row.
///
/// # Shapes
/// `rows` (n, D), `block` (Q, D), `scores` (Q, ROWS), of which the first n of each row are written.
fn score(rows: &[f32], block: &[f32], dim: usize, scores: &mut [f32]) {
    let (n, queries) = (rows.len() / dim, block.len() / dim);
    if queries < GEMM {
        let each = block.chunks_exact(dim).zip(scores.chunks_exact_mut(ROWS));
        each.for_each(|(query, scores)| products(rows, query, &mut scores[..n]));
    } else {
        let (a, b) = (MatrixView::new(block, queries, dim), MatrixView::new(rows, n, dim).t());
        matmul(a, b, 1.0, false, scores, ROWS, Threads::One);
    }
}

/// The nearest items in these slots.
pub(super) fn subset(table: &ItemTable, slots: &[u32], query: &Query) -> Vec<Hit> {
    let best = slots.par_chunks(SUBSET).map(|slots| {
        let mut best = TopK::new(query);
        for slot in slots {
            let mut score = [0f32];
            products(table.vector(*slot), &query.vector, &mut score);
            if score[0] >= best.threshold() {
                best.offer(table, *slot, score[0]);
            }
        }
        best
    });
    best.reduce(|| TopK::new(query), TopK::merge).hits(table)
}

/// All items in these slots that score at least `threshold`, best first.
pub(super) fn within(table: &ItemTable, slots: &[u32], query: &Query, threshold: f32) -> Vec<ScoredId> {
    let near = slots.par_chunks(SUBSET).flat_map_iter(|slots| {
        slots.iter().filter_map(|slot| {
            let mut score = [0f32];
            products(table.vector(*slot), &query.vector, &mut score);
            let entry = table.entry(*slot).filter(|_| score[0] >= threshold)?;
            let candidate = Candidate { score: score[0], slot: *slot, id: &entry.id };
            (query.except.as_deref() != Some(candidate.id)).then_some(candidate)
        })
    });
    let mut near: Vec<Candidate> = near.collect();
    near.par_sort_unstable();
    near.into_iter().map(|c| ScoredId { id: c.id.into(), score: c.score.clamp(-1.0, 1.0) }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::filter::Filter;
    use super::super::super::item::Metadata;
    use super::super::item_table::Record;
    use super::*;

    /// Pseudo-random numbers from a fixed seed.
    fn noise(n: usize, mut state: u32) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn item_table(n: usize, dim: usize) -> ItemTable {
        let mut table = ItemTable::new(dim, n);
        for (i, vector) in noise(n * dim, 1).chunks_exact(dim).enumerate() {
            let id = format!("{:05}", (i * 7919) % n).into();
            let vector = vector.to_vec();
            let record =
                Record { id, vector, metadata: Metadata::default(), hash: None, has_image: false, image: None };
            table.put(i as u64 + 1, record);
        }
        table
    }

    /// The expected answer: every item scored in double precision and sorted.
    fn reference(table: &ItemTable, query: &Query) -> Vec<(String, f64)> {
        let product = |slot: u32| -> f64 {
            table.vector(slot).iter().zip(&query.vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let slots = 0..table.slots() as u32;
        let mut all: Vec<(String, f64)> =
            slots.filter_map(|s| table.entry(s).map(|e| (e.id.to_string(), product(s)))).collect();
        all.retain(|(id, _)| query.except.as_ref() != Some(id));
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        all.truncate(query.k);
        all
    }

    #[test]
    fn every_kind_of_scan_finds_what_sorting_all_items_finds() {
        // Neither the number of items nor D is a multiple of a block or vector width.
        let (n, dim) = (2 * ROWS + 77, 37);
        let mut table = item_table(n, dim);
        (0..300).for_each(|i| assert!(table.delete(&format!("{:05}", i * 3))));
        let queries: Vec<Query> = noise(9 * dim, 2)
            .chunks_exact(dim)
            .enumerate()
            .map(|(i, v)| Query {
                // Small numbers, so that no score is clamped.
                vector: v.iter().map(|x| x / dim as f32).collect(),
                k: [1, 10, 3000][i % 3],
                filter: Filter::default(),
                exact: true,
                except: (i % 2 == 0).then(|| "00001".into()),
            })
            .collect();
        let slots: Vec<u32> = (0..table.slots() as u32).collect();
        for count in [1, 3, 9] {
            let batch: Vec<&Query> = queries[..count].iter().collect();
            for (query, hits) in batch.iter().zip(all(&table, &batch)) {
                let expected = reference(&table, query);
                assert_eq!(hits.len(), expected.len());
                assert_eq!(subset(&table, &slots, query).len(), expected.len());
                for ((hit, other), (id, score)) in hits.iter().zip(subset(&table, &slots, query)).zip(&expected) {
                    assert!((f64::from(hit.score) - score).abs() < 1e-5 && (hit.score - other.score).abs() < 1e-5);
                    // Neighbours in the order may change places where single precision cannot tell them apart.
                    let near = expected.iter().any(|(i, s)| *i == hit.id && (s - score).abs() < 1e-5);
                    assert!(near, "{} {} {id} {score}", hit.id, hit.score);
                }
            }
        }
    }

    #[test]
    fn equal_scores_come_in_the_order_of_ids_whatever_the_slots() {
        let mut table = ItemTable::new(2, 0);
        for (seq, id) in ["d", "b", "a", "c"].into_iter().enumerate() {
            let record = Record {
                id: id.into(),
                vector: vec![1.0, 0.0],
                metadata: Metadata::default(),
                hash: None,
                has_image: false,
                image: None,
            };
            table.put(seq as u64 + 1, record);
        }
        let query = Query { vector: vec![1.0, 0.0], k: 2, filter: Filter::default(), exact: true, except: None };
        for hits in [all(&table, &[&query]).remove(0), subset(&table, &[0, 1, 2, 3], &query)] {
            assert_eq!(hits.iter().map(|h| h.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        }
    }
}
