//! One line that identifies a data set.  A checkpoint holds it, so that a run is not resumed on other images.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::dataset::Data;

/// Number of images whose pixels enter the digest, spread evenly over the split.  Decoding all would take minutes.
const SAMPLED: usize = 8;
/// Bytes of the digest that are shown.
const SHOWN: usize = 8;

/// `image folder, 900 training images, 10 classes, digest 0123456789abcdef`: of the training split's names and labels in
/// their order, and of some images' pixels.
pub fn identity(data: &Data) -> String {
    let (train, n) = (&data.train, data.train.len());
    let mut hash = Sha256::new();
    for i in 0..n {
        hash.update(train.name(i).as_bytes());
        hash.update(train.label(i).unwrap_or(u32::MAX).to_le_bytes());
    }
    data.classes.iter().for_each(|class| hash.update(class.as_bytes()));
    let sampled: Vec<Vec<u8>> = (0..SAMPLED.min(n))
        .into_par_iter()
        .map(|i| train.image(i * n / SAMPLED.min(n)).map(|image| image.as_raw().clone()).unwrap_or_default())
        .collect();
    sampled.iter().for_each(|pixels| hash.update(pixels));
    let digest: String = hash.finalize()[..SHOWN].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}, {n} training images, {} classes, digest {digest}", data.format, data.classes.len())
}
