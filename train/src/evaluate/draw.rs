//! Random choices of evaluation, reproducible from a seed.

use std::collections::HashMap;

use macrl_kernels::rng;

/// Seed of the images that are chosen from a split; not the run's, so that runs with different seeds are evaluated on the same
/// images.
const FIXED: u64 = 0xD4A3;

/// The numbers 0..n in an order that `seed` decides.
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_cached_key(|&i| mix(seed, i as u64));
    order
}

/// 64 random bits for counter `i` of stream `seed`: SplitMix64's output function (Steele, Lea and Flood 2014).
pub(crate) fn mix(seed: u64, i: u64) -> u64 {
    rng::mix((i + 1).wrapping_mul(rng::STEP).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03)))
}

/// Chooses at most `count` images of a split at random, with a fixed seed, and returns their indices in ascending order.  Every
/// class has the same share as in the split, and at least `least` images where it has so many and there is room.
///
/// Images without a label count as one class.  The choice does not depend on the order of the split: taking every n-th image of
/// a list in which the classes take turns would give images of a few classes only.
pub fn stratified(labels: &[Option<u32>], count: usize, least: usize) -> Vec<usize> {
    let ranks = ranks(labels);
    let mut sizes: HashMap<Option<u32>, usize> = HashMap::new();
    labels.iter().for_each(|label| *sizes.entry(*label).or_default() += 1);
    // First the `least` images of every class; then the others, by the share of their class that comes before them.
    let key = |i: usize| {
        let (rank, size) = (ranks[i], sizes[&labels[i]]);
        let class = mix(FIXED, labels[i].map_or(0, |label| 1 + u64::from(label)));
        match rank < least && size >= least {
            true => (0, 0.0, class, rank),
            false => (1, (rank as f64 + 0.5) / size as f64, class, rank),
        }
    };
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (key(a), key(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)).then(a.3.cmp(&b.3))
    });
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The fold of each image; each class is spread over the folds as evenly as possible.
///
/// A class with at least two images is never in one fold alone, so that a query can find its class in the other folds.
pub fn folds(labels: &[u32], folds: usize) -> Vec<usize> {
    let labels: Vec<Option<u32>> = labels.iter().map(|label| Some(*label)).collect();
    ranks(&labels).into_iter().map(|rank| rank % folds.max(1)).collect()
}

/// For each image the number of images of its class that come before it in the fixed random order.
fn ranks(labels: &[Option<u32>]) -> Vec<usize> {
    let mut before: HashMap<Option<u32>, usize> = HashMap::new();
    let mut ranks = vec![0; labels.len()];
    for i in shuffled(labels.len(), FIXED) {
        let count = before.entry(labels[i]).or_default();
        ranks[i] = *count;
        *count += 1;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels in one of the orders that data sets come in.
    fn ordered(sizes: &[usize], order: &str) -> Vec<u32> {
        let mut ranked: Vec<(usize, u32)> = Vec::new();
        for (class, size) in sizes.iter().enumerate() {
            ranked.extend((0..*size).map(|rank| (rank, class as u32)));
        }
        match order {
            "sorted" => {}
            "interleaved" => ranked.sort(),
            _ => {
                let order = shuffled(ranked.len(), 99);
                ranked = order.into_iter().map(|i| ranked[i]).collect();
            }
        }
        ranked.into_iter().map(|(_, class)| class).collect()
    }

    /// What a check looks at: the draw, and which images in it are looked up among which others.
    fn check_draw(labels: &[u32], count: usize) -> Vec<u32> {
        let all: Vec<Option<u32>> = labels.iter().map(|label| Some(*label)).collect();
        let drawn = stratified(&all, count, 2);
        assert_eq!(drawn.len(), count.min(labels.len()));
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
        drawn.into_iter().map(|i| labels[i]).collect()
    }

    #[test]
    fn every_query_can_be_found() {
        // Class sizes from 1 up; 6 a check's folds, whose multiples must not matter either.
        let kinds: [fn(usize) -> usize; 7] =
            [|_| 1, |_| 2, |_| 6, |_| 30, |i| 1 + i % 7, |i| 1 + i * i % 40, |i| if i == 0 { 500 } else { 2 }];
        for classes in [2, 3, 5, 6, 7, 10, 12, 20, 36, 64, 100, 102, 120, 200] {
            for kind in kinds {
                let sizes: Vec<usize> = (0..classes).map(kind).collect();
                for order in ["sorted", "interleaved", "shuffled"] {
                    let labels = ordered(&sizes, order);
                    for count in [labels.len(), labels.len() * 2 / 3, 2 * classes, 50] {
                        let drawn = check_draw(&labels, count);
                        let folds = folds(&drawn, 6);
                        let of = |class: u32| drawn.iter().filter(move |label| **label == class).count();
                        for (class, fold) in drawn.iter().zip(&folds).filter(|(class, _)| of(**class) > 1) {
                            let others = drawn.iter().zip(&folds).filter(|(c, f)| *c == class && *f != fold);
                            assert!(others.count() > 0, "{classes} classes, {order}, {count}: class {class}");
                        }
                        // Every class that has two images is a query, where there is room for two of each.
                        if count >= 2 * classes {
                            let queried = (0..classes).filter(|c| of(*c as u32) > 1).count();
                            assert_eq!(queried, sizes.iter().filter(|size| **size > 1).count(), "{classes}, {order}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn classes_keep_their_shares() {
        let labels = ordered(&[6000, 3000, 900, 90, 8, 1, 1], "interleaved");
        let drawn = check_draw(&labels, 1000);
        let counts: Vec<usize> = (0..7).map(|c| drawn.iter().filter(|label| **label == c).count()).collect();
        for (count, expected) in counts.iter().zip([599, 300, 90, 9, 2, 0, 0]) {
            assert!(count.abs_diff(expected) <= 2, "{counts:?}");
        }
        // Each fold queries a sixth of each class.
        let folds = folds(&drawn, 6);
        for fold in 0..6 {
            let count = drawn.iter().zip(&folds).filter(|(label, f)| **label == 0 && **f == fold).count();
            assert!(count.abs_diff(counts[0] / 6) <= 1);
        }
    }

    #[test]
    fn without_labels_it_is_a_random_draw() {
        let drawn = stratified(&[None; 1000], 100, 2);
        assert_eq!((drawn.len(), drawn.clone()), (100, stratified(&[None; 1000], 100, 2)));
        // Halves get about half: 50 +- 5, four standard deviations at most.
        let low = drawn.iter().filter(|i| **i < 500).count();
        assert!((30..=70).contains(&low), "{low}");
        assert_eq!(stratified(&[None; 3], 100, 2), [0, 1, 2]);
        assert!(stratified(&[], 5, 1).is_empty());
    }
}
