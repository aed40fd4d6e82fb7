//! Products of many small row-major matrices of one shape in one cuBLASLt call.

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda::cudarc::cublaslt::sys;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream};
use candle_core::{Error, Result};
use macrl_nn::cuda::{ScalarType, slice_address};

/// Working memory of cuBLASLt: small matrices need little.
const WORKSPACE: usize = 4 << 20;
/// Alignment up to which algorithms differ.
const ALIGNMENT: u64 = 256;

/// A handle of its own, with its working memory.
pub(super) struct Batched {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
}

// SAFETY: cuBLASLt handles may be used by any thread; descriptors are read only once they are made.
unsafe impl Send for Batched {}
unsafe impl Sync for Batched {}

/// Strides of `count` matrices, in values: from row to row, and from one matrix to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strides {
    pub(super) row: usize,
    pub(super) matrix: usize,
}

/// `D = alpha op(A) op(B) + beta C` in cuBLASLt's column-major terms, C with the strides of D.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) scalar: ScalarType,
    pub(super) count: usize,
    /// Of A and B.
    pub(super) transposed: [bool; 2],
    pub(super) mnk: [usize; 3],
    /// Of A, B and D.
    pub(super) strides: [Strides; 3],
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

/// A product that is ready to be queued any number of times.
pub(super) struct Product {
    kind: Kind,
    matmul: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: as for the handle.
unsafe impl Send for Product {}
unsafe impl Sync for Product {}

impl Batched {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        // SAFETY: cuBLASLt writes before it reads.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.w()?;
        Ok(Batched { handle, workspace, stream: stream.clone() })
    }

    /// Descriptors and the algorithm; all addresses must be multiples of 256 bytes.
    pub(super) fn product(&self, kind: Kind) -> Result<Product> {
        // SAFETY: descriptors made here live until the product is dropped.
        unsafe { self.describe(kind) }.map_err(failed)
    }

    unsafe fn describe(&self, kind: Kind) -> std::result::Result<Product, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let matmul = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let sides = [Attribute::CUBLASLT_MATMUL_DESC_TRANSA, Attribute::CUBLASLT_MATMUL_DESC_TRANSB];
        for (transposed, side) in kind.transposed.into_iter().zip(sides) {
            let value = i32::from(transposed);
            let at = std::ptr::from_ref(&value).cast();
            unsafe { result::set_matmul_desc_attribute(matmul, side, at, size_of::<i32>())? };
        }
        let [m, n, k] = kind.mnk;
        let shapes = [turned(kind.transposed[0], m, k), turned(kind.transposed[1], k, n), [m, n]];
        let mut layouts = [std::ptr::null_mut(); 3];
        for ((layout, [rows, columns]), strides) in layouts.iter_mut().zip(shapes).zip(kind.strides) {
            *layout = unsafe { stacked(kind, rows, columns, strides)? };
        }
        let algorithm = unsafe { self.choose(kind, matmul, layouts)? };
        Ok(Product { kind, matmul, layouts, algorithm })
    }

    unsafe fn choose(
        &self,
        kind: Kind,
        matmul: sys::cublasLtMatmulDesc_t,
        [a, b, d]: [sys::cublasLtMatrixLayout_t; 3],
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let wishes = result::create_matmul_pref()?;
        let chosen = unsafe {
            let bytes = WORKSPACE;
            let at = std::ptr::from_ref(&bytes).cast();
            let most = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(wishes, most, at, size_of::<usize>())?;
            let sides = [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.strides[0]),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.strides[1]),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.strides[2]),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.strides[2]),
            ];
            for (side, strides) in sides {
                let alignment = alignment((strides.matrix * kind.scalar.size()) as u64) as u32;
                let at = std::ptr::from_ref(&alignment).cast();
                result::set_matmul_pref_attribute(wishes, side, at, size_of::<u32>())?;
            }
            let chosen = result::get_matmul_algo_heuristic(self.handle, matmul, a, b, d, d, wishes);
            result::destroy_matmul_pref(wishes)?;
            chosen?
        };
        Ok(chosen.algo)
    }

    /// Queues a product.
    ///
    /// # Safety
    /// A, B, C and D are addresses of as many matrices of these shapes as `product` was described for, in memory that lives
    /// until the stream has passed the product.
    pub(super) unsafe fn run(&self, product: &Product, [a, b, c, d]: [u64; 4]) -> Result<()> {
        let (alpha, beta) = (product.kind.alpha, product.kind.beta);
        let [la, lb, ld] = product.layouts;
        // SAFETY: as the caller promises.
        let queued = unsafe {
            result::matmul(
                self.handle,
                product.matmul,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                a as *const c_void,
                la,
                b as *const c_void,
                lb,
                c as *const c_void,
                ld,
                d as *mut c_void,
                ld,
                &product.algorithm,
                slice_address(&self.workspace, &self.stream) as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        };
        queued.map_err(failed)
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        // SAFETY: it was created here and nobody uses it any more; an error has no one to go to.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            let _ = result::destroy_matmul_desc(self.matmul);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The shape in which an operand is stored.
fn turned(transposed: bool, rows: usize, columns: usize) -> [usize; 2] {
    if transposed { [columns, rows] } else { [rows, columns] }
}

unsafe fn stacked(
    kind: Kind,
    rows: usize,
    columns: usize,
    strides: Strides,
) -> std::result::Result<sys::cublasLtMatrixLayout_t, CublasError> {
    use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
    let values = match kind.scalar {
        ScalarType::F32 => sys::cudaDataType::CUDA_R_32F,
        ScalarType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    };
    let layout = result::create_matrix_layout(values, rows as u64, columns as u64, strides.row as i64)?;
    let (count, offset) = (kind.count as i32, strides.matrix as i64);
    unsafe {
        let at = std::ptr::from_ref(&count).cast();
        let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
        result::set_matrix_layout_attribute(layout, attribute, at, size_of::<i32>())?;
        let at = std::ptr::from_ref(&offset).cast();
        let attribute = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
        result::set_matrix_layout_attribute(layout, attribute, at, size_of::<i64>())?;
    }
    Ok(layout)
}

/// The power of two that divides an address, 256 at most.
fn alignment(at: u64) -> u64 {
    (1 << at.trailing_zeros().min(63)).min(ALIGNMENT)
}

fn failed(error: CublasError) -> Error {
    Error::Msg(format!("cuBLASLt: {error}"))
}
