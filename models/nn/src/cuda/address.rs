//! Device addresses of tensors and slices.

use candle_core::cuda::CudaStorageSlice;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{CudaStorage, Layout, Result, Storage, Tensor, bail};

/// Device address of a slice's first value.
pub fn slice_address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// Device address of the first value that `layout` selects in a storage.
///
/// # Errors
/// The layout is not contiguous, or no kernel supports the dtype.
pub(super) fn address_in(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let Some((start, _)) = layout.contiguous_offsets() else { bail!("a fused operator needs contiguous input") };
    let stream = &storage.device.cuda_stream();
    let (base, size) = match &storage.slice {
        CudaStorageSlice::F32(s) => (slice_address(s, stream), 4),
        CudaStorageSlice::BF16(s) => (slice_address(s, stream), 2),
        CudaStorageSlice::U32(s) => (slice_address(s, stream), 4),
        CudaStorageSlice::U8(s) => (slice_address(s, stream), 1),
        CudaStorageSlice::F64(s) => (slice_address(s, stream), 8),
        _ => bail!("no kernel takes this dtype"),
    };
    Ok(base + (start * size) as u64)
}

/// Device address of a tensor's first value; valid as long as the tensor exists.
///
/// # Errors
/// The tensor is not on the GPU, is not contiguous, or has an unsupported dtype.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address_in(storage, layout),
        _ => bail!("expected a tensor on the GPU"),
    }
}

/// [`address`], or 0 (a null pointer) if there is no tensor.
///
/// # Errors
/// The errors of [`address`], if there is a tensor.
pub fn address_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}
