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
    labelled: bool,
    config: Config,
}

/// What a check saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
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
        let labelled = Images::read(data.train.as_ref(), IMAGES, &preprocess).ok();
        let (images, labelled) = match labelled {
            Some(images) => (images, true),
            None => (Images::read_unlabelled(data.train.as_ref(), IMAGES, &preprocess), false),
        };
        (images.labels.len() > JUDGED).then(|| Online { images, labelled, config: config.clone() })
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
            knn: self
                .labelled
                .then(|| knn::accuracy(&train, &test, self.config.evaluate.k, self.config.evaluate.temperature).knn),
            feature_std: diagnostics::feature_std(&test.values, test.dim),
            rank: diagnostics::effective_rank(&test.values, test.dim),
        })
    }
}
