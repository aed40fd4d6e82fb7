//! Labels that people give to items, and the classifier that is trained from them.

mod fit;
mod store;

use std::sync::{Arc, RwLock};

use macrl_bundle::probe::Probe;

pub use self::fit::{Examples, HeldOut, MIN_CLASSES, fit};
pub use self::store::{LabelChange, LabelStore, Labelled, PastProbe, back_up};

/// Vectors that the features are standardised by.
pub const BACKGROUND: usize = 5000;

/// A classifier of one set of labels.
#[derive(Debug)]
pub struct TrainedProbe {
    /// Version of the labels that it was trained from.
    pub version: u64,
    /// SHA-256 of the encoder's weights.
    pub encoder: String,
    /// Takes vectors of length 1, as the index stores them.
    pub probe: Probe,
    /// Examples of each class, in the order of the probe's labels.
    pub counts: Vec<usize>,
    /// Accuracy on labelled items that were left out of the training.
    pub held_out: Option<HeldOut>,
}

impl TrainedProbe {
    /// Classes of a vector of length 1 with their probabilities, best first.
    pub fn classes(&self, vector: &[f32]) -> Vec<(&str, f32)> {
        let names = self.probe.labels.iter().map(String::as_str);
        let mut scored: Vec<(&str, f32)> = names.zip(self.probe.probabilities(vector)).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        scored
    }
}

/// The labels of a server and the classifier of their present version.
#[derive(Debug)]
pub struct Labels {
    /// Where they are stored.
    pub store: Arc<LabelStore>,
    trained: RwLock<Option<Arc<TrainedProbe>>>,
    /// Held while a classifier is trained: two at once would do the same work.
    pub training: tokio::sync::Mutex<()>,
}

impl Labels {
    /// The labels in a store; no classifier is trained yet.
    pub fn new(store: LabelStore) -> Self {
        Self { store: Arc::new(store), trained: RwLock::default(), training: tokio::sync::Mutex::new(()) }
    }

    /// The classifier of this version and encoder, if it has been trained.
    pub fn trained(&self, version: u64, encoder: &str) -> Option<Arc<TrainedProbe>> {
        let trained = self.trained.read().unwrap_or_else(|e| e.into_inner());
        trained.clone().filter(|t| t.version == version && t.encoder == encoder)
    }

    /// Keeps a classifier in place of the one before.
    pub fn keep(&self, probe: Arc<TrainedProbe>) {
        *self.trained.write().unwrap_or_else(|e| e.into_inner()) = Some(probe);
    }
}
