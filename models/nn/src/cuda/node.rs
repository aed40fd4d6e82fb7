//! CUDA layers as Candle operators.
//!
//! A layer keeps what its backward pass needs in itself.  Parameters are no arguments: their gradients go into the flat
//! vector, and a one-value variable, the anchor, makes Candle's `backward` reach layers whose input
//! needs no gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::engine::Engine;
use super::memory::{address, address_in, tensor};

/// A layer's result, its shape, and what its backward pass needs.
pub struct Forward<S> {
    pub storage: CudaStorage,
    pub shape: Vec<usize>,
    pub saved: Option<S>,
}

/// A differentiable function of one tensor.
pub trait Layer: Send + Sync + 'static {
    const NAME: &'static str;
    type Saved: Send;
    /// The result for the values at `x`; `save`: a backward pass will follow.
    fn forward(&self, engine: &Arc<Engine>, x: u64, save: bool) -> Result<Forward<Self::Saved>>;
    /// The gradient of `x` from that of the result, where `wants_dx`; parameters' gradients are added in passing.
    fn backward(
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
pub fn apply<L: Layer>(layer: L, x: &Tensor, anchor: Option<&Tensor>) -> Result<Tensor> {
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
        let Forward { storage, shape, saved } = self.layer.forward(&engine, address_in(storage, layout)?, self.save)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((storage, Shape::from(shape)))
    }

    fn back(&self, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(saved) = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: backward ran twice through one forward pass", L::NAME)
        };
        let engine = Engine::at(x.device())?;
        let dy = dy.contiguous()?;
        let dx = self.layer.backward(&engine, address(x)?, saved, address(&dy)?, self.wants_dx)?;
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
