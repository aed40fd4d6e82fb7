//! A stack of pre-norm transformer blocks as one operator; each block is the one of [`crate::ops::block`].
//!
//! Stored for the backward pass: both normalised inputs, packed q, k, v, the attention's output, the residual stream
//! between the halves and fc1's output.  These are 11 D values per token and block at MLP ratio 4.  Attention weights
//! and GELU are recomputed.

use std::sync::Arc;

use candle_core::{CudaStorage, Result, Tensor, bail};

use super::attention;
use super::engine::Engine;
use super::gemm::{Addend, matrix};
use super::memory::Scratch;
use super::node::{Forward, Layer, apply};
use super::rows::{Params, anchor, column_sums, gelu, gelu_backward, norm, norm_backward};
use super::scalar::ScalarType;
use super::spans::{Spans, rows_of};
use crate::ops::block::Block;
use crate::params::Group;

/// Applies all blocks to packed tokens.
///
/// # Shapes
/// `x` and the result (rows, D), the views' rows as in `spans`.
///
/// # Errors
/// The kernels do not support the geometry, or a CUDA call failed.
pub fn stack(block: Block, groups: &[Group], x: &Tensor, spans: &Spans) -> Result<Tensor> {
    let scalar = ScalarType::of(x.dtype())?;
    let Some(first) = groups.first() else { return Ok(x.clone()) };
    if x.dims() != [rows_of(spans), block.at.width] {
        bail!("blocks: {:?} for {spans:?} of width {}", x.shape(), block.at.width)
    }
    let values = block.layout().values();
    if let Some(other) = groups.iter().find(|group| group.values().elem_count() != values) {
        bail!("blocks: {} parameters for a block of {values}", other.values().elem_count())
    }
    let layer = Stack { block, groups: groups.to_vec(), spans: spans.clone(), scalar };
    // SAFETY: the shapes were checked above.
    unsafe { apply(layer, x, anchor(x, first)?) }
}

struct Stack {
    block: Block,
    groups: Vec<Group>,
    spans: Spans,
    scalar: ScalarType,
}

/// Intermediate results of one block for its backward pass; `x` is the block's input (`None`: the stack's input).
struct Kept {
    x: Option<Scratch>,
    normed1: Scratch,
    qkv: Scratch,
    attended: Scratch,
    sums: Vec<Scratch>,
    middle: Scratch,
    normed2: Scratch,
    hidden: Scratch,
}

/// Offsets of a block's parameters in its flat vector.
#[derive(Clone, Copy)]
struct Offsets {
    norm1: usize,
    qkv: usize,
    qkv_bias: usize,
    proj: usize,
    proj_bias: usize,
    norm2: usize,
    fc1: usize,
    fc1_bias: usize,
    fc2: usize,
    fc2_bias: usize,
}

impl Offsets {
    fn of(block: &Block) -> Self {
        let layout = block.layout();
        let mut starts = layout.parameters().iter().map(|parameter| parameter.range.start);
        let [norm1, _, qkv, qkv_bias, proj, proj_bias, norm2, _, fc1, fc1_bias, fc2, fc2_bias] =
            std::array::from_fn(|_| starts.next().unwrap_or_default());
        Offsets { norm1, qkv, qkv_bias, proj, proj_bias, norm2, fc1, fc1_bias, fc2, fc2_bias }
    }
}

impl Layer for Stack {
    const NAME: &'static str = "blocks";
    type Saved = Vec<Kept>;

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, save: bool) -> Result<Forward<Vec<Kept>>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (rows, d) = (rows_of(&self.spans), self.block.at.width);
            let (storage, result) = engine.room(self.scalar.dtype(), rows * d)?;
            let mut all = Vec::new();
            let mut input: Option<Scratch> = None;
            for (i, group) in self.groups.iter().enumerate() {
                let last = i + 1 == self.groups.len();
                let output = if last { None } else { Some(Scratch::new(engine, self.scalar, rows * d)?) };
                let (from, to) = (input.as_ref().map_or(x, Scratch::at), output.as_ref().map_or(result, Scratch::at));
                let mut kept = self.block_forward(engine, &Params::of(group, self.scalar)?, from, to)?;
                kept.x = input;
                input = output;
                if save {
                    all.push(kept);
                }
            }
            Ok(Forward { storage, shape: vec![rows, d], saved: save.then_some(all) })
        }
    }

    unsafe fn backward(
        &self,
        engine: &Arc<Engine>,
        x: u64,
        saved: Vec<Kept>,
        dy: u64,
        _wants_dx: bool,
    ) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (rows, d, at) = (rows_of(&self.spans), self.block.at.width, Offsets::of(&self.block));
            let params = self.groups.iter().map(|g| Params::of(g, self.scalar)).collect::<Result<Vec<_>>>()?;
            let (storage, result) = engine.room(self.scalar.dtype(), rows * d)?;
            if let Some(top) = params.last() {
                column_sums(engine, self.scalar, dy, None, top.gradient(at.fc2_bias), (rows, 1), d)?;
            }
            let mut given: Option<Scratch> = None;
            for (i, kept) in saved.into_iter().enumerate().rev() {
                let out = if i == 0 { None } else { Some(Scratch::new(engine, self.scalar, rows * d)?) };
                let (from, to) = (given.as_ref().map_or(dy, Scratch::at), out.as_ref().map_or(result, Scratch::at));
                // The block below ends with a bias, whose gradient is this block's input gradient, summed over the
                // rows.
                let below = i.checked_sub(1).map_or(0, |below| params[below].gradient(at.fc2_bias));
                self.block_backward(engine, &params[i], x, kept, from, to, below)?;
                given = out;
            }
            Ok(Some(storage))
        }
    }
}

