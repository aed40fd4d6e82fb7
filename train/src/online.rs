//! Online evaluation: kNN, spread and effective rank of the features while training goes on.
//!
//! Only training images are used.  The best checkpoint is chosen by this kNN, and the test split must not have a part in
//! that choice.
//!
//! The images are a fixed random choice, stratified by class and cut into [`FOLDS`] folds.  The images of each fold are
//! queries; those of the other folds form the look-up set.  A class with a single image is never a query.

use std::collections::HashMap;

use anyhow::Result;
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::vit::Encoder;

use crate::data::{Data, Dataset};
use crate::encode::PreparedImages;
use crate::evaluate::draw::{folds, stratified};
use crate::evaluate::{Features, diagnostics, knn};

/// PreparedImages of one evaluation: few enough that it takes seconds.
const IMAGES: usize = 6_000;
/// Bytes that their pixels may take; larger images are fewer.
const MEMORY: usize = 512 << 20;
/// Spread and rank of fewer images mean nothing.
const LEAST: usize = 7;
/// Folds that are queried in turn.
const FOLDS: usize = 6;

/// The images, which are read once for the whole run.
pub struct Online {
    images: PreparedImages,
    /// Fold of each image; empty where no accuracy can be measured (fewer than two classes with two images).
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
    /// `None` where online evaluation is off or there are too few images.  Images without labels are used too, since spread and
    /// rank need none.
    pub fn prepare(config: &Config, data: &Data) -> Option<Self> {
        if config.evaluate.every_epochs == 0 {
            return None;
        }
        let preprocess = Preprocess::from_config(config);
        let count = IMAGES.min(MEMORY / preprocess.values().max(1)).max(LEAST);
        let images = PreparedImages::read_chosen(data.train.as_ref(), &chosen(data.train.as_ref(), count), &preprocess);
        let folds = query_folds(&images);
        (images.labels.len() >= LEAST).then(|| Online { images, folds, config: config.clone() })
    }

    /// Evaluates a frozen copy of the encoder.
    ///
    /// # Errors
    /// A tensor operation fails.
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

    /// Share of the queries whose neighbours in the other folds vote for the query's class.
    fn accuracy(&self, features: &Features) -> Option<f64> {
        let counts = class_counts(&features.labels);
        let (mut right, mut queries) = (0.0, 0);
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
            queries += inside.len();
        }
        (queries > 0).then(|| right / queries as f64)
    }
}

/// Chooses the images: only labelled ones where there are any, at least two of a class.
fn chosen(data: &dyn Dataset, count: usize) -> Vec<usize> {
    let labels: Vec<Option<u32>> = (0..data.len()).map(|i| data.label(i)).collect();
    let known: Vec<usize> = (0..labels.len()).filter(|i| labels[*i].is_some()).collect();
    if known.is_empty() {
        return stratified(&labels, count, 1);
    }
    let labels: Vec<Option<u32>> = known.iter().map(|&i| labels[i]).collect();
    stratified(&labels, count, 2).into_iter().map(|i| known[i]).collect()
}

/// The fold of each image.  Empty where fewer than two classes have a second image, since no query could be wrong.
fn query_folds(images: &PreparedImages) -> Vec<usize> {
    let classes = class_counts(&images.labels).values().filter(|count| **count > 1).count();
    if images.labelled && classes > 1 { folds(&images.labels, FOLDS) } else { Vec::new() }
}

fn class_counts(labels: &[u32]) -> HashMap<u32, usize> {
    let mut counts = HashMap::new();
    labels.iter().for_each(|label| *counts.entry(*label).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests;
