//! Parts of a split: the training limit, and a held-out part where the data has no test split.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use image::RgbImage;

use super::dataset::Dataset;
use crate::views::random::{Philox, Stream};

/// One image of this many is held out where the data has no test split.
const HELD_OUT: usize = 10;
/// Seed of the held-out choice; not the run's, so that runs with different seeds are evaluated on the same images.
const SPLIT_SEED: u64 = 0x5eed;

/// Some images of another split.
pub struct Subset {
    inner: Arc<dyn Dataset>,
    indices: Vec<u32>,
}

impl Subset {
    /// Image `i` of the subset is image `indices[i]` of `inner`.
    pub fn new(inner: Arc<dyn Dataset>, indices: Vec<u32>) -> Self {
        Subset { inner, indices }
    }

    fn at(&self, index: usize) -> usize {
        // An index past the end stays past the end, so that the inner split reports it.
        self.indices.get(index).map_or(usize::MAX, |i| *i as usize)
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(self.at(index))
    }

    fn image(&self, index: usize) -> Result<Cow<'_, RgbImage>> {
        self.inner.image(self.at(index))
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(self.at(index))
    }
}

/// How many of `images` images are held out.
pub fn held_out(images: usize) -> usize {
    if images < 2 { 0 } else { (images / HELD_OUT).max(1) }
}

/// The smallest number of images of which `batch` are left for training.
pub fn needed(batch: usize) -> usize {
    (batch..).find(|n| n - held_out(*n) >= batch).unwrap_or(usize::MAX)
}

/// Splits off a tenth (at least one image), chosen at random with a fixed seed.  A single image cannot be split.
pub fn hold_out(all: &Arc<dyn Dataset>) -> (Arc<dyn Dataset>, Option<Arc<dyn Dataset>>) {
    if all.len() < 2 {
        return (all.clone(), None);
    }
    let order = Philox::new(SPLIT_SEED, 0, 0, Stream::Order).permutation(all.len() as u32);
    let (held, kept) = order.split_at(held_out(all.len()));
    let part = |indices: &[u32]| -> Arc<dyn Dataset> {
        let mut indices = indices.to_vec();
        indices.sort_unstable();
        Arc::new(Subset::new(all.clone(), indices))
    };
    (part(kept), Some(part(held)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_just_enough() {
        assert_eq!((needed(32), needed(1), needed(9)), (35, 1, 10));
        for batch in 1..300 {
            let n = needed(batch);
            assert!(n - held_out(n) >= batch && (n - 1) - held_out(n - 1) < batch, "{batch}: {n}");
        }
    }
}
