//! Checks that there are enough images for one batch, and says how many are needed.

use anyhow::Result;
use macrl_bundle::config::Config;

use super::shared::Usage;
use crate::data::Data;
use crate::data::split::{held_out, needed};

/// Checks the training images of a pretraining run.
///
/// # Errors
/// [`Usage`] with the number that is needed, where there are too few.
pub(super) fn check(data: &Data, config: &Config) -> Result<()> {
    let (train, batch) = (data.train.len(), config.train.batch_size);
    if train >= batch {
        return Ok(());
    }
    let test = data.test.as_ref().map_or(0, |test| test.len());
    let held = data.notes.iter().any(|note| note.contains("held out")) && held_out(train + test) == test;
    Err(Usage(said(train, held.then_some(test), batch, config.data.limit)).into())
}

/// The message.  `held`: number of images held out for evaluation, where the data has no test split of its own.
fn said(train: usize, held: Option<usize>, batch: usize, limit: usize) -> String {
    let other = smaller(train);
    if limit > 0 && limit < batch {
        return format!("data.limit = {limit} leaves too few images: a batch needs train.batch_size = {batch}");
    }
    match held {
        Some(held) => format!(
            "{} images are too few: at least {} are needed, since a tenth is held out and a batch has \
             train.batch_size = {batch}; or make it smaller, --set train.batch_size={other}",
            train + held,
            needed(batch)
        ),
        None => format!(
            "{train} training images are too few: at least {batch} are needed, train.batch_size; or make it smaller, \
             --set train.batch_size={other}"
        ),
    }
}

/// The largest power of two that is at most `images`.
pub(super) fn smaller(images: usize) -> usize {
    1 << images.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_is_needed_counts_what_is_held_out() {
        let twenty = said(18, Some(2), 32, 0);
        assert!(twenty.starts_with("20 images are too few: at least 35 are needed"), "{twenty}");
        assert!(twenty.ends_with("--set train.batch_size=16"), "{twenty}");
        assert!(said(18, None, 32, 0).starts_with("18 training images are too few: at least 32 are needed"));
        assert!(said(18, Some(2), 32, 18).starts_with("data.limit = 18 leaves too few"));
        assert_eq!([1, 2, 3, 31, 32].map(smaller), [1, 2, 2, 16, 32]);
    }
}
