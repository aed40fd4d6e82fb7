//! Fine-tuning as the training step sees it: labelled batches, their loss, and what an update changes.

use anyhow::Result;
use candle_core::Tensor;
use macrl_bundle::config::Config;
use macrl_nn::params::Group;

use super::loss::cross_entropy;
use super::model::Classifier;
use super::state::FinetuneState;
use super::target;
use crate::data::Dataset;
use crate::losses::Losses;
use crate::part::Part;
use crate::step::rule::{Computed, Learner, Model};
use crate::views::random::{Philox, Stream};
use crate::views::{Batch, View};

/// Images with their targets.
pub struct LabelledBatch {
    /// B images of which every patch is kept.
    pub view: View,
    /// (B, C): target of each image; rows sum to 1.
    pub targets: Vec<f32>,
    /// B, the number of images.
    pub size: usize,
}

impl Model for Classifier {
    type Batch = LabelledBatch;

    fn trainable(&self) -> Vec<(Part, &Group)> {
        Classifier::trainable(self)
    }

    fn losses(&self, batch: &LabelledBatch) -> Result<Losses> {
        let logits = self.logits(&batch.view, batch.size)?;
        let targets = Tensor::from_slice(&batch.targets, (batch.size, self.classes()), logits.device())?;
        let total = cross_entropy(&logits, &targets)?;
        Ok(Losses { total, terms: Vec::new(), keys: None })
    }
}

/// A fine-tuning's state, with the data and settings of its steps.
pub struct Finetuning<'a> {
    /// The networks, moments and counters.
    pub state: &'a mut FinetuneState,
    /// The data set with the labels.
    pub data: &'a dyn Dataset,
    /// Configuration of the run.
    pub config: &'a Config,
    /// Learning rate of the head; deeper layers have a share of it.
    pub lr: f64,
}

impl Learner for Finetuning<'_> {
    type Model = Classifier;

    fn model(&self) -> &Classifier {
        &self.state.classifier
    }

    fn steps(&self) -> u64 {
        self.state.step
    }

    fn parts(&self, batch: Batch) -> Result<Vec<LabelledBatch>> {
        // Images that became unreadable give way to readable ones, which have a label as well.
        let labels: Vec<u32> = batch.indices.iter().filter_map(|i| self.data.label(*i as usize)).collect();
        let (config, classes) = (&self.config.finetune, self.state.classifier.classes());
        let (size, mut view) = (labels.len(), batch.weak);
        let mut targets = target::smooth(&labels, classes, config.label_smoothing as f32);
        if config.mixup > 0.0 {
            // One share per batch, keyed by the step alone.
            let mut random = Philox::new(self.config.train.seed, self.state.step, 0, Stream::Mix);
            let share = target::beta(config.mixup, &mut random) as f32;
            target::mix(&mut targets, classes, share);
            target::mix_view(&mut view, size, share);
        }
        Ok(vec![LabelledBatch { view, targets, size }])
    }

    fn clip_norm(&self) -> f64 {
        self.config.finetune.clip_norm
    }

    fn update(&mut self, _: &[u32], computed: &Computed, scale: f64) -> Result<()> {
        let FinetuneState { classifier, optimizer, step, .. } = &mut *self.state;
        let shares = classifier.lr_shares(self.config.finetune.layer_decay);
        let rates: Vec<f64> = shares.into_iter().map(|share| self.lr * share).collect();
        optimizer.update_with(&classifier.trainable(), &computed.gradients, &rates, scale)?;
        *step += 1;
        Ok(())
    }
}
