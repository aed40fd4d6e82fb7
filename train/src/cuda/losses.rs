//! The two losses with their gradients, and the bank; scalars stay on the device.

use std::sync::Arc;

use candle_core::{CudaStorage, DType, Result, Tensor, bail};
use macrl_bundle::tokens::TokenLayout;
use macrl_nn::cuda::engine::blocks;
use macrl_nn::cuda::gemm::{Plus, mat};
use macrl_nn::cuda::memory::{Scratch, tensor};
use macrl_nn::cuda::node::{Forward, Layer, apply};
use macrl_nn::cuda::{Engine, Real, address, address_or_null};

use super::kernels::launch;
use crate::ops::losses::Comparison;

const THREADS: u32 = 256;
/// Blocks of the element-wise passes over predictions.
const BLOCKS: u32 = 512;

/// `factor` x the sum of the views' mean absolute errors, and those means (views) apart.
///
/// # Shapes
/// `predicted` (views B (1 + N), P); `targets` (B, N, P) f32 of each view; `sources` (B, 1 + N) of each view, whose
/// removed patches count, or `None`: all count.  `removed`: patches that count in an image of each view.
///
/// # Errors
/// Shapes that do not fit.
pub fn masked_l1(
    predicted: &Tensor,
    targets: &[Tensor],
    sources: Option<&[Tensor]>,
    removed: &[usize],
    factor: f64,
) -> Result<(Tensor, Tensor)> {
    let engine = Engine::at(predicted.device())?;
    let Some(first) = targets.first() else { bail!("masked_l1: no view") };
    let (images, patches, values) = first.dims3()?;
    let tokens = TokenLayout::of_patches(patches).count();
    let rows = targets.len() * images * tokens;
    let like = |target: &Tensor| target.dims() == first.dims() && target.dtype() == DType::F32;
    let counted = |sources: &[Tensor]| {
        sources.len() == targets.len() && sources.iter().all(|of| of.elem_count() == images * tokens)
    };
    let fit = targets.iter().all(like) && sources.is_none_or(counted);
    if predicted.dims() != [rows, values] || removed.len() != targets.len() || !fit {
        bail!("masked_l1: {:?} predicted for {} views of {:?}", predicted.shape(), targets.len(), targets[0].shape())
    }
    // SAFETY: the forward pass writes a number for each view before anybody reads one.
    let (parts, at) = unsafe { engine.room(DType::F32, targets.len())? };
    let views = targets.iter().enumerate().map(|(i, target)| L1View {
        target: target.clone(),
        sources: sources.map(|s| s[i].clone()),
        scale: 1.0 / (images * removed[i] * values).max(1) as f32,
    });
    let layer = L1 {
        views: views.collect(),
        images,
        patches,
        values,
        parts: at,
        factor: factor as f32,
        real: Real::of(predicted.dtype())?,
    };
    // SAFETY: the shapes were compared above.
    Ok((unsafe { apply(layer, predicted, None)? }, tensor(parts, targets.len())))
}

struct L1View {
    target: Tensor,
    sources: Option<Tensor>,
    scale: f32,
}

struct L1 {
    views: Vec<L1View>,
    images: usize,
    patches: usize,
    values: usize,
    parts: u64,
    factor: f32,
    real: Real,
}

impl L1 {
    /// Bytes of one view's predictions.
    fn step(&self) -> u64 {
        (self.images * TokenLayout::of_patches(self.patches).count() * self.values * self.real.size()) as u64
    }
}

