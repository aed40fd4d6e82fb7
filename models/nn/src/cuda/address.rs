//! Where values lie on the device.

use candle_core::cuda::CudaStorageSlice;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{CudaStorage, Layout, Result, Storage, Tensor, bail};

/// Where a slice begins on the device.
pub fn slice_address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

/// Where a storage's values from `layout` on begin.
///
/// # Errors
/// A layout with gaps, or a dtype that no kernel takes.
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

/// Where a tensor's values begin; valid as long as the tensor lives.
///
/// # Errors
/// A tensor elsewhere, or with gaps.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address_in(storage, layout),
        _ => bail!("expected a tensor on the GPU"),
    }
}

/// [`address`], or 0 (a null pointer) without a tensor.
///
/// # Errors
/// As [`address`].
pub fn address_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}
