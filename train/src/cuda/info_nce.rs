//! InfoNCE on a GPU, with its gradient; the values stay on the device.

use std::sync::Arc;

use candle_core::{CudaStorage, DType, Result, Tensor, bail};
use macrl_nn::cuda::engine::blocks;
use macrl_nn::cuda::gemm::{Addend, matrix};
use macrl_nn::cuda::memory::{Scratch, tensor};
use macrl_nn::cuda::node::{Forward, Layer, apply};
use macrl_nn::cuda::{Engine, ScalarType, address};

use super::bank::DeviceBank;
use super::kernels::launch;
use crate::ops::info_nce::ContrastSettings;

const THREADS: u32 = 256;

/// `weight` times InfoNCE, a scalar; and (3): the loss, the mean cosine of a query and its key, and that of a query and its
/// negatives.
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
    settings: ContrastSettings,
) -> Result<(Tensor, Tensor)> {
    let (batch, width) = queries.dims2()?;
    let (capacity, bank_width) = bank.keys.dims2()?;
    if keys.dims() != [batch, width] || images.elem_count() != batch || bank_width != width {
        bail!("contrast: queries {batch} x {width}, keys {:?}, bank {:?}", keys.shape(), bank.keys.shape())
    }
    let engine = Engine::at(queries.device())?;
    let scalar = ScalarType::of(queries.dtype())?;
    if keys.dtype() != queries.dtype() || bank.keys.dtype() != queries.dtype() || bank.images.elem_count() != capacity {
        bail!("contrast: queries of {:?}, keys of {:?}, bank of {:?}", queries.dtype(), keys.dtype(), bank.keys.dtype())
    }
    // SAFETY: the forward pass writes the three numbers before they are read.
    let (parts, at) = unsafe { engine.room(DType::F32, 3)? };
    let (keys, images, bank) = (keys.detach(), images.clone(), bank.clone());
    let layer = InfoNce { keys, images, bank, settings, batch, capacity, width, parts: at, scalar };
    // SAFETY: the shapes were compared above.
    Ok((unsafe { apply(layer, queries, None)? }, tensor(parts, 3)))
}

struct InfoNce {
    keys: Tensor,
    images: Tensor,
    bank: DeviceBank,
    settings: ContrastSettings,
    batch: usize,
    capacity: usize,
    width: usize,
    parts: u64,
    scalar: ScalarType,
}

impl Layer for InfoNce {
    const NAME: &'static str = "info_nce";
    /// (B, B + M): softmax minus one-hot, divided by tau B.
    type Saved = Scratch;

    unsafe fn forward(&self, engine: &Arc<Engine>, q: u64, _save: bool) -> Result<Forward<Scratch>> {
        // SAFETY: `q` is the tensor that the layer was made for, and all other addresses are of memory for the shapes passed with them.
        unsafe {
            let (b, m, c, scalar) = (self.batch, self.capacity, self.width, self.scalar);
            let columns = b + m;
            let logits = Scratch::new(engine, ScalarType::F32, b * columns)?;
            let compare = |n: usize, keys: u64, first: usize| {
                let out = matrix(logits.at() + 4 * first as u64, columns);
                engine.gemm.forward(
                    scalar,
                    ScalarType::F32,
                    [b, c, n],
                    matrix(q, c),
                    matrix(keys, c),
                    out,
                    Addend::None,
                )
            };
            compare(b, address(&self.keys)?, 0)?;
            compare(m, address(&self.bank.keys)?, b)?;
            let (weights, rows) =
                (Scratch::new(engine, scalar, b * columns)?, Scratch::new(engine, ScalarType::F32, 4 * b)?);
            launch!(
                engine, scalar.kernel("nce_rows"), (b as u32, 1), THREADS, 0;
                logits.at(), weights.at(), address(&self.images)?, address(&self.bank.images)?, rows.at(), self.parts,
                engine.counters(), m as i32, self.settings.temperature as f32, i32::from(self.settings.batch_negatives),
            )?;
            let (storage, out) = engine.room(DType::F32, 1)?;
            launch!(engine, "weigh", (1, 1), 1, 0; self.parts, 1i32, self.settings.weight as f32, out)?;
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
        // SAFETY: `dy` and the saved weights are of the shapes of the forward pass, and all other addresses are of memory for the
        // shapes passed with them.
        unsafe {
            let (b, m, c, scalar) = (self.batch, self.capacity, self.width, self.scalar);
            let columns = b + m;
            let sum = Scratch::new(engine, ScalarType::F32, b * c)?;
            let add = |n: usize, keys: u64, first: usize, addend: Addend| {
                let from = matrix(weights.at() + (first * scalar.size()) as u64, columns);
                engine.gemm.input_gradient(
                    scalar,
                    ScalarType::F32,
                    [b, c, n],
                    from,
                    matrix(keys, c),
                    matrix(sum.at(), c),
                    addend,
                )
            };
            add(b, address(&self.keys)?, 0, Addend::None)?;
            add(m, address(&self.bank.keys)?, b, Addend::Output)?;
            let (storage, dq) = engine.room(scalar.dtype(), b * c)?;
            let grid = blocks(b * c, THREADS as usize);
            let weight = self.settings.weight as f32;
            launch!(engine, scalar.kernel("scaled"), grid, THREADS, 0; sum.at(), dy, dq, weight, (b * c) as u64)?;
            Ok(Some(storage))
        }
    }
}