impl Stack {
    fn block_forward(&self, engine: &Arc<Engine>, p: &Params, x: u64, out: u64) -> Result<Kept> {
        let (scalar, rows, at) = (self.scalar, rows_of(&self.spans), Offsets::of(&self.block));
        let (d, h) = (self.block.at.width, self.block.hidden);
        let room = |width: usize| Scratch::new(engine, scalar, rows * width);
        let product = |[i, o]: [usize; 2], x: u64, w: usize, out: u64, addend: Addend| {
            // SAFETY: matrices of these shapes, in working memory or in the group's vector.
            unsafe {
                engine.gemm.forward(
                    scalar,
                    scalar,
                    [rows, i, o],
                    matrix(x, i),
                    matrix(p.weight(w), i),
                    matrix(out, o),
                    addend,
                )
            }
        };
        let normed1 = room(d)?;
        norm(engine, scalar, x, p.master(at.norm1), normed1.at(), rows, d)?;
        let qkv = room(3 * d)?;
        product([d, 3 * d], normed1.at(), at.qkv, qkv.at(), Addend::Bias(p.weight(at.qkv_bias)))?;
        let attended = room(d)?;
        let sums = attention::forward(engine, scalar, self.block.at, &self.spans, qkv.at(), attended.at())?;
        let middle = room(d)?;
        product([d, d], attended.at(), at.proj, middle.at(), Addend::BiasAndMatrix(p.weight(at.proj_bias), x))?;

        let normed2 = room(d)?;
        norm(engine, scalar, middle.at(), p.master(at.norm2), normed2.at(), rows, d)?;
        let hidden = room(h)?;
        product([d, h], normed2.at(), at.fc1, hidden.at(), Addend::Bias(p.weight(at.fc1_bias)))?;
        let active = room(h)?;
        gelu(engine, scalar, hidden.at(), active.at(), rows * h)?;
        product([h, d], active.at(), at.fc2, out, Addend::BiasAndMatrix(p.weight(at.fc2_bias), middle.at()))?;
        Ok(Kept { x: None, normed1, qkv, attended, sums, middle, normed2, hidden })
    }

    /// `below` is the address that the column sums of the result are added to; 0 for none.
    #[allow(clippy::too_many_arguments)]
    fn block_backward(
        &self,
        engine: &Arc<Engine>,
        p: &Params,
        x: u64,
        kept: Kept,
        dy: u64,
        out: u64,
        below: u64,
    ) -> Result<()> {
        let (scalar, rows, at) = (self.scalar, rows_of(&self.spans), Offsets::of(&self.block));
        let (d, h) = (self.block.at.width, self.block.hidden);
        let x = kept.x.as_ref().map_or(x, Scratch::at);
        let room = |width: usize| Scratch::new(engine, scalar, rows * width);
        let to_input = |[i, o]: [usize; 2], dy: u64, w: usize, dx: u64| {
            let (dy, w, dx) = (matrix(dy, o), matrix(p.weight(w), i), matrix(dx, i));
            // SAFETY: matrices of these shapes, in working memory or in the group's vector.
            unsafe { engine.gemm.input_gradient(scalar, scalar, [rows, i, o], dy, w, dx, Addend::None) }
        };
        let to_weight = |[i, o]: [usize; 2], dy: u64, x: u64, w: usize| {
            // SAFETY: matrices of these shapes, in working memory or in the group's vector.
            unsafe {
                engine.gemm.weight_gradient(scalar, [rows, i, o], matrix(dy, o), matrix(x, i), matrix(p.gradient(w), i))
            }
        };

        let (dhidden, active) = (room(h)?, room(h)?);
        to_input([h, d], dy, at.fc2, dhidden.at())?;
        let bias = p.gradient(at.fc1_bias);
        gelu_backward(engine, scalar, kept.hidden.at(), dhidden.at(), active.at(), bias, rows, h)?;
        to_weight([h, d], dy, active.at(), at.fc2)?;
        to_weight([d, h], dhidden.at(), kept.normed2.at(), at.fc1)?;
        let (dnormed, dmiddle) = (room(d)?, room(d)?);
        to_input([d, h], dhidden.at(), at.fc1, dnormed.at())?;
        let (gamma, gradient) = (p.master(at.norm2), p.gradient(at.norm2));
        let columns = p.gradient(at.proj_bias);
        norm_backward(
            engine,
            scalar,
            [kept.middle.at(), gamma, dnormed.at(), dy, dmiddle.at(), gradient, columns],
            rows,
            d,
        )?;

        to_weight([d, d], dmiddle.at(), kept.attended.at(), at.proj)?;
        let (dattended, dqkv) = (room(d)?, room(3 * d)?);
        to_input([d, d], dmiddle.at(), at.proj, dattended.at())?;
        let given = [kept.qkv.at(), kept.attended.at(), dattended.at(), dqkv.at()];
        attention::backward(engine, scalar, self.block.at, &self.spans, given, &kept.sums)?;
        column_sums(engine, scalar, dqkv.at(), None, p.gradient(at.qkv_bias), (rows, 1), 3 * d)?;
        to_weight([d, 3 * d], dqkv.at(), kept.normed1.at(), at.qkv)?;
        to_input([d, 3 * d], dqkv.at(), at.qkv, dnormed.at())?;
        let (gamma, gradient) = (p.master(at.norm1), p.gradient(at.norm1));
        norm_backward(engine, scalar, [x, gamma, dnormed.at(), dmiddle.at(), out, gradient, below], rows, d)
    }
}