impl Layer for L1 {
    const NAME: &'static str = "masked_l1";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: `x` is the tensor that the layer was made for; all other addresses are of room for the shapes given with them.
        unsafe {
            let partial = Scratch::new(engine, Real::F32, BLOCKS as usize)?;
            for (i, view) in self.views.iter().enumerate() {
                launch!(
                    engine, self.real.kernel("l1_fwd"), (BLOCKS, 1), THREADS, 0;
                    x + i as u64 * self.step(), address(&view.target)?, address_or_null(view.sources.as_ref())?,
                    self.parts + 4 * i as u64, partial.at(), engine.counters(), self.images as i32, self.patches as i32,
                    self.values as i32, view.scale,
                )?;
            }
            let (storage, out) = engine.room(DType::F32, 1)?;
            launch!(engine, "weigh", (1, 1), 1, 0; self.parts, self.views.len() as i32, self.factor, out)?;
            Ok(Forward { storage, shape: vec![], saved: Some(()) })
        }
    }

    unsafe fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        // SAFETY: `x` is the tensor that the layer was made for; all other addresses are of room for the shapes given with them.
        unsafe {
            let count = self.views.len() * self.images * TokenLayout::of_patches(self.patches).count() * self.values;
            let (storage, dx) = engine.room(self.real.dtype(), count)?;
            for (i, view) in self.views.iter().enumerate() {
                let at = i as u64 * self.step();
                launch!(
                    engine, self.real.kernel("l1_bwd"), (BLOCKS, 1), THREADS, 0;
                    x + at, address(&view.target)?, address_or_null(view.sources.as_ref())?, dy, dx + at,
                    self.images as i32, self.patches as i32, self.values as i32, view.scale * self.factor,
                )?;
            }
            Ok(Some(storage))
        }
    }
}

/// Past keys on the device: (M, C) and their images (M), `u32::MAX` where no key stands yet.
#[derive(Debug, Clone)]
pub struct DeviceBank {
    /// (M, C)
    pub keys: Tensor,
    /// (M) u32
    pub images: Tensor,
}

/// `weight` x InfoNCE, and (3): the loss, the mean cosine with the own key and with negatives.
///
/// # Shapes
/// `queries`, `keys` (B, C), `images` (B) u32.
///
/// # Errors
/// Shapes that do not fit.
pub fn contrast(
    queries: &Tensor,
    keys: &Tensor,
    images: &Tensor,
    bank: &DeviceBank,
    how: Comparison,
) -> Result<(Tensor, Tensor)> {
    let (batch, width) = queries.dims2()?;
    let (capacity, bank_width) = bank.keys.dims2()?;
    if keys.dims() != [batch, width] || images.elem_count() != batch || bank_width != width {
        bail!("contrast: queries {batch} x {width}, keys {:?}, bank {:?}", keys.shape(), bank.keys.shape())
    }
    let engine = Engine::at(queries.device())?;
    let real = Real::of(queries.dtype())?;
    if keys.dtype() != queries.dtype() || bank.keys.dtype() != queries.dtype() || bank.images.elem_count() != capacity {
        bail!("contrast: queries of {:?}, keys of {:?}, bank of {:?}", queries.dtype(), keys.dtype(), bank.keys.dtype())
    }
    // SAFETY: the forward pass writes the three numbers before anybody reads them.
    let (parts, at) = unsafe { engine.room(DType::F32, 3)? };
    let (keys, images, bank) = (keys.detach(), images.clone(), bank.clone());
    let layer = InfoNce { keys, images, bank, how, batch, capacity, width, parts: at, real };
    // SAFETY: the shapes were compared above.
    Ok((unsafe { apply(layer, queries, None)? }, tensor(parts, 3)))
}

struct InfoNce {
    keys: Tensor,
    images: Tensor,
    bank: DeviceBank,
    how: Comparison,
    batch: usize,
    capacity: usize,
    width: usize,
    parts: u64,
    real: Real,
}

impl Layer for InfoNce {
    const NAME: &'static str = "info_nce";
    /// (B, B + M): the softmax's distance from the truth, over tau B.
    type Saved = Scratch;

