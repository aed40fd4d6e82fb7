//! Layers that process each row separately, and pooling of an image's rows.

use std::sync::Arc;

use candle_core::{CudaStorage, Result, Tensor, bail};

use super::engine::{Engine, blocks, launch};
use super::gemm::{Addend, matrix};
use super::memory::Scratch;
use super::node::{Forward, Layer, apply};
use super::rows::{Params, THREADS, anchor, column_sums, gelu, gelu_backward, norm, norm_backward};
use super::scalar::ScalarType;
use super::spans::{Spans, rows_of};
use crate::params::Group;

// ---------------------------------------------------------------------------------------------------------------
// Normalisation

/// Layer normalisation of packed rows (rows, D).
///
/// The kernels do not support the width.
/// A width that the kernels do not take.
pub fn normalise(x: &Tensor, group: &Group) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if group.values().elem_count() != 2 * width {
        bail!("layer_norm: {} parameters for rows of {width}", group.values().elem_count())
    }
    // SAFETY: the layer was made for this tensor and a group of its width.
    unsafe {
        apply(Norm { group: group.clone(), rows, width, scalar: ScalarType::of(x.dtype())? }, x, anchor(x, group)?)
    }
}

struct Norm {
    group: Group,
    rows: usize,
    width: usize,
    scalar: ScalarType,
}

impl Layer for Norm {
    const NAME: &'static str = "layer_norm";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let params = Params::of(&self.group, self.scalar)?;
            let (storage, y) = engine.room(self.scalar.dtype(), self.rows * self.width)?;
            norm(engine, self.scalar, x, params.master(0), y, self.rows, self.width)?;
            Ok(Forward { storage, shape: vec![self.rows, self.width], saved: Some(()) })
        }
    }

    unsafe fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let params = Params::of(&self.group, self.scalar)?;
            let (storage, dx) = engine.room(self.scalar.dtype(), self.rows * self.width)?;
            let given = [x, params.master(0), dy, 0, dx, params.gradient(0), 0];
            norm_backward(engine, self.scalar, given, self.rows, self.width)?;
            Ok(Some(storage))
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Linear

/// `x w^T + b`, followed by GELU if `gelu`; weight (O, I) and bias (O) are in `group`.
///
/// # Shapes
/// `x` (rows, I), the result (rows, O).
///
/// # Errors
/// The group's size does not match, or a CUDA call failed.
pub fn linear(x: &Tensor, group: &Group, outputs: usize, gelu: bool) -> Result<Tensor> {
    let (rows, inputs) = x.dims2()?;
    if (inputs + 1) * outputs != group.values().elem_count() {
        bail!("linear: {} parameters for {inputs} inputs and {outputs} outputs", group.values().elem_count())
    }
    // SAFETY: the layer was made for this tensor; the group's size was checked above.
    unsafe {
        apply(
            Linear { group: group.clone(), shape: [rows, inputs, outputs], gelu, scalar: ScalarType::of(x.dtype())? },
            x,
            anchor(x, group)?,
        )
    }
}

struct Linear {
    group: Group,
    shape: [usize; 3],
    gelu: bool,
    scalar: ScalarType,
}

