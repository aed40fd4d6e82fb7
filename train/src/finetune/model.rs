//! The encoder with a linear head on its pooled feature, all of it trainable.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Tensor;
use macrl_bundle::config::{Config, Pooling};
use macrl_bundle::preprocess::Preprocess;
use macrl_nn::ops::graph;
use macrl_nn::ops::tokens::{Kept, VisiblePatches};
use macrl_nn::params::{Group, Layout};
use macrl_nn::vit::Encoder;

use crate::encode::PreparedImages;
use crate::part::Part;
use crate::views::View;

/// Added to the encoder's seed, so that the head's initial weights are independent.
const HEAD_SEED: u64 = 3;

/// The encoder with a linear head: images -> logits.
pub struct Classifier {
    /// The pretrained encoder, or one with random weights.
    pub encoder: Encoder,
    head: Group,
    classes: usize,
    pooling: Pooling,
}

impl Classifier {
    /// Puts a head with initial weights on an encoder.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn new(encoder: Encoder, config: &Config, classes: usize) -> Result<Self> {
        let head = Group::init(&layout(config, classes), config.train.seed.wrapping_mul(4) + HEAD_SEED)?;
        Self::assemble(encoder, head, config, classes)
    }

    /// Reads encoder and head from a checkpoint of fine-tuning.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn from_tensors(config: &Config, classes: usize, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let encoder = Encoder::from_tensors(&config.encoder, tensors, "encoder.")?;
        Self::assemble(encoder, Group::load(&layout(config, classes), tensors, "")?, config, classes)
    }

    fn assemble(encoder: Encoder, head: Group, config: &Config, classes: usize) -> Result<Self> {
        let encoder = encoder.map(Group::trainable)?;
        Ok(Classifier { encoder, head: head.trainable()?, classes, pooling: config.evaluate.pooling })
    }

    /// C, the number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// All parameters, in a fixed order; the head counts as the part that is the projector in pretraining.
    pub fn trainable(&self) -> Vec<(Part, &Group)> {
        let encoder = self.encoder.groups().into_iter().map(|group| (Part::Encoder, group));
        encoder.chain([(Part::Projector, &self.head)]).collect()
    }

    /// Each group's share of the learning rate: `decay` to the power of its distance from the head, as BEiT has it
    /// (arXiv 2106.08254): the embedding is layer 0, block i layer i + 1, the last norm and the head the layer above.
    pub fn lr_shares(&self, decay: f64) -> Vec<f64> {
        let top = self.encoder.config().depth as i32 + 1;
        let groups = self.trainable().len() as i32;
        (0..groups).map(|group| decay.powi(top - group.min(top))).collect()
    }

    /// Every tensor under its name in a checkpoint.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn named(&self) -> Result<Vec<(String, Tensor)>> {
        let encoder = self.encoder.named()?.into_iter().map(|(name, tensor)| (format!("encoder.{name}"), tensor));
        Ok(encoder.chain(self.head.named()?).collect())
    }

    /// # Shapes
    /// `view`: `batch` images of which every patch is kept; the result (B, C).
    ///
    /// # Errors
    /// A view that does not fit.
    pub fn logits(&self, view: &View, batch: usize) -> Result<Tensor> {
        let config = self.encoder.config();
        let shape = (batch, config.patches(), config.patch_values());
        let patches = Tensor::from_slice(&view.patches, shape, self.head.values().device())?;
        let seen = VisiblePatches { patches, kept: Kept::Host(Arc::new(view.kept.clone())) };
        let features = self.encoder.forward(&[&seen])?.pool(0, self.pooling)?;
        Ok(graph::linear(&features, self.head.values(), self.classes, false)?)
    }

    /// The predicted class of each image.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn predict(&self, images: &PreparedImages, preprocess: &Preprocess) -> Result<Vec<u32>> {
        let frozen = self.encoder.clone().map(|group| group.detached_copy())?;
        let features = images.encode(&frozen, preprocess, self.pooling)?;
        let shape = (features.len(), features.dim);
        let features = Tensor::from_vec(features.values, shape, self.head.values().device())?;
        let head = self.head.detached_copy()?;
        let logits = graph::linear(&features, head.values(), self.classes, false)?.to_vec2::<f32>()?;
        let largest = |row: &Vec<f32>| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
        logits.iter().map(|row| largest(row).map(|class| class as u32).context("no classes")).collect()
    }
}

fn layout(config: &Config, classes: usize) -> Layout {
    Layout::new("").with_linear("head", &[classes, config.encoder.width])
}
