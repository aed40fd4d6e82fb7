//! A pre-norm transformer block: `x + proj(attention(norm1(x)))`, then `x + fc2(gelu(fc1(norm2(x))))`
//! (arXiv 2010.11929), with its forward and backward pass.
//!
//! The images of a batch are divided into chunks, and one thread takes a chunk through the whole block: its intermediate
//! results stay in the cache, and the threads meet once a pass.  Only the gradients of the weights are sums over all images;
//! they are computed afterwards, from what the chunks have left.
//!
//! Stored for the backward pass: packed q, k, v; the attention's output; the residual stream between the two halves;
//! fc1's output.  These are 9 D values per token at MLP ratio 4.  Normalisations, attention weights and GELU are
//! recomputed.

use std::ops::Range;

use macrl_bundle::parameters::{self, Layout};
use macrl_kernels::buffer::Buffer;
use macrl_kernels::panels::Panels;
use rayon::prelude::*;

use super::attention::{self, Heads};
use super::layer_norm::add;
use super::linear::{Gradient, weight_gradients};
use super::{activation, layer_norm, linear};

/// About as many rows are in a chunk.  Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 128;

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

    /// Rows of a chunk of whole images.
    fn chunk(&self) -> usize {
        let tokens = self.at.tokens.max(1);
        ((ROWS + tokens / 2) / tokens).max(1) * tokens
    }

    /// The block's output and, if `save`, the intermediate results for [`Block::backward`].
    ///
    /// # Shapes
    /// `x` and the result (B, T, D); `params` flat, in the order of [`Block::layout`].
    pub fn forward(&self, x: &[f32], params: &[f32], save: bool) -> (Vec<f32>, Option<Saved>) {
        let (d, rows, chunk) = (self.at.width, x.len() / self.at.width, self.chunk());
        let weights = Weights::new(self, params);
        let mut out = vec![0f32; x.len()];
        let chunks = out.par_chunks_mut(chunk * d).zip(x.par_chunks(chunk * d));
        if !save {
            chunks.for_each(|(out, x)| {
                let rows = x.len() / d;
                let mut kept = Saved::new(self, rows);
                weights.forward(self, x, kept.parts(), out);
            });
            return (out, None);
        }
        let mut saved = Saved::new(self, rows);
        let Saved { qkv, attended, middle, hidden } = &mut saved;
        chunks
            .zip(qkv.par_chunks_mut(chunk * 3 * d))
            .zip(attended.par_chunks_mut(chunk * d))
            .zip(middle.par_chunks_mut(chunk * d))
            .zip(hidden.par_chunks_mut(chunk * self.hidden))
            .for_each(|(((((out, x), qkv), attended), middle), hidden)| {
                weights.forward(self, x, Kept { qkv, attended, middle, hidden: Hidden::Saved(hidden) }, out);
            });
        (out, Some(saved))
    }

    /// Gradients of the input and of the flat parameters.
    ///
    /// # Shapes
    /// `x`, `dy` and the first result (B, T, D); the second result as `params`.
    pub fn backward(&self, x: &[f32], params: &[f32], mut saved: Saved, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, rows, chunk) = (self.at.width, x.len() / self.at.width, self.chunk());
        let sums = Sums { d, hidden: self.hidden };
        let mut partial = Buffer::zeroed(rows.div_ceil(chunk) * sums.len());
        let mut left = Left::new(self, rows);
        let mut dx = vec![0f32; x.len()];
        let Saved { qkv, middle, hidden, .. } = &mut saved;
        let Left { active, normed1, normed2, dqkv } = &mut left;
        let parts = self.parts();
        dx.par_chunks_mut(chunk * d)
            .zip(x.par_chunks(chunk * d).zip(dy.par_chunks(chunk * d)))
            .zip(qkv.par_chunks(chunk * 3 * d).zip(dqkv.par_chunks_mut(chunk * 3 * d)))
            .zip(middle.par_chunks_mut(chunk * d).zip(normed1.par_chunks_mut(chunk * d)))
            .zip(normed2.par_chunks_mut(chunk * d).zip(partial.par_chunks_mut(sums.len())))
            .zip(hidden.par_chunks_mut(chunk * self.hidden).zip(active.par_chunks_mut(chunk * self.hidden)))
            .for_each(|(((((dx, (x, dy)), (qkv, dqkv)), (middle, normed1)), (normed2, partial)), (hidden, active))| {
                let [dnorm1, dbqkv, dbproj, dnorm2, dbfc1, dbfc2] = sums.split(partial);
                let mlp = MlpBackward { middle, hidden, active, normed: normed2, dnorm: dnorm2, dbfc1, dbfc2 };
                mlp.run(self, &parts, params, dy, dx);
                middle.copy_from_slice(dx); // its values are no longer needed; the gradient of proj's output is
                let attention = AttentionBackward { x, qkv, dqkv, normed: normed1, dnorm: dnorm1, dbqkv, dbproj };
                attention.run(self, &parts, params, dx);
            });
        (dx, self.parameter_gradients(params.len(), dy, &saved, &left, &mut partial))
    }

    /// The gradients of the flat parameters, from what the chunks have left.
    fn parameter_gradients(
        &self,
        count: usize,
        dy: &[f32],
        saved: &Saved,
        left: &Left,
        partial: &mut [f32],
    ) -> Vec<f32> {
        let d = self.at.width;
        let sums = Sums { d, hidden: self.hidden };
        let (total, others) = partial.split_at_mut(sums.len().min(partial.len()));
        others.chunks_exact(sums.len()).for_each(|part| add(total, part));
        let mut dparams = vec![0f32; count];
        let parts = self.parts();
        if !total.is_empty() {
            // a norm's weight and bias are adjacent; of a linear layer only the bias is a sum over rows
            let starts =
                [&parts.norm1[0], &parts.qkv[1], &parts.proj[1], &parts.norm2[0], &parts.fc1[1], &parts.fc2[1]];
            for (range, sums) in starts.into_iter().zip(sums.split(total)) {
                dparams[range.start..][..sums.len()].copy_from_slice(sums);
            }
        }
        let mut rest = &mut dparams[..];
        let mut at = 0;
        let mut weight = |pair: &[Range<usize>; 2]| {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(pair[0].start - at);
            let (dweight, tail) = tail.split_at_mut(pair[0].len());
            (rest, at) = (tail, pair[0].end);
            dweight
        };
        let [qkv, proj, fc1, fc2] = [&parts.qkv, &parts.proj, &parts.fc1, &parts.fc2].map(&mut weight);
        weight_gradients(vec![
            Gradient { x: &left.normed1, dy: &left.dqkv, outputs: 3 * d, dweight: qkv },
            Gradient { x: &saved.attended, dy: &saved.middle, outputs: d, dweight: proj },
            Gradient { x: &left.normed2, dy: &saved.hidden, outputs: self.hidden, dweight: fc1 },
            Gradient { x: &left.active, dy, outputs: d, dweight: fc2 },
        ]);
        dparams
    }
}

