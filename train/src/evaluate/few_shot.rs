//! Linear probes from a few labelled images per class.

use std::collections::BTreeMap;

use super::draw::shuffled;
use super::features::{Features, Split};
use super::linear::{fit_with, predict};

/// Labelled images per class of the accuracy in the table.
pub const SHOTS: usize = 10;
/// Labelled images per class of the curve.
pub const CURVE: [usize; 3] = [1, SHOTS, 100];
/// Number of independent choices of these images; an accuracy is their mean.
pub const DRAWS: u64 = 5;
/// L2 strength.  It is fixed, since there are too few images to choose it on held-out ones.
pub const L2: f64 = 0.1;

/// Accuracies by the number of images per class: [`SHOTS`], and those of [`CURVE`] that every class has.
pub fn curve(split: &Split, labels: &[String], seed: u64) -> BTreeMap<usize, f64> {
    let mut counts = vec![0; split.train.classes()];
    split.train.labels.iter().for_each(|label| counts[*label as usize] += 1);
    let smallest = counts.into_iter().filter(|count| *count > 0).min().unwrap_or(0);
    let measured = CURVE.into_iter().filter(|shots| *shots == SHOTS || *shots <= smallest);
    measured.map(|shots| (shots, accuracy(split, labels, seed, shots))).collect()
}

/// Mean accuracy in [0, 1] over [`DRAWS`] choices of `shots` training images per class (all of a class that has fewer).
fn accuracy(split: &Split, labels: &[String], seed: u64, shots: usize) -> f64 {
    let one = |draw: u64| {
        let few = split.train.select(&choose(&split.train, shots, seed.wrapping_add(draw)));
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

    #[test]
    fn the_curve_has_what_every_class_has_images_for() {
        // Two classes of 40 and 12 images, told apart by one number.
        let labels: Vec<u32> = (0..52).map(|i| u32::from(i >= 40)).collect();
        let values = labels.iter().map(|label| *label as f32 * 2.0 - 1.0).collect();
        let features = Features { values, labels, dim: 1 };
        let split = Split { train: features.clone(), test: features };
        let names = ["a", "b"].map(String::from);
        assert_eq!(curve(&split, &names, 0), BTreeMap::from([(1, 1.0), (10, 1.0)]));
        // The number in the table is always there.
        let few = Split { train: split.train.select(&[0, 1, 50, 51]), test: split.test };
        assert_eq!(curve(&few, &names, 0).into_keys().collect::<Vec<_>>(), [1, 10]);
    }
}
