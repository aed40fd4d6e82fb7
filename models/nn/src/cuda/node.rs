//! CUDA layers as Candle operators.
//!
//! A layer keeps what its backward pass needs in itself.  Parameters are no arguments: their gradients go into the flat
//! vector, and a one-value variable, the anchor, makes Candle's `backward` reach layers whose input
//! needs no gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::address::{address, address_in};
use super::engine::Engine;
use super::memory::tensor;

/// A layer's result, its shape, and what its backward pass needs.
pub struct Forward<S> {
    /// Its values.
    pub storage: CudaStorage,
    /// Its shape.
    pub shape: Vec<usize>,
    /// For the backward pass, where one will follow.
    pub saved: Option<S>,
}

/// A differentiable function of one tensor.
pub trait Layer: Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;
    /// What the backward pass needs of the forward pass.
    type Saved: Send;
    /// The result for the values at `x`; `save`: a backward pass will follow.
    ///
    /// # Safety
    /// `x` is the address of the tensor that the layer was made for.
    ///
    /// # Errors
    /// The driver's.
    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, save: bool) -> Result<Forward<Self::Saved>>;
    /// The gradient of `x` from that of the result, where `wants_dx`; parameters' gradients are added in passing.
    ///
    /// # Safety
    /// As for [`Layer::forward`]; `dy` is the address of a tensor like the result.
    ///
    /// # Errors
    /// The driver's.
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

/// `layer(x)`, differentiable where `x` is or where there is an anchor.
///
/// # Safety
/// The layer was made for a tensor of `x`'s shape and dtype, and every tensor in it has the shape that its kernels expect.
///
/// # Errors
/// The layer's.
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
        // SAFETY: whoever applied the layer promised that it was made for this tensor.
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
        // SAFETY: as in the forward pass; Candle's gradient has the result's shape.
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
