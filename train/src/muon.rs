//! Muon over the matrices of the transformer blocks (Jordan et al. 2024; decoupled decay as in arXiv 2502.16982).
//!
//! Its momentum lies where AdamW has the first moment of the same parameter, and is saved and loaded with it.

use std::ops::Range;

use anyhow::Result;
use candle_core::{CpuStorage, InplaceOp1, Layout};
use macrl_bundle::config::TrainConfig;
use macrl_kernels::buffer::Buffer;
use macrl_nn::params::{Group, Parameter};
use rayon::prelude::*;

use crate::in_place::f32_mut;
use crate::ops::muon::{accumulate, apply, orthogonalise, shape_factor};
use crate::part::Part;

/// Momentum and weight decay of Muon; its learning rate follows the schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Muon {
    momentum: f32,
    weight_decay: f32,
}

/// The direction in which a step moves one matrix.
pub(crate) struct Direction {
    group: usize,
    range: Range<usize>,
    rows: usize,
    columns: usize,
    values: Buffer,
}

impl Muon {
    pub(crate) fn new(config: &TrainConfig) -> Self {
        Muon { momentum: config.muon_momentum as f32, weight_decay: config.weight_decay as f32 }
    }

    /// Updates the momenta of a parameter's matrices and returns their directions; none where AdamW updates the parameter.
    ///
    /// # Shapes
    /// `gradient` and `momentum`: flat, of the whole group.
    pub(crate) fn directions(
        &self,
        group: usize,
        parameter: &Parameter,
        gradient: &[f32],
        momentum: &mut [f32],
        scale: f32,
    ) -> Vec<Direction> {
        let matrices = parameter.block_matrices().into_iter();
        let each = matrices.map(|matrix| {
            let range = matrix.range.clone();
            let mut values = Buffer::dirty(range.len());
            accumulate(&gradient[range.clone()], &mut momentum[range.clone()], &mut values, self.momentum, scale);
            Direction { group, range, rows: matrix.rows, columns: matrix.columns, values }
        });
        each.collect()
    }

    /// Orthogonalises the directions, all matrices in parallel, and subtracts them from the weights.
    ///
    /// # Errors
    /// A tensor operation fails.
    pub(crate) fn finish(&self, groups: &[(Part, &Group)], mut directions: Vec<Direction>, lr: f64) -> Result<()> {
        directions.par_iter_mut().for_each(|d| orthogonalise(&mut d.values, d.rows, d.columns));
        let decay = (1.0 - lr * f64::from(self.weight_decay)) as f32;
        for of_group in directions.chunk_by(|a, b| a.group == b.group) {
            let (_, group) = groups[of_group[0].group];
            group.values().inplace_op1(&Apply { directions: of_group, lr: lr as f32, decay })?;
        }
        Ok(())
    }
}

struct Apply<'a> {
    directions: &'a [Direction],
    lr: f32,
    decay: f32,
}

impl InplaceOp1 for Apply<'_> {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn cpu_fwd(&self, weights: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let weights = f32_mut(weights)?;
        for Direction { range, rows, columns, values, .. } in self.directions {
            apply(&mut weights[range.clone()], values, self.lr * shape_factor(*rows, *columns), self.decay);
        }
        Ok(())
    }
}