/// A block's parameters, prepared for the forward pass.
struct Weights<'a> {
    norms: [(&'a [f32], &'a [f32]); 2],
    linears: [(Panels<'static>, &'a [f32]); 4],
}

impl<'a> Weights<'a> {
    fn new(block: &Block, params: &'a [f32]) -> Self {
        let at = block.parts();
        let get = |pair: &[Range<usize>; 2]| (&params[pair[0].clone()], &params[pair[1].clone()]);
        let linear = |pair: &[Range<usize>; 2]| {
            let (weight, bias) = get(pair);
            (linear::prepare(weight, bias.len()), bias)
        };
        let linears = [&at.qkv, &at.proj, &at.fc1, &at.fc2].map(linear);
        Weights { norms: [get(&at.norm1), get(&at.norm2)], linears }
    }

    /// The whole block for one chunk.
    fn forward(&self, block: &Block, x: &[f32], kept: Kept, out: &mut [f32]) {
        let [norm1, norm2] = self.norms;
        let [qkv_weight, proj, fc1, fc2] = &self.linears;
        let Kept { qkv, attended, middle, hidden } = kept;
        let mut normed = Buffer::dirty(x.len());
        layer_norm::forward_rows(x, norm1.0, norm1.1, &mut normed);
        linear::rows(&normed, &qkv_weight.0, qkv_weight.1, qkv, false);
        attention::forward(block.at, qkv, attended);
        middle.copy_from_slice(x);
        linear::rows(attended, &proj.0, proj.1, middle, true);

        layer_norm::forward_rows(middle, norm2.0, norm2.1, &mut normed);
        out.copy_from_slice(middle);
        match hidden {
            Hidden::Saved(hidden) => {
                linear::rows(&normed, &fc1.0, fc1.1, hidden, false);
                let mut active = Buffer::dirty(hidden.len());
                activation::gelu_part(hidden, &mut active);
                linear::rows(&active, &fc2.0, fc2.1, out, true);
            }
            Hidden::Overwritten(hidden) => {
                linear::rows(&normed, &fc1.0, fc1.1, hidden, false);
                activation::gelu_in_place(hidden);
                linear::rows(hidden, &fc2.0, fc2.1, out, true);
            }
        }
    }
}

/// Where a chunk's intermediate results go.
struct Kept<'a> {
    qkv: &'a mut [f32],
    attended: &'a mut [f32],
    middle: &'a mut [f32],
    hidden: Hidden<'a>,
}

/// Where fc1's output goes: kept, or replaced by its GELU.
enum Hidden<'a> {
    Saved(&'a mut [f32]),
    Overwritten(&'a mut [f32]),
}

impl Saved {
    fn new(block: &Block, rows: usize) -> Self {
        let d = block.at.width;
        Saved {
            qkv: Buffer::dirty(rows * 3 * d),
            attended: Buffer::dirty(rows * d),
            middle: Buffer::dirty(rows * d),
            hidden: Buffer::dirty(rows * block.hidden),
        }
    }

    /// All of it for one chunk that needs no backward pass.
    fn parts(&mut self) -> Kept<'_> {
        let Saved { qkv, attended, middle, hidden } = self;
        Kept { qkv, attended, middle, hidden: Hidden::Overwritten(hidden) }
    }
}

