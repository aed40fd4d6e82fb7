//! Working memory that is reused in stream order, and copies between host and device.

use std::sync::{Arc, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};

use super::address::{address, address_in, slice_address};
use super::engine::{Engine, blocks, launch};
use super::scalar::ScalarType;

/// A buffer of working memory with arbitrary contents.  Work that was queued before the buffer is dropped may still use
/// it: the next user queues its work later on the same stream.
pub struct Scratch {
    slice: Option<CudaSlice<u8>>,
    engine: Arc<Engine>,
}

impl Scratch {
    /// A buffer of `count` values.
    ///
    /// # Errors
    /// There is not enough memory, or a capture is active and no buffer is free.
    pub fn new(engine: &Arc<Engine>, scalar: ScalarType, count: usize) -> Result<Self> {
        Self::bytes(engine, count * scalar.size())
    }

    /// A buffer of `len` bytes.
    ///
    /// # Errors
    /// There is not enough memory, or a capture is active and no buffer is free.
    pub fn bytes(engine: &Arc<Engine>, len: usize) -> Result<Self> {
        let len = len.max(1).next_multiple_of(256);
        let old = engine.pool.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&len).and_then(Vec::pop);
        let slice = match old {
            Some(slice) => slice,
            // A capture would own newly allocated memory, but the pool would pass it on.
            None if engine.is_capturing() => bail!("a captured step needs memory that the steps before it did not"),
            // SAFETY: u8 has no invalid values, and users write before they read.
            None => unsafe { engine.stream.alloc::<u8>(len) }.w()?,
        };
        Ok(Scratch { slice: Some(slice), engine: engine.clone() })
    }

    /// Device address of the first byte.
    pub fn at(&self) -> u64 {
        self.slice.as_ref().map_or(0, |slice| slice_address(slice, &self.engine.stream))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            let mut pool = self.engine.pool.lock().unwrap_or_else(PoisonError::into_inner);
            pool.entry(slice.len()).or_default().push(slice);
        }
    }
}

impl Engine {
    /// Allocates memory with arbitrary contents for a result; also returns its address.
    ///
    /// # Safety
    /// The caller writes all values before any is read.
    ///
    /// # Errors
    /// There is not enough memory, or no kernel supports the dtype.
    pub unsafe fn room(&self, dtype: DType, count: usize) -> Result<(CudaStorage, u64)> {
        // SAFETY: as the caller promises.
        let storage = unsafe { self.device.alloc_uninit(&Shape::from(count), dtype)? };
        let at = address_in(&storage, &Layout::contiguous(count))?;
        Ok((storage, at))
    }
}

/// Queues an operation that sets a tensor's values to zero.
///
/// # Errors
/// The tensor is not on the GPU or not contiguous.
pub fn clear(tensor: &Tensor) -> Result<()> {
    use candle_core::cuda::cudarc::driver::result::memset_d8_async;
    let (engine, len) = (Engine::at(tensor.device())?, tensor.elem_count() * tensor.dtype().size_in_bytes());
    // SAFETY: the tensor has this many bytes; all-zero bytes are valid in every dtype.
    unsafe { memset_d8_async(address(tensor)?, 0, len, engine.stream.cu_stream()) }.w()
}

/// Wraps a storage as a tensor without gradient history.
pub fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A variable with one value; its purpose is explained in [`super::node`].
///
/// # Errors
/// There is not enough memory.
pub fn variable(device: &candle_core::Device) -> Result<Tensor> {
    let engine = Engine::at(device)?;
    // SAFETY: the value is set to zero before any other use.
    let (storage, _) = unsafe { engine.room(DType::F32, 1)? };
    let variable = Tensor::from_storage(Storage::Cuda(storage), 1, BackpropOp::none(), true);
    clear(&variable)?;
    Ok(variable)
}

/// Copies a tensor's values to the host as float32 and waits for the copy.
///
/// # Errors
/// The dtype is not f32 or bf16, or a CUDA call failed.
pub fn fetch(tensor: &Tensor) -> Result<Vec<f32>> {
    use candle_core::cuda::cudarc::driver::result::memcpy_dtoh_sync;
    let (engine, scalar, n) = (Engine::at(tensor.device())?, ScalarType::of(tensor.dtype())?, tensor.elem_count());
    let tensor = tensor.contiguous()?;
    let mut bytes = vec![0u8; n * scalar.size()];
    engine.synchronize()?;
    // SAFETY: the tensor has this many bytes.
    unsafe { memcpy_dtoh_sync(&mut bytes, address(&tensor)?) }.w()?;
    Ok(match scalar {
        ScalarType::F32 => bytes.as_chunks().0.iter().map(|b: &[u8; 4]| f32::from_le_bytes(*b)).collect(),
        // bfloat16 is the upper half of a float32
        ScalarType::Bf16 => {
            bytes.as_chunks().0.iter().map(|b: &[u8; 2]| f32::from_le_bytes([0, 0, b[0], b[1]])).collect()
        }
    })
}

