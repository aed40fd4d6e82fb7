//! The projector: an MLP on the pooled encoder feature whose L2-normalised output is compared with keys.  It is
//! not exported: only training needs it.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use macrl_bundle::config::Config;
use macrl_nn::ops::tokens::{l2_normalize, linear};
use macrl_nn::params::{Group, Layout};

/// Computes `fc2(gelu(fc1(x)))` and divides each row by its length.
#[derive(Debug, Clone)]
pub struct Projector {
    fc1: Group,
    fc2: Group,
    hidden: usize,
    dim: usize,
}

impl Projector {
    /// Initial weights; they depend on the seed alone.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn init(config: &Config, seed: u64) -> Result<Self> {
        Self::build(config, &|layout| Group::init(layout, seed))
    }

    /// Weights from a checkpoint, where each name begins with `prefix`.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn from_tensors(config: &Config, tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<Self> {
        Self::build(config, &|layout| Group::load(layout, tensors, prefix))
    }

    fn build(config: &Config, make: &dyn Fn(&Layout) -> Result<Group>) -> Result<Self> {
        let (d, hidden, dim) = (config.encoder.width, config.projector.hidden, config.projector.dim);
        Ok(Projector {
            fc1: make(&Layout::new("").with_linear("projector.fc1", &[hidden, d]))?,
            fc2: make(&Layout::new("").with_linear("projector.fc2", &[dim, hidden]))?,
            hidden,
            dim,
        })
    }

    /// All parameters, in a fixed order.
    pub fn groups(&self) -> Vec<&Group> {
        vec![&self.fc1, &self.fc2]
    }

    /// The same projector with every group replaced.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn map(self, f: impl Fn(Group) -> Result<Group>) -> Result<Self> {
        Ok(Projector { fc1: f(self.fc1)?, fc2: f(self.fc2)?, ..self })
    }

    /// # Shapes
    /// `features` (B, D), the result (B, C), rows of length 1.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let x = linear(features, &self.fc1, self.hidden, true)?;
        l2_normalize(&linear(&x, &self.fc2, self.dim, false)?)
    }
}
