//! A fine-tuning's state <-> its checkpoints.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use macrl_bundle::config::Config;
use macrl_nn::checkpoint::{self, Checkpoint};

use super::model::Classifier;
use crate::optimizer::AdamW;
use crate::state::{moment_tensors, moments};

/// Everything that a step changes.
pub struct FinetuneState {
    /// Encoder and head.
    pub classifier: Classifier,
    /// Moments and number of updates.
    pub optimizer: AdamW,
    /// Number of steps done.
    pub step: u64,
    /// The best accuracy on the test split so far, and after which epoch.
    pub best: Option<(f64, u64)>,
    /// Description of the data and the starting point, which must be the same when the run is resumed.
    pub origin: String,
    /// Class names in label order; empty in states of earlier versions.
    pub labels: Vec<String>,
}

const STEP: &str = "step";
const CLASSES: &str = "classes";
const BEST: &str = "best_accuracy";
const BEST_EPOCH: &str = "best_epoch";
const ORIGIN: &str = "origin";
/// The export names the classes by this note, a JSON list.
const LABELS: &str = "labels";

impl FinetuneState {
    /// The initial state; `derived` is the configuration as [`super::training::training_config`] derives it.
    pub fn new(classifier: Classifier, derived: &Config, origin: String, labels: Vec<String>) -> Self {
        let optimizer = AdamW::new(&classifier.trainable(), &derived.train);
        FinetuneState { classifier, optimizer, step: 0, best: None, origin, labels }
    }

    /// Writes a checkpoint atomically, with the run's own configuration.
    ///
    /// # Errors
    /// The file cannot be written; the old one is then unchanged.
    pub fn save(&self, path: &Path, config: &Config) -> Result<()> {
        let mut tensors = self.classifier.named()?;
        tensors.extend(moment_tensors(&self.optimizer)?);
        let mut notes = HashMap::from([
            (STEP.to_string(), self.step.to_string()),
            (CLASSES.to_string(), self.classifier.classes().to_string()),
            (ORIGIN.to_string(), self.origin.clone()),
            (LABELS.to_string(), serde_json::Value::from(self.labels.clone()).to_string()),
        ]);
        if let Some((accuracy, epoch)) = self.best {
            notes.insert(BEST.into(), accuracy.to_string());
            notes.insert(BEST_EPOCH.into(), epoch.to_string());
        }
        Ok(checkpoint::save(path, config, &notes, &tensors)?)
    }

    /// Reads a checkpoint, with the run's configuration, from which `derive` makes the optimiser's.
    ///
    /// # Errors
    /// The checkpoint is missing or damaged.
    pub fn load(path: &Path, derive: impl Fn(&Config) -> Config) -> Result<(Self, Config)> {
        let Checkpoint { config, notes, tensors, .. } = checkpoint::load(path)?;
        let named = || format!("checkpoint {}", path.display());
        let number = |key: &str| -> Result<u64> {
            let text = notes.get(key).with_context(|| format!("{} has no `{key}`", named()))?;
            text.parse().with_context(|| format!("{}: `{key}` is {text}, not a number", named()))
        };
        let (step, classes) = (number(STEP)?, number(CLASSES)? as usize);
        let classifier = Classifier::from_tensors(&config, classes, &tensors).with_context(named)?;
        let optimizer = moments(&classifier.trainable(), &derive(&config), &tensors, step).with_context(named)?;
        let best = notes.get(BEST).and_then(|text| text.parse().ok()).zip(number(BEST_EPOCH).ok());
        let origin = notes.get(ORIGIN).cloned().unwrap_or_default();
        let labels = notes.get(LABELS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok((FinetuneState { classifier, optimizer, step, best, origin, labels }, config))
    }
}
