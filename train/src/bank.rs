//! The memory bank: a first-in first-out queue of past keys (as in MoCo, arXiv 1911.05722), each with the index of the
//! image that it came from, so that an image never meets its own older key as a negative.

use anyhow::{Result, ensure};

/// Up to `capacity` L2-normalised keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Bank {
    /// (M, C), M the number of keys held so far.
    pub keys: Vec<f32>,
    /// (M): the image that each key came from.
    pub images: Vec<u32>,
    /// Index of the next key to write; once the bank is full, that of the oldest key.
    pub next: usize,
    capacity: usize,
    width: usize,
}

impl Bank {
    /// An empty bank for keys of `width` values.
    pub fn new(capacity: usize, width: usize) -> Self {
        Bank { keys: Vec::new(), images: Vec::new(), next: 0, capacity, width }
    }

    /// Fills the bank with what a checkpoint holds.
    ///
    /// # Errors
    /// Numbers of keys and images that differ, or more than the bank can hold.
    pub fn restore(mut self, keys: Vec<f32>, images: Vec<u32>, next: usize) -> Result<Self> {
        // Until the bank is full the next key goes behind the last one.
        let full = images.len() == self.capacity;
        ensure!(
            keys.len() == images.len() * self.width
                && images.len() <= self.capacity
                && if full { next < self.capacity } else { next == images.len() },
            "the memory bank does not fit: {} values, {} images, next {next}; capacity {} of width {}",
            keys.len(),
            images.len(),
            self.capacity,
            self.width
        );
        (self.keys, self.images, self.next) = (keys, images, next);
        Ok(self)
    }

    /// Mean Euclidean length of the keys: 1 where all are normalised; `None` for an empty bank.
    pub fn norm(&self) -> Option<f64> {
        let length = |key: &[f32]| key.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let count = self.images.len();
        (count > 0).then(|| self.keys.chunks_exact(self.width).map(length).sum::<f64>() / count as f64)
    }

    /// Mean and largest age of the keys at the next step, in steps of `batch` images.  The newest keys are 1 step old.
    /// `None` for an empty bank.
    pub fn age(&self, batch: usize) -> Option<(f64, usize)> {
        let (count, batch) = (self.images.len(), batch.max(1));
        let age = |newer: usize| newer / batch + 1;
        (count > 0).then(|| ((0..count).map(age).sum::<usize>() as f64 / count as f64, age(count - 1)))
    }

    /// Adds a batch of keys in order; they replace the oldest ones.
    ///
    /// # Shapes
    /// `keys` (B, C), `images` (B).
    pub fn push(&mut self, keys: &[f32], images: &[u32]) {
        if self.capacity == 0 {
            return;
        }
        for (key, image) in keys.chunks_exact(self.width).zip(images) {
            if self.images.len() < self.capacity {
                self.keys.extend_from_slice(key);
                self.images.push(*image);
            } else {
                self.keys[self.next * self.width..][..self.width].copy_from_slice(key);
                self.images[self.next] = *image;
            }
            self.next = (self.next + 1) % self.capacity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_keys_go_first() {
        let mut bank = Bank::new(3, 1);
        bank.push(&[1.0, 2.0], &[1, 2]);
        assert_eq!((bank.images.as_slice(), bank.next), ([1, 2].as_slice(), 2));
        bank.push(&[3.0, 4.0], &[3, 4]);
        assert_eq!((bank.images.as_slice(), bank.next), ([4, 2, 3].as_slice(), 1));
        assert_eq!(bank.keys, [4.0, 2.0, 3.0]);
        let copy = Bank::new(3, 1).restore(bank.keys.clone(), bank.images.clone(), bank.next).unwrap();
        assert_eq!(copy, bank);
        assert!(Bank::new(3, 1).restore(bank.keys.clone(), bank.images.clone(), 3).is_err());
        assert!(Bank::new(2, 1).restore(bank.keys.clone(), bank.images.clone(), 0).is_err());
    }

    #[test]
    fn norm_and_age_of_keys() {
        let mut bank = Bank::new(5, 2);
        assert_eq!((bank.norm(), bank.age(2)), (None, None));
        bank.push(&[3.0, 4.0, 0.0, 1.0], &[0, 1]);
        assert_eq!((bank.norm(), bank.age(2)), (Some(3.0), Some((1.0, 1))));
        bank.push(&[1.0, 0.0, 1.0, 0.0], &[2, 3]);
        bank.push(&[1.0, 0.0, 1.0, 0.0], &[4, 5]);
        // Two keys of the last step, two of the one before, one of three steps ago.
        assert_eq!((bank.norm(), bank.age(2)), (Some(1.0), Some((1.8, 3))));
    }

    #[test]
    fn a_batch_larger_than_the_bank_leaves_its_last_keys() {
        let mut bank = Bank::new(2, 1);
        bank.push(&[1.0, 2.0, 3.0], &[1, 2, 3]);
        let mut images = bank.images.clone();
        images.sort_unstable();
        assert_eq!(images, [2, 3]);
    }
}