/// Copies float32 values to the device and stores them as `scalar`.
///
/// # Errors
/// There is not enough memory.
pub fn upload(
    device: &candle_core::Device,
    scalar: ScalarType,
    values: &[f32],
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let flat = Tensor::from_slice(values, values.len(), device)?;
    match halved(scalar, &flat)? {
        None => flat.reshape(shape.into()),
        Some(half) => half.reshape(shape.into()),
    }
}

/// Overwrites a tensor's values with host values and waits for the copy.
///
/// # Errors
/// The dtype is not f32, the sizes differ, or a CUDA call failed.
pub fn overwrite(tensor: &Tensor, values: &[f32]) -> Result<()> {
    use candle_core::cuda::cudarc::driver::result::memcpy_htod_sync;
    if (tensor.dtype(), tensor.elem_count()) != (DType::F32, values.len()) {
        bail!("{} f32 values for {:?} of {:?}", values.len(), tensor.shape(), tensor.dtype())
    }
    Engine::at(tensor.device())?.synchronize()?;
    // SAFETY: the tensor has this many values.
    unsafe { memcpy_htod_sync(address(tensor)?, values) }.w()
}

/// Queues a copy of 32-bit words to the device.
///
/// # Safety
/// The words are neither moved nor changed until the stream has passed the copy.
///
/// # Errors
/// The dtype is not u32, the sizes differ, or a CUDA call failed.
pub unsafe fn send(to: &Tensor, words: &[u32]) -> Result<()> {
    use candle_core::cuda::cudarc::driver::result::memcpy_htod_async;
    if (to.dtype(), to.elem_count()) != (DType::U32, words.len()) {
        bail!("{} words for {} of {:?}", words.len(), to.elem_count(), to.dtype())
    }
    let engine = Engine::at(to.device())?;
    // SAFETY: the tensor has this many words, and the caller keeps them.
    unsafe { memcpy_htod_async(address(to)?, words, engine.stream.cu_stream()) }.w()
}

/// Queues a copy of float32 values, stored as u32 words, to an f32 or bf16 tensor of the same size.
///
/// # Errors
/// The dtypes or sizes do not match.
pub fn land(words: &Tensor, to: &Tensor) -> Result<()> {
    use candle_core::cuda::cudarc::driver::result::memcpy_dtod_async;
    let n = words.elem_count();
    if (words.dtype(), to.elem_count()) != (DType::U32, n) {
        bail!("cannot copy {:?} of shape {:?} to shape {:?}", words.dtype(), words.shape(), to.shape())
    }
    let (engine, from, at) = (Engine::at(to.device())?, address(words)?, address(to)?);
    match ScalarType::of(to.dtype())? {
        // SAFETY: both tensors have 4 n bytes.
        ScalarType::F32 => unsafe { memcpy_dtod_async(at, from, 4 * n, engine.stream.cu_stream()) }.w(),
        ScalarType::Bf16 => {
            let grid = blocks(n, 256);
            // SAFETY: there are n float32 values at `from`, as words, and memory for n bfloat16 values at `at`.
            unsafe { launch!(engine, "to_half", grid, 256, 0; from, at, n as u64) }
        }
    }
}

/// A bfloat16 copy of float32 values; `None` if `scalar` is float32.
///
/// # Errors
/// The dtype is not f32, or there is not enough memory.
pub fn halved(scalar: ScalarType, values: &Tensor) -> Result<Option<Tensor>> {
    if scalar == ScalarType::F32 {
        return Ok(None);
    }
    if values.dtype() != DType::F32 {
        bail!("only float32 values are halved, found {:?}", values.dtype())
    }
    let (engine, n) = (Engine::at(values.device())?, values.elem_count());
    // SAFETY: the kernel reads n float32 values and writes n values to memory of that size.
    let storage = unsafe {
        let (storage, at) = engine.room(DType::BF16, n)?;
        launch!(engine, "to_half", blocks(n, 256), 256, 0; address(values)?, at, n as u64)?;
        storage
    };
    Ok(Some(tensor(storage, n)))
}
