//! The gradients of all parameter groups: their sum over the parts of a batch, their norms, and the
//! parameters that they do not reach.

use anyhow::Result;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use macrl_nn::ops::graph::with_values;
use macrl_nn::params::{Group, Parameter};

use crate::ops::update::sum_of_squares;
use crate::part::Part;

/// Gradients of all groups in order; `None`: no gradient reached the group.
pub struct Gradients(pub Vec<Option<Tensor>>);

/// Euclidean norms of the gradient, over everything and over each part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Norms {
    /// Norm over all parameters.
    pub total: f64,
    parts: [f64; Part::ALL.len()],
}

impl Norms {
    /// `parts`: the norm of each part, in the order of [`Part::ALL`].
    pub fn new(total: f64, parts: [f64; Part::ALL.len()]) -> Self {
        Norms { total, parts }
    }

    /// Norm over one part; 0 where the network has no such part.
    pub fn of(&self, part: Part) -> f64 {
        self.parts[part as usize]
    }

    /// All norms times a factor.
    pub fn times(self, by: f64) -> Self {
        Norms { total: self.total * by, parts: self.parts.map(|norm| norm * by) }
    }
}

impl Gradients {
    /// Takes the groups' gradients out of the store that `backward` has filled.
    pub fn take(mut store: GradStore, groups: &[(Part, &Group)]) -> Self {
        Gradients(groups.iter().map(|(_, group)| store.remove(group.values())).collect())
    }

    /// Adds the gradients of another part of the batch.
    ///
    /// # Errors
    /// Gradients of other shapes.
    pub fn add(&mut self, other: Gradients) -> Result<()> {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = match (mine.take(), theirs) {
                (Some(a), Some(b)) => Some((a + b)?.detach()),
                (a, b) => a.or(b),
            };
        }
        Ok(())
    }

    /// Names of the parameters that the gradient does not reach: it is missing, or exactly 0 throughout.
    ///
    /// # Errors
    /// A gradient that is not on the host.
    pub fn unreached(&self, groups: &[(Part, &Group)]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for ((_, group), gradient) in groups.iter().zip(&self.0) {
            match gradient {
                None => names.extend(group.parameters().iter().map(|p| p.name.clone())),
                Some(gradient) => names.extend(with_values(gradient, |g| Ok(unreached(group, g)))?),
            }
        }
        Ok(names)
    }

    /// Norms by part; not finite if any value is not.
    ///
    /// # Errors
    /// A gradient that is not on the host.
    pub fn norms(&self, groups: &[(Part, &Group)]) -> Result<Norms> {
        let mut squares = [0f64; Part::ALL.len()];
        for ((part, _), gradient) in groups.iter().zip(&self.0) {
            if let Some(gradient) = gradient {
                squares[*part as usize] += with_values(gradient, |g| Ok(sum_of_squares(g)))?;
            }
        }
        Ok(Norms::new(squares.iter().sum::<f64>().sqrt(), squares.map(f64::sqrt)))
    }
}

/// Names of a group's parameters whose gradient is exactly 0 throughout; `gradient` is the group's, flat.
pub fn unreached(group: &Group, gradient: &[f32]) -> Vec<String> {
    // Most parameters have a gradient, and their search ends at the first value.
    let reached = |p: &Parameter| gradient[p.range.clone()].iter().any(|v| *v != 0.0);
    group.parameters().iter().filter(|p| !reached(p)).map(|p| p.name.clone()).collect()
}
