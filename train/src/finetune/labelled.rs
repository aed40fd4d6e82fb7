//! The labelled images of a data set, for training and for testing.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use macrl_bundle::config::Config;
use macrl_bundle::preprocess::Preprocess;

use crate::data::split::Subset;
use crate::data::{Data, Dataset};
use crate::encode::{PreparedImages, labelled};

/// Labelled images for training and for testing.
pub struct Labelled {
    /// The training images that have a label.
    pub train: Arc<dyn Dataset>,
    /// The test split after the evaluation transform.
    pub test: PreparedImages,
    /// C, the number of classes.
    pub classes: usize,
    /// Their names (C).
    pub names: Vec<String>,
}

impl Labelled {
    /// The images of a data set that have labels.
    ///
    /// # Errors
    /// No labels in one of the splits, or no test split.
    pub fn of(data: &Data, config: &Config) -> Result<Self> {
        let needs = "fine-tuning needs class sub-folders or labels";
        let known: Vec<u32> = labelled(data.train.as_ref()).into_iter().map(|i| i as u32).collect();
        ensure!(!known.is_empty(), "no training image has a label: {needs}");
        let test = data.test.as_ref().context("the data has nothing to hold out for a test")?;
        let test = PreparedImages::read(test.as_ref(), &Preprocess::from_config(config))
            .with_context(|| format!("the test split cannot be used: {needs}"))?;
        let labels = known.iter().filter_map(|i| data.train.label(*i as usize)).chain(test.labels.iter().copied());
        let classes = labels.max().map_or(0, |largest| largest as usize + 1).max(data.classes.len());
        let train: Arc<dyn Dataset> = match known.len() == data.train.len() {
            true => data.train.clone(),
            false => Arc::new(Subset::new(data.train.clone(), known)),
        };
        let names = (0..classes).map(|i| data.classes.get(i).cloned().unwrap_or_else(|| i.to_string())).collect();
        Ok(Labelled { train, test, classes, names })
    }
}
