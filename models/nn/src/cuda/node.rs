//! CUDA layers as Candle operators.
//!
//! A layer stores the intermediate results for its backward pass itself.  Parameters are not arguments of the operator:
//! their gradients are added to the flat vector.  A one-value variable, the anchor, makes Candle's `backward` reach
//! layers whose input needs no gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::address::{address, address_in};
use super::engine::Engine;
use super::memory::tensor;

/// The results of a layer's forward pass.
pub struct Forward<S> {
    /// Values of the result, row-major.
    pub storage: CudaStorage,
    /// Shape of the result.
    pub shape: Vec<usize>,
    /// Intermediate results for the backward pass, if there will be one.
    pub saved: Option<S>,
}

/// A differentiable function of one tensor.
pub trait Layer: Send + Sync + 'static {
    /// Name of the operator in error messages.
    const NAME: &'static str;
    /// Intermediate results that the backward pass needs.
    type Saved: Send;
    /// Computes the result from the values at `x`; `save` says whether a backward pass will follow.
    ///
    /// # Safety
    /// `x` is the address of the tensor that the layer was made for.
    ///
    /// # Errors
    /// A failed CUDA call, or not enough memory.
    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, save: bool) -> Result<Forward<Self::Saved>>;
    /// Computes the gradient of `x` from the result's, if `wants_dx`; adds the parameters' gradients to the flat
    /// vector.
    ///
    /// # Safety
    /// As for [`Layer::forward`]; `dy` is the address of a tensor with the result's shape and dtype.
    ///
    /// # Errors
    /// A failed CUDA call, or not enough memory.
    unsafe fn backward(
        &self,
        engine: &Arc<Engine>,
        x: u64,
        saved: Self::Saved,
        dy: u64,
        wants_dx: bool,
    ) -> Result<Option<CudaStorage>>;
}

struct Node<L: Layer> {
    layer: L,
    save: bool,
    wants_dx: bool,
    saved: Mutex<Option<L::Saved>>,
}

/// Applies a layer; differentiable if `x` needs a gradient or there is an anchor.
///
/// # Safety
/// The layer was made for a tensor of `x`'s shape and dtype, and every tensor in it has the shape that its kernels
/// expect.
///
/// # Errors
/// The error of [`Layer::forward`].
pub unsafe fn apply<L: Layer>(layer: L, x: &Tensor, anchor: Option<&Tensor>) -> Result<Tensor> {
    let save = x.track_op() || anchor.is_some();
    let node = Node { layer, save, wants_dx: x.track_op(), saved: Mutex::new(None) };
    match anchor {
        Some(anchor) => x.apply_op2(anchor, node),
        None if save => x.apply_op1(node),
        None => x.apply_op1_no_bwd(&node),
    }
}

impl<L: Layer> Node<L> {
    fn run(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let engine = Engine::of(&storage.device)?;
        // SAFETY: the caller of `apply` promised that the layer was made for this tensor.
        let forward = unsafe { self.layer.forward(&engine, address_in(storage, layout)?, self.save)? };
        let Forward { storage, shape, saved } = forward;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((storage, Shape::from(shape)))
    }

    fn back(&self, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(saved) = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: backward ran twice through one forward pass", L::NAME)
        };
        let engine = Engine::at(x.device())?;
        let dy = dy.contiguous()?;
        // SAFETY: as in the forward pass; Candle's gradient has the shape of the result.
        let dx = unsafe { self.layer.backward(&engine, address(x)?, saved, address(&dy)?, self.wants_dx)? };
        Ok(dx.map(|dx| tensor(dx, x.shape())))
    }
}

impl<L: Layer> CustomOp1 for Node<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{}: this operator is the GPU's", L::NAME)
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run(x, layout)
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.back(x, dy)
    }
}

impl<L: Layer> CustomOp2 for Node<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("{}: this operator is the GPU's", L::NAME)
    }

    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.run(x, xl)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.back(x, dy)?, None))
    }
}