/// What a chunk's backward pass through the MLP reads and writes.
struct MlpBackward<'a> {
    middle: &'a [f32],
    /// fc1's output, replaced by its gradient.
    hidden: &'a mut [f32],
    active: &'a mut [f32],
    normed: &'a mut [f32],
    dnorm: &'a mut [f32],
    dbfc1: &'a mut [f32],
    dbfc2: &'a mut [f32],
}

impl MlpBackward<'_> {
    /// Writes the gradient of `middle` to `dx`.
    fn run(self, block: &Block, at: &Parts, params: &[f32], dy: &[f32], dx: &mut [f32]) {
        let MlpBackward { middle, hidden, active, normed, dnorm, dbfc1, dbfc2 } = self;
        activation::gelu_and_slope_part(hidden, active);
        let mut dactive = Buffer::dirty(hidden.len());
        linear::rows_backward(dy, &params[at.fc2[0].clone()], block.at.width, &mut dactive);
        activation::multiply_part(hidden, &dactive);
        drop(dactive);
        linear::add_rows(dbfc2, dy);
        linear::add_rows(dbfc1, hidden);
        let (gamma, beta) = (&params[at.norm2[0].clone()], &params[at.norm2[1].clone()]);
        layer_norm::forward_rows(middle, gamma, beta, normed);
        let mut dnormed = Buffer::dirty(dx.len());
        linear::rows_backward(hidden, &params[at.fc1[0].clone()], block.hidden, &mut dnormed);
        dx.copy_from_slice(dy); // gradient of the residual path; both halves add to it
        let (dgamma, dbeta) = dnorm.split_at_mut(block.at.width);
        layer_norm::backward_rows(middle, gamma, &dnormed, dx, dgamma, dbeta);
    }
}

/// What a chunk's backward pass through the attention reads and writes.
struct AttentionBackward<'a> {
    x: &'a [f32],
    qkv: &'a [f32],
    dqkv: &'a mut [f32],
    normed: &'a mut [f32],
    dnorm: &'a mut [f32],
    dbqkv: &'a mut [f32],
    dbproj: &'a mut [f32],
}

impl AttentionBackward<'_> {
    /// Adds the gradient of `x` to `dx`, which holds that of the attention's result.
    fn run(self, block: &Block, at: &Parts, params: &[f32], dx: &mut [f32]) {
        let AttentionBackward { x, qkv, dqkv, normed, dnorm, dbqkv, dbproj } = self;
        let d = block.at.width;
        linear::add_rows(dbproj, dx);
        let mut room = Buffer::dirty(dx.len());
        linear::rows_backward(dx, &params[at.proj[0].clone()], d, &mut room);
        attention::backward(block.at, qkv, &room, dqkv);
        linear::add_rows(dbqkv, dqkv);
        let (gamma, beta) = (&params[at.norm1[0].clone()], &params[at.norm1[1].clone()]);
        layer_norm::forward_rows(x, gamma, beta, normed);
        linear::rows_backward(dqkv, &params[at.qkv[0].clone()], 3 * d, &mut room);
        let (dgamma, dbeta) = dnorm.split_at_mut(d);
        layer_norm::backward_rows(x, gamma, &room, dx, dgamma, dbeta);
    }
}

/// What the chunks' backward pass leaves for the gradients of the weights, besides what replaces [`Saved`]: the gradient of
/// fc1's output is in `hidden`, that of proj's output in `middle`.
struct Left {
    active: Buffer,
    normed1: Buffer,
    normed2: Buffer,
    dqkv: Buffer,
}

impl Left {
    fn new(block: &Block, rows: usize) -> Self {
        let d = block.at.width;
        Left {
            active: Buffer::dirty(rows * block.hidden),
            normed1: Buffer::dirty(rows * d),
            normed2: Buffer::dirty(rows * d),
            dqkv: Buffer::dirty(rows * 3 * d),
        }
    }
}

/// The gradients that are sums over rows: both norms (weight, bias) and the biases.
#[derive(Clone, Copy)]
struct Sums {
    d: usize,
    hidden: usize,
}

impl Sums {
    fn sizes(self) -> [usize; 6] {
        [2 * self.d, 3 * self.d, self.d, 2 * self.d, self.hidden, self.d]
    }

    fn len(self) -> usize {
        self.sizes().iter().sum()
    }

    /// norm1, qkv's bias, proj's, norm2, fc1's, fc2's.
    fn split(self, mut values: &mut [f32]) -> [&mut [f32]; 6] {
        self.sizes().map(|size| {
            let (part, rest) = std::mem::take(&mut values).split_at_mut(size);
            values = rest;
            part
        })
    }
}