    unsafe fn forward(&self, engine: &Arc<Engine>, q: u64, _save: bool) -> Result<Forward<Scratch>> {
        // SAFETY: `x` is the tensor that the layer was made for; all other addresses are of room for the shapes given with them.
        unsafe {
            let (b, m, c, real) = (self.batch, self.capacity, self.width, self.real);
            let columns = b + m;
            let logits = Scratch::new(engine, Real::F32, b * columns)?;
            let compare = |n: usize, keys: u64, first: usize| {
                let out = mat(logits.at() + 4 * first as u64, columns);
                engine.gemm.forward(real, Real::F32, [b, c, n], mat(q, c), mat(keys, c), out, Plus::Nothing)
            };
            compare(b, address(&self.keys)?, 0)?;
            compare(m, address(&self.bank.keys)?, b)?;
            let (weights, rows) = (Scratch::new(engine, real, b * columns)?, Scratch::new(engine, Real::F32, 4 * b)?);
            launch!(
                engine, real.kernel("nce_rows"), (b as u32, 1), THREADS, 0;
                logits.at(), weights.at(), address(&self.images)?, address(&self.bank.images)?, rows.at(), self.parts,
                engine.counters(), m as i32, self.how.temperature as f32, i32::from(self.how.batch_negatives),
            )?;
            let (storage, out) = engine.room(DType::F32, 1)?;
            launch!(engine, "weigh", (1, 1), 1, 0; self.parts, 1i32, self.how.weight as f32, out)?;
            Ok(Forward { storage, shape: vec![], saved: Some(weights) })
        }
    }

    unsafe fn backward(
        &self,
        engine: &Arc<Engine>,
        _q: u64,
        weights: Scratch,
        dy: u64,
        _: bool,
    ) -> Result<Option<CudaStorage>> {
        // SAFETY: `x` is the tensor that the layer was made for; all other addresses are of room for the shapes given with them.
        unsafe {
            let (b, m, c, real) = (self.batch, self.capacity, self.width, self.real);
            let columns = b + m;
            let sum = Scratch::new(engine, Real::F32, b * c)?;
            let add = |n: usize, keys: u64, first: usize, plus: Plus| {
                let from = mat(weights.at() + (first * real.size()) as u64, columns);
                engine.gemm.input_gradient(real, Real::F32, [b, c, n], from, mat(keys, c), mat(sum.at(), c), plus)
            };
            add(b, address(&self.keys)?, 0, Plus::Nothing)?;
            add(m, address(&self.bank.keys)?, b, Plus::Result)?;
            let (storage, dq) = engine.room(real.dtype(), b * c)?;
            let grid = blocks(b * c, THREADS as usize);
            let weight = self.how.weight as f32;
            launch!(engine, real.kernel("scaled"), grid, THREADS, 0; sum.at(), dy, dq, weight, (b * c) as u64)?;
            Ok(Some(storage))
        }
    }
}

impl DeviceBank {
    /// Takes in a batch of keys, `offset` places behind the one that the word at `next` says; none where the word at
    /// `stopped` is 1.
    ///
    /// # Shapes
    /// `keys` (B, C), `images` (B) u32.
    ///
    /// # Safety
    /// `next` and `stopped` are addresses of u32 words on the device, the first below the bank's capacity.
    ///
    /// # Errors
    /// The driver's, or keys of another width.
    pub unsafe fn push(&self, keys: &Tensor, images: &Tensor, next: u64, stopped: u64, offset: usize) -> Result<()> {
        let (batch, width) = keys.dims2()?;
        let capacity = self.images.elem_count();
        let (engine, real) = (Engine::at(keys.device())?, Real::of(keys.dtype())?);
        if images.elem_count() != batch || self.keys.dims() != [capacity, width] || self.keys.dtype() != keys.dtype() {
            bail!("a batch of {batch} keys of {width} for a bank of {:?}", self.keys.shape())
        }
        // SAFETY: the shapes were compared; the words as the caller promises.
        unsafe {
            launch!(
                engine, real.kernel("bank_push"), (batch as u32, 1), 128, 0;
                address(keys)?, address(images)?, address(&self.keys)?, address(&self.images)?, next, stopped, offset as i32,
                batch as i32, capacity as i32, width as i32,
            )
        }
    }
}