impl Layer for Linear {
    const NAME: &'static str = "linear";
    /// Values before the GELU, if there is one.
    type Saved = Option<Scratch>;

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<Option<Scratch>>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let ([rows, inputs, outputs], scalar) = (self.shape, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            let (storage, y) = engine.room(scalar.dtype(), rows * outputs)?;
            let before = if self.gelu { Some(Scratch::new(engine, scalar, rows * outputs)?) } else { None };
            let (w, bias) = (matrix(params.weight(0), inputs), Addend::Bias(params.weight(inputs * outputs)));
            let to = matrix(before.as_ref().map_or(y, Scratch::at), outputs);
            engine.gemm.forward(scalar, scalar, self.shape, matrix(x, inputs), w, to, bias)?;
            if let Some(before) = &before {
                gelu(engine, scalar, before.at(), y, rows * outputs)?;
            }
            Ok(Forward { storage, shape: vec![rows, outputs], saved: Some(before) })
        }
    }

    unsafe fn backward(
        &self,
        engine: &Arc<Engine>,
        x: u64,
        saved: Option<Scratch>,
        dy: u64,
        wants_dx: bool,
    ) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let ([rows, inputs, outputs], scalar) = (self.shape, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            let bias = params.gradient(inputs * outputs);
            match &saved {
                // dy is Candle's own sum of gradients, which is not read after this.
                Some(before) => gelu_backward(engine, scalar, before.at(), dy, 0, bias, rows, outputs)?,
                None => column_sums(engine, scalar, dy, None, bias, (rows, 1), outputs)?,
            }
            let (g, w) = (matrix(dy, outputs), matrix(params.weight(0), inputs));
            engine.gemm.weight_gradient(
                scalar,
                self.shape,
                g,
                matrix(x, inputs),
                matrix(params.gradient(0), inputs),
            )?;
            if !wants_dx {
                return Ok(None);
            }
            let (storage, dx) = engine.room(scalar.dtype(), rows * inputs)?;
            engine.gemm.input_gradient(scalar, scalar, self.shape, g, w, matrix(dx, inputs), Addend::None)?;
            Ok(Some(storage))
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Pooling

/// One feature for each image of view `which`: its class token, or the mean of its patch tokens.
///
/// # Shapes
/// `x` (rows, D), the result (B, D).
///
/// # Errors
/// The view does not exist, or a CUDA call failed.
pub fn pool(x: &Tensor, spans: &Spans, which: usize, mean: bool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let Some(&(images, tokens)) = spans.get(which).filter(|_| rows == rows_of(spans)) else {
        bail!("pool: view {which} of {rows} rows in {spans:?}")
    };
    let first = rows_of(&spans[..which]);
    // SAFETY: the layer was made for this tensor, which contains the view.
    unsafe { apply(Pool { rows, first, images, tokens, width, mean, scalar: ScalarType::of(x.dtype())? }, x, None) }
}

struct Pool {
    rows: usize,
    first: usize,
    images: usize,
    tokens: usize,
    width: usize,
    mean: bool,
    scalar: ScalarType,
}

impl Layer for Pool {
    const NAME: &'static str = "pool";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (storage, out) = engine.room(self.scalar.dtype(), self.images * self.width)?;
            let x = x + (self.first * self.width * self.scalar.size()) as u64;
            launch!(
                engine, self.scalar.kernel("pool_fwd"), blocks(self.images * self.width / 4, 256), THREADS, 0;
                x, out, self.images as i32, self.tokens as i32, self.width as i32, i32::from(self.mean),
            )?;
            Ok(Forward { storage, shape: vec![self.images, self.width], saved: Some(()) })
        }
    }

    unsafe fn backward(&self, engine: &Arc<Engine>, _x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (storage, dx) = engine.room(self.scalar.dtype(), self.rows * self.width)?;
            launch!(
                engine, self.scalar.kernel("pool_bwd"), blocks(self.rows * self.width / 4, 256), THREADS, 0;
                dy, dx, self.rows as i32, self.first as i32, self.images as i32, self.tokens as i32, self.width as i32,
                i32::from(self.mean),
            )?;
            Ok(Some(storage))
        }
    }
}

/// Divides each row by its Euclidean length.
///
/// # Errors
/// A dtype that the kernels do not support, or a failed CUDA call.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    // SAFETY: the layer was made for this tensor.
    unsafe { apply(Unit { rows, width, scalar: ScalarType::of(x.dtype())? }, x, None) }
}

struct Unit {
    rows: usize,
    width: usize,
    scalar: ScalarType,
}

impl Layer for Unit {
    const NAME: &'static str = "l2_normalize";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (storage, y) = engine.room(self.scalar.dtype(), self.rows * self.width)?;
            let grid = blocks(self.rows, 8);
            launch!(engine, self.scalar.kernel("unit_fwd"), grid, THREADS, 0; x, y, self.rows as i32, self.width as i32)?;
            Ok(Forward { storage, shape: vec![self.rows, self.width], saved: Some(()) })
        }
    }

    unsafe fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (storage, dx) = engine.room(self.scalar.dtype(), self.rows * self.width)?;
            let grid = blocks(self.rows, 8);
            launch!(engine, self.scalar.kernel("unit_bwd"), grid, THREADS, 0; x, dy, dx, self.rows as i32, self.width as i32)?;
            Ok(Some(storage))
        }
    }
}
