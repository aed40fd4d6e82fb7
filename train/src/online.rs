//! A look at the features while training goes on: kNN, spread, effective rank.
//!
//! It judges training images against other training images: the best checkpoint is chosen by it, and what the test
//! split says of that checkpoint afterwards must not have had a part in the choice.
//!
//! The images are a fixed random draw, stratified by class and cut into [`FOLDS`] parts; each part is judged by the
//! images of the others.  A class with a single image is looked up in but not judged.

use std::collections::HashMap;

use anyhow::Result;
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::vit::Encoder;

use crate::data::{Data, Dataset};
use crate::encode::Images;
use crate::evaluate::draw::{folds, stratified};
use crate::evaluate::{Features, diagnostics, knn};

/// Images of a check: few, so that it takes seconds.
const IMAGES: usize = 6_000;
/// Bytes of pixels that they may take: fewer images where they are large.
const MEMORY: usize = 512 << 20;
/// Fewer say nothing about spread and rank.
const LEAST: usize = 7;
/// Parts that are judged in turn.
const FOLDS: usize = 6;

/// The images, read once.
pub struct Online {
    images: Images,
    /// Part of each image; empty where there is nothing to judge by (fewer than two classes with two images).
    folds: Vec<usize>,
    config: Config,
}

/// What one online evaluation measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureCheck {
    /// kNN accuracy; `None` where nothing has a label.
    pub knn: Option<f64>,
    /// Mean standard deviation of the normalised features, 1 isotropic, 0 collapsed.
    pub feature_std: f64,
    /// Effective rank (RankMe).
    pub rank: f64,
}

impl Online {
    /// `None` where checks are off, or there are too few images.  Images without labels are looked at too: whether
    /// features collapse can be seen without them.
    pub fn prepare(config: &Config, data: &Data) -> Option<Self> {
        if config.evaluate.every_epochs == 0 {
            return None;
        }
        let preprocess = Preprocess::from_config(config);
        let count = IMAGES.min(MEMORY / preprocess.values().max(1)).max(LEAST);
        let images = Images::read_chosen(data.train.as_ref(), &chosen(data.train.as_ref(), count), &preprocess);
        let folds = judged_folds(&images);
        (images.labels.len() >= LEAST).then(|| Online { images, folds, config: config.clone() })
    }

    /// Judges an encoder; its gradients are left alone.
    ///
    /// # Errors
    /// Candle's.
    pub fn check(&self, encoder: &Encoder) -> Result<FeatureCheck> {
        let frozen = encoder.clone().map(|group| Ok(group.frozen()))?;
        let preprocess = Preprocess::from_config(&self.config);
        let features = self.images.encode(&frozen, &preprocess, self.config.evaluate.pooling)?;
        Ok(FeatureCheck {
            knn: self.accuracy(&features),
            feature_std: diagnostics::feature_std(&features.values, features.dim),
            rank: diagnostics::effective_rank(&features.values, features.dim),
        })
    }

    /// Share of the judged images whose neighbours in the other parts name their class.
    fn accuracy(&self, features: &Features) -> Option<f64> {
        let counts = class_counts(&features.labels);
        let (mut right, mut judged) = (0.0, 0);
        for fold in 0..FOLDS {
            let of_fold = |i: &usize| self.folds.get(*i) == Some(&fold);
            let (inside, others): (Vec<usize>, Vec<usize>) = (0..features.len()).partition(of_fold);
            let inside: Vec<usize> = inside.into_iter().filter(|i| counts[&features.labels[*i]] > 1).collect();
            if inside.is_empty() {
                continue;
            }
            let (test, train) = (features.select(&inside), features.select(&others));
            let evaluate = &self.config.evaluate;
            right += knn::accuracy(&train, &test, evaluate.k, evaluate.temperature).knn * inside.len() as f64;
            judged += inside.len();
        }
        (judged > 0).then(|| right / judged as f64)
    }
}

/// The draw: among the labelled images where there are any, two of a class at least.
fn chosen(data: &dyn Dataset, count: usize) -> Vec<usize> {
    let labels: Vec<Option<u32>> = (0..data.len()).map(|i| data.label(i)).collect();
    let known: Vec<usize> = (0..labels.len()).filter(|i| labels[*i].is_some()).collect();
    if known.is_empty() {
        return stratified(&labels, count, 1);
    }
    let labels: Vec<Option<u32>> = known.iter().map(|&i| labels[i]).collect();
    stratified(&labels, count, 2).into_iter().map(|i| known[i]).collect()
}

/// Nothing can be told apart where only one class, or none, has a second image to be found by.
fn judged_folds(images: &Images) -> Vec<usize> {
    let judged = class_counts(&images.labels).values().filter(|count| **count > 1).count();
    if images.labelled && judged > 1 { folds(&images.labels, FOLDS) } else { Vec::new() }
}

fn class_counts(labels: &[u32]) -> HashMap<u32, usize> {
    let mut counts = HashMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests;
