//! k nearest neighbours by cosine similarity, with votes weighted by exp(similarity / temperature).

use rayon::prelude::*;

use super::features::Features;
use super::nearest::{Nearest, Neighbour, QUERIES, nearest_in_bank, normalised};
use super::pruned;

/// Accuracies of kNN on a test set, in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnnAccuracy {
    /// With k weighted votes.
    pub knn: f64,
    /// With the single nearest neighbour.
    pub knn1: f64,
}

/// Classifies `test` by the nearest neighbours in `train`.  A `k` larger than the look-up set means all of it.
///
/// ```
/// use macrl_train::evaluate::{Features, knn};
///
/// let train = Features { values: vec![1.0, 0.1, 0.1, 1.0], labels: vec![0, 1], dim: 2 };
/// let test = Features { values: vec![5.0, 0.0, 0.0, 3.0, 0.0, 9.0], labels: vec![0, 1, 0], dim: 2 };
/// let accuracy = knn::accuracy(&train, &test, 1, 0.07);
/// assert!((accuracy.knn - 2.0 / 3.0).abs() < 1e-12);
/// ```
pub fn accuracy(train: &Features, test: &Features, k: usize, temperature: f64) -> KnnAccuracy {
    let found = neighbours(&train.values, &test.values, train.dim, k);
    let classes = train.classes().max(test.classes());
    let hits = |answer: &dyn Fn(&[Neighbour]) -> u32| {
        let right = found.iter().zip(&test.labels).filter(|(near, label)| answer(near) == **label).count();
        right as f64 / test.len().max(1) as f64
    };
    KnnAccuracy {
        knn: hits(&|near| vote(near, &train.labels, classes, temperature)),
        knn1: hits(&|near| near.first().map_or(0, |n| train.labels[n.index as usize])),
    }
}

/// The label with the largest sum of exp(similarity / temperature); the smaller label where two are equal.
pub fn vote(near: &[Neighbour], labels: &[u32], classes: usize, temperature: f64) -> u32 {
    // Relative to the nearest one, so that a small temperature can't overflow.
    let best = near.first().map_or(0.0, |n| f64::from(n.similarity));
    let mut votes = vec![0.0f64; classes];
    for n in near {
        votes[labels[n.index as usize] as usize] += ((f64::from(n.similarity) - best) / temperature).exp();
    }
    argmax(&votes) as u32
}

/// For each query its k nearest bank rows by cosine, nearest first, lower index first where two are equally near.
///
/// # Shapes
/// bank (n, D), queries (m, D), both row-major and of any length; result m x min(k, n).  Memory: a normalised copy of
/// the bank and 1 MiB per thread.
pub fn neighbours(bank: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Vec<Neighbour>> {
    let bank = normalised(bank, dim);
    let k = k.min(bank.len() / dim);
    if pruned::pays(bank.len() / dim, queries.len() / dim, dim) {
        return pruned::neighbours(&bank, queries, dim, k);
    }
    queries
        .par_chunks(QUERIES * dim)
        .flat_map_iter(|block| {
            let block = normalised(block, dim);
            nearest_in_bank(&bank, &block, dim, vec![Nearest::new(k); block.len() / dim], 0)
        })
        .collect()
}

/// Index of the largest value, the first where two are equal.
pub(crate) fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::testing;

    // x = draws(40 * 5, 1).reshape(40, 5); q = draws(7 * 5, 2).reshape(7, 5)          # see `testing`
    // NearestNeighbors(n_neighbors=3, metric="cosine").fit(x).kneighbors(q)
    #[test]
    fn neighbours_equal_scikit_learn() {
        let found = neighbours(&testing::draws(200, 1), &testing::draws(35, 2), 5, 3);
        let indices: Vec<Vec<u32>> = found.iter().map(|near| near.iter().map(|n| n.index).collect()).collect();
        assert_eq!(indices, EXPECTED_INDICES);
        let similarities: Vec<f32> = found.iter().map(|near| near[2].similarity).collect();
        for (x, y) in similarities.iter().zip(EXPECTED_THIRD) {
            assert!((x - y).abs() < 1e-5, "{similarities:?}");
        }
    }
    const EXPECTED_INDICES: [[u32; 3]; 7] =
        [[12, 24, 3], [3, 9, 12], [35, 13, 23], [12, 4, 15], [4, 36, 12], [28, 27, 29], [4, 25, 10]];
    const EXPECTED_THIRD: [f32; 7] = [0.7558754, 0.6914061, 0.6719838, 0.5807865, 0.5945833, 0.7765785, 0.5535485];

    #[test]
    fn tiles_do_not_show() {
        // Longer than a tile, neither length a multiple of one; the answer by comparing each pair.
        let (bank, queries) = (testing::draws(5003 * 3, 3), testing::draws(131 * 3, 4));
        let (bank_unit, queries_unit) = (normalised(&bank, 3), normalised(&queries, 3));
        for (near, q) in neighbours(&bank, &queries, 3, 5).iter().zip(queries_unit.chunks(3)) {
            let cosine = |row: &[f32]| row.iter().zip(q).map(|(a, b)| a * b).sum::<f32>();
            let mut all: Vec<f32> = bank_unit.chunks(3).map(cosine).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            for (n, expected) in near.iter().zip(&all) {
                assert!((n.similarity - expected).abs() < 1e-6);
                assert!((cosine(&bank_unit[n.index as usize * 3..][..3]) - expected).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn equal_neighbours_come_in_order_and_k_is_clamped() {
        let bank = [1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 3.0, 0.0];
        let near = neighbours(&bank, &[5.0, 0.0], 2, 9);
        assert_eq!(near[0].iter().map(|n| n.index).collect::<Vec<_>>(), [0, 1, 3, 2]);
    }

    #[test]
    fn near_votes_outweigh_many_far_ones() {
        let near: Vec<Neighbour> = [(1.0, 0), (0.5, 1), (0.5, 2), (0.5, 3)]
            .map(|(similarity, index)| Neighbour { similarity, index })
            .to_vec();
        let labels = [1, 0, 0, 0];
        // exp(0.5 / t) > 3 for t < 0.455
        assert_eq!(vote(&near, &labels, 2, 0.4), 1);
        assert_eq!(vote(&near, &labels, 2, 0.5), 0);
        assert_eq!(vote(&near, &labels, 2, 1e-6), 1);
    }
}
