//! A pre-norm transformer block: `x + proj(attention(norm1(x)))`, then `x + fc2(gelu(fc1(norm2(x))))`
//! (arXiv 2010.11929), with its forward and backward pass.
//!
//! Stored for the backward pass: packed q, k, v; the attention's output; the residual stream between the two halves;
//! fc1's output.  These are 9 D values per token at MLP ratio 4.  Normalisations, attention weights and GELU are
//! recomputed.

use std::ops::Range;

use macrl_bundle::parameters::{self, Layout};
use macrl_kernels::buffer::Buffer;

use super::attention::{self, Heads};
use super::{activation, layer_norm, linear};

/// Geometry of a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// T, H and D of the attention.
    pub at: Heads,
    /// Hidden width of the MLP.
    pub hidden: usize,
}

/// Intermediate results that the backward pass needs.
pub struct Saved {
    qkv: Buffer,
    attended: Buffer,
    middle: Buffer,
    hidden: Buffer,
}

/// Ranges of a block's parameters (weight, bias) in the flat vector, in order.
struct Parts {
    norm1: [Range<usize>; 2],
    qkv: [Range<usize>; 2],
    proj: [Range<usize>; 2],
    norm2: [Range<usize>; 2],
    fc1: [Range<usize>; 2],
    fc2: [Range<usize>; 2],
}

impl Block {
    /// The parameters in the order of the flat vector.
    pub fn layout(&self) -> Layout {
        parameters::block("", self.at.width, self.hidden)
    }

    fn parts(&self) -> Parts {
        let layout = self.layout();
        let mut ranges = layout.parameters().iter().map(|parameter| parameter.range.clone());
        let mut pair = || [ranges.next().unwrap_or_default(), ranges.next().unwrap_or_default()];
        Parts { norm1: pair(), qkv: pair(), proj: pair(), norm2: pair(), fc1: pair(), fc2: pair() }
    }

    /// The block's output and, if `save`, the intermediate results for [`Block::backward`].
    ///
    /// # Shapes
    /// `x` and the result (B, T, D); `params` flat, in the order of [`Block::layout`].
    pub fn forward(&self, x: &[f32], params: &[f32], save: bool) -> (Vec<f32>, Option<Saved>) {
        let (d, rows) = (self.at.width, x.len() / self.at.width);
        let at = self.parts();
        let get = |pair: &[Range<usize>; 2]| (&params[pair[0].clone()], &params[pair[1].clone()]);

        let mut normed = Buffer::dirty(rows * d);
        let (gamma, beta) = get(&at.norm1);
        layer_norm::forward(x, gamma, beta, &mut normed);
        let mut qkv = Buffer::dirty(rows * 3 * d);
        let (weight, bias) = get(&at.qkv);
        linear::forward(&normed, weight, bias, &mut qkv, false);
        let mut attended = Buffer::dirty(rows * d);
        attention::forward(self.at, &qkv, &mut attended);
        let mut middle = Buffer::dirty(rows * d);
        middle.copy_from_slice(x);
        let (weight, bias) = get(&at.proj);
        linear::forward(&attended, weight, bias, &mut middle, true);

        let (gamma, beta) = get(&at.norm2);
        layer_norm::forward(&middle, gamma, beta, &mut normed);
        let mut hidden = Buffer::dirty(rows * self.hidden);
        let (weight, bias) = get(&at.fc1);
        linear::forward(&normed, weight, bias, &mut hidden, false);
        drop(normed);
        let mut active = Buffer::dirty(rows * self.hidden);
        activation::gelu(&hidden, &mut active);
        let mut out = middle.to_vec();
        let (weight, bias) = get(&at.fc2);
        linear::forward(&active, weight, bias, &mut out, true);

        (out, save.then_some(Saved { qkv, attended, middle, hidden }))
    }

    /// Gradients of the input and of the flat parameters.
    ///
    /// # Shapes
    /// `x`, `dy` and the first result (B, T, D); the second result as `params`.
    pub fn backward(&self, x: &[f32], params: &[f32], saved: Saved, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, rows) = (self.at.width, x.len() / self.at.width);
        let at = self.parts();
        let get = |pair: &[Range<usize>; 2]| (&params[pair[0].clone()], &params[pair[1].clone()]);
        let Saved { qkv, attended, middle, hidden: mut slope } = saved;
        let mut dparams = vec![0f32; params.len()];

        let mut active = Buffer::dirty(rows * self.hidden);
        activation::gelu_and_slope(&mut slope, &mut active);
        let (dw, db) = pair_mut(&mut dparams, &at.fc2);
        linear::backward_parameters(&active, dy, dw, db);
        let mut dhidden = active; // reuses the buffer: its values are no longer needed
        linear::backward_input(dy, get(&at.fc2).0, d, &mut dhidden, false);
        activation::multiply(&mut dhidden, &slope);
        drop(slope);

        let mut normed = Buffer::dirty(rows * d);
        let (gamma, beta) = get(&at.norm2);
        layer_norm::forward(&middle, gamma, beta, &mut normed);
        let (dw, db) = pair_mut(&mut dparams, &at.fc1);
        linear::backward_parameters(&normed, &dhidden, dw, db);
        let mut dnormed = Buffer::dirty(rows * d);
        linear::backward_input(&dhidden, get(&at.fc1).0, self.hidden, &mut dnormed, false);
        drop(dhidden);
        let mut dx = dy.to_vec(); // gradient of the residual path; both halves add to it
        let (dgamma, dbeta) = pair_mut(&mut dparams, &at.norm2);
        layer_norm::backward(&middle, gamma, &dnormed, &mut dx, dgamma, dbeta);

        let (dw, db) = pair_mut(&mut dparams, &at.proj);
        linear::backward_parameters(&attended, &dx, dw, db);
        let mut dattended = attended;
        linear::backward_input(&dx, get(&at.proj).0, d, &mut dattended, false);
        let mut dqkv = Buffer::dirty(rows * 3 * d);
        attention::backward(self.at, &qkv, &dattended, &mut dqkv);
        let (gamma, beta) = get(&at.norm1);
        layer_norm::forward(x, gamma, beta, &mut normed);
        let (dw, db) = pair_mut(&mut dparams, &at.qkv);
        linear::backward_parameters(&normed, &dqkv, dw, db);
        linear::backward_input(&dqkv, get(&at.qkv).0, 3 * d, &mut dnormed, false);
        let (dgamma, dbeta) = pair_mut(&mut dparams, &at.norm1);
        layer_norm::backward(x, gamma, &dnormed, &mut dx, dgamma, dbeta);
        (dx, dparams)
    }
}

/// The gradients of a weight and its bias, which are adjacent, as two mutable slices.
fn pair_mut<'a>(flat: &'a mut [f32], pair: &[Range<usize>; 2]) -> (&'a mut [f32], &'a mut [f32]) {
    flat[pair[0].start..pair[1].end].split_at_mut(pair[0].len())
}
