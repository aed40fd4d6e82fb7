//! A look at the features while training goes on: kNN on held-out images, spread, effective rank.

use anyhow::Result;
use macrl_models::config::Config;
use macrl_models::preprocess::Preprocess;
use macrl_models::vit::Encoder;

use crate::data::Data;
use crate::encode::Images;
use crate::evaluate::{diagnostics, knn};
use crate::trainer::held_out;

/// Images to look up in and images to judge: small, so that a check takes seconds.
const TRAIN: usize = 5_000;
const TEST: usize = 1_000;

/// The images, read once.
pub struct Online {
    train: Images,
    test: Images,
    config: Config,
}

/// What a check saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// kNN accuracy on the held-out images.
    pub knn: f64,
    /// Mean standard deviation of the normalised features, 1 isotropic, 0 collapsed.
    pub feature_std: f64,
    /// Effective rank (RankMe).
    pub rank: f64,
}

impl Online {
    /// `None` where nothing is held out or nothing has a label, or checks are off.
    pub fn prepare(config: &Config, data: &Data) -> Option<Self> {
        if config.evaluate.every_epochs == 0 {
            return None;
        }
        let (train, test) = held_out(config, data, TRAIN, TEST)?;
        Some(Online { train, test, config: config.clone() })
    }

    /// Judges an encoder; its gradients are left alone.
    ///
    /// # Errors
    /// Candle's.
    pub fn check(&self, encoder: &Encoder) -> Result<Seen> {
        let frozen = encoder.clone().map(|group| group.detached_copy())?;
        let preprocess = Preprocess::from_config(&self.config);
        let pooling = self.config.evaluate.pooling;
        let train = self.train.encode(&frozen, &preprocess, pooling)?;
        let test = self.test.encode(&frozen, &preprocess, pooling)?;
        Ok(Seen {
            knn: knn::accuracy(&train, &test, self.config.evaluate.k, self.config.evaluate.temperature).knn,
            feature_std: diagnostics::feature_std(&test.values, test.dim),
            rank: diagnostics::effective_rank(&test.values, test.dim),
        })
    }
}
