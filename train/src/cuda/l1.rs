//! L1 on a GPU, with its gradient; the values stay on the device.

use std::sync::Arc;

use candle_core::{CudaStorage, DType, Result, Tensor, bail};
use macrl_bundle::tokens::TokenLayout;
use macrl_nn::cuda::memory::{Scratch, tensor};
use macrl_nn::cuda::node::{Forward, Layer, apply};
use macrl_nn::cuda::{Engine, ScalarType, address, address_or_null};

use super::kernels::launch;

const THREADS: u32 = 256;
/// Blocks of the element-wise passes over predictions.
const BLOCKS: u32 = 512;

/// `factor` times the sum of the views' mean absolute errors, a scalar; and the mean absolute error of each view (views).
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
    // SAFETY: the forward pass writes a number for each view before it is read.
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
        scalar: ScalarType::of(predicted.dtype())?,
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
    scalar: ScalarType,
}

impl L1 {
    /// Bytes of one view's predictions.
    fn step(&self) -> u64 {
        (self.images * TokenLayout::of_patches(self.patches).count() * self.values * self.scalar.size()) as u64
    }
}

impl Layer for L1 {
    const NAME: &'static str = "masked_l1";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: `x` is the tensor that the layer was made for, and all other addresses are of memory for the shapes passed with them.
        unsafe {
            let partial = Scratch::new(engine, ScalarType::F32, BLOCKS as usize)?;
            for (i, view) in self.views.iter().enumerate() {
                launch!(
                    engine, self.scalar.kernel("l1_fwd"), (BLOCKS, 1), THREADS, 0;
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
        // SAFETY: `x` is the tensor that the layer was made for, and all other addresses are of memory for the shapes passed with them.
        unsafe {
            let count = self.views.len() * self.images * TokenLayout::of_patches(self.patches).count() * self.values;
            let (storage, dx) = engine.room(self.scalar.dtype(), count)?;
            for (i, view) in self.views.iter().enumerate() {
                let at = i as u64 * self.step();
                launch!(
                    engine, self.scalar.kernel("l1_bwd"), (BLOCKS, 1), THREADS, 0;
                    x + at, address(&view.target)?, address_or_null(view.sources.as_ref())?, dy, dx + at,
                    self.images as i32, self.patches as i32, self.values as i32, view.scale * self.factor,
                )?;
            }
            Ok(Some(storage))
        }
    }
}
