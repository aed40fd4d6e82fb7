//! A look at the features while training goes on: kNN, spread, effective rank.
//!
//! It judges training images against other training images: the best checkpoint is chosen by it, and what the test
//! split says of that checkpoint afterwards must not have had a part in the choice.

use anyhow::Result;
use macrl_models::config::Config;
use macrl_models::preprocess::Preprocess;
use macrl_models::vit::Encoder;

use crate::data::Data;
use crate::encode::Images;
use crate::evaluate::{diagnostics, knn};

/// Images of a check: few, so that it takes seconds.
const IMAGES: usize = 6_000;
/// Every so manieth of them is judged, against all others.
const JUDGED: usize = 6;

/// The images, read once.
pub struct Online {
    images: Images,
    config: Config,
}

/// What a check saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// kNN accuracy.
    pub knn: f64,
    /// Mean standard deviation of the normalised features, 1 isotropic, 0 collapsed.
    pub feature_std: f64,
    /// Effective rank (RankMe).
    pub rank: f64,
}

impl Online {
    /// `None` where nothing has a label, or checks are off.
    pub fn prepare(config: &Config, data: &Data) -> Option<Self> {
        if config.evaluate.every_epochs == 0 {
            return None;
        }
        let images = Images::read(data.train.as_ref(), IMAGES, &Preprocess::from_config(config)).ok()?;
        (images.labels.len() > JUDGED).then(|| Online { images, config: config.clone() })
    }

    /// Judges an encoder; its gradients are left alone.
    ///
    /// # Errors
    /// Candle's.
    pub fn check(&self, encoder: &Encoder) -> Result<Seen> {
        let frozen = encoder.clone().map(|group| Ok(group.frozen()))?;
        let preprocess = Preprocess::from_config(&self.config);
        let pooling = self.config.evaluate.pooling;
        let all = self.images.encode(&frozen, &preprocess, pooling)?;
        let (judged, others): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(|i| i % JUDGED == 0);
        let (train, test) = (all.select(&others), all.select(&judged));
        Ok(Seen {
            knn: knn::accuracy(&train, &test, self.config.evaluate.k, self.config.evaluate.temperature).knn,
            feature_std: diagnostics::feature_std(&test.values, test.dim),
            rank: diagnostics::effective_rank(&test.values, test.dim),
        })
    }
}
