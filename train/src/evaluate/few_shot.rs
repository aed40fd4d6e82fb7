//! A linear probe from a few labelled images per class.

use super::draw::shuffled;
use super::features::{Features, Split};
use super::linear::{fit_with, predict};

/// Labelled images per class.
pub const SHOTS: usize = 10;
/// Number of independent choices of these images; the accuracy is their mean.
pub const DRAWS: u64 = 5;
/// L2 strength.  It is fixed, since there are too few images to choose it on held-out ones.
pub const L2: f64 = 0.1;

/// Mean accuracy in [0, 1] over [`DRAWS`] choices of [`SHOTS`] training images per class.
pub fn accuracy(split: &Split, labels: &[String], seed: u64) -> f64 {
    let one = |draw: u64| {
        let few = split.train.select(&choose(&split.train, SHOTS, seed.wrapping_add(draw)));
        let answers = predict(&fit_with(&few, labels, L2).probe, &split.test);
        let right = answers.iter().zip(&split.test.labels).filter(|(a, b)| a == b).count();
        right as f64 / split.test.len() as f64
    };
    (0..DRAWS).map(one).sum::<f64>() / DRAWS as f64
}

/// The indices of at most `shots` images of each class.
fn choose(train: &Features, shots: usize, seed: u64) -> Vec<usize> {
    let mut taken = vec![0; train.classes()];
    let mut chosen = shuffled(train.len(), seed);
    chosen.retain(|&i| {
        let count = &mut taken[train.labels[i] as usize];
        *count += 1;
        *count <= shots
    });
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_so_many_of_each_class() {
        let train = Features { values: vec![0.0; 33], labels: (0..33).map(|i| u32::from(i >= 30)).collect(), dim: 1 };
        let chosen = choose(&train, 10, 3);
        assert_eq!(chosen.iter().filter(|i| **i < 30).count(), 10);
        assert_eq!(chosen.iter().filter(|i| **i >= 30).count(), 3);
        assert_ne!(chosen, choose(&train, 10, 4));
    }
}
