//! Matrix products by cuBLASLt on row-major matrices, with bias and residual in the same call.
//!
//! cuBLASLt is column-major: a row-major (r, c) matrix is its (c, r) one, so the operands change places.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda::cudarc::cublaslt::sys;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream};
use candle_core::{Error, Result};

use super::engine::Real;
use super::memory::slice_address;

/// Working memory of cuBLASLt: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Alignment up to which algorithms differ.
const ALIGNMENT: u64 = 256;

/// A matrix on the device: where it begins and how far its rows are apart, in values.
#[derive(Debug, Clone, Copy)]
pub struct Mat {
    /// Address.
    pub at: u64,
    /// Values from row to row.
    pub stride: usize,
}

/// Contiguous rows of `stride` values.
pub fn mat(at: u64, stride: usize) -> Mat {
    Mat { at, stride }
}

/// What is added to a product.
#[derive(Debug, Clone, Copy)]
pub enum Plus {
    /// Nothing.
    Nothing,
    /// A bias (address; of the result's dtype) to every row.
    Bias(u64),
    /// A bias and a matrix like the result, which may be the result itself.
    BiasAnd(u64, u64),
    /// What stands in the result already.
    Result,
}

/// cuBLASLt's handle and the algorithms chosen so far.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: cuBLASLt handles may be used by any thread; descriptors are only touched under the plans' lock.
unsafe impl Send for Gemm {}
unsafe impl Sync for Gemm {}

/// All that an algorithm is chosen by; column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    transposed: [bool; 2],
    mnk: [usize; 3],
    strides: [usize; 3],
    values: [Real; 2],
    bias: bool,
    accumulate: bool,
    alignments: [u64; 4],
}

#[derive(Clone, Copy)]
struct Plan {
    matmul: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// One product in cuBLASLt's terms: D (m, n) = op(A) op(B) + ...
struct Call {
    a: Mat,
    b: Mat,
    d: Mat,
    transposed: [bool; 2],
    mnk: [usize; 3],
    values: [Real; 2],
    plus: Plus,
}

impl Gemm {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        // SAFETY: cuBLASLt writes before it reads.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.w()?;
        Ok(Gemm { handle, workspace, stream: stream.clone(), plans: Mutex::default() })
    }

    /// `out (rows, O) = x (rows, I) w^T (O, I) + ...`: a layer's forward pass.
    ///
    /// # Errors
    /// cuBLASLt's.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        real: Real,
        out_real: Real,
        [rows, inputs, outputs]: [usize; 3],
        x: Mat,
        w: Mat,
        out: Mat,
        plus: Plus,
    ) -> Result<()> {
        let (transposed, mnk) = ([true, false], [outputs, rows, inputs]);
        self.run(Call { a: w, b: x, d: out, transposed, mnk, values: [real, out_real], plus })
    }

    /// `dx (rows, I) = dy (rows, O) w (O, I) + ...`
    ///
    /// # Errors
    /// cuBLASLt's.
    #[allow(clippy::too_many_arguments)]
    pub fn input_gradient(
        &self,
        real: Real,
        out_real: Real,
        [rows, inputs, outputs]: [usize; 3],
        dy: Mat,
        w: Mat,
        dx: Mat,
        plus: Plus,
    ) -> Result<()> {
        let (transposed, mnk) = ([false, false], [inputs, rows, outputs]);
        self.run(Call { a: w, b: dy, d: dx, transposed, mnk, values: [real, out_real], plus })
    }

    /// `dw (O, I) += dy^T (O, rows) x (rows, I)`, float32.
    ///
    /// # Errors
    /// cuBLASLt's.
    pub fn weight_gradient(
        &self,
        real: Real,
        [rows, inputs, outputs]: [usize; 3],
        dy: Mat,
        x: Mat,
        dw: Mat,
    ) -> Result<()> {
        let (transposed, mnk) = ([false, true], [inputs, outputs, rows]);
        self.run(Call { a: x, b: dy, d: dw, transposed, mnk, values: [real, Real::F32], plus: Plus::Result })
    }

    fn run(&self, call: Call) -> Result<()> {
        let c = match call.plus {
            Plus::BiasAnd(_, c) => c,
            _ => call.d.at,
        };
        let (bias, accumulate) = match call.plus {
            Plus::Nothing => (None, false),
            Plus::Bias(bias) => (Some(bias), false),
            Plus::BiasAnd(bias, _) => (Some(bias), true),
            Plus::Result => (None, true),
        };
        let shape = Shape {
            transposed: call.transposed,
            mnk: call.mnk,
            strides: [call.a.stride, call.b.stride, call.d.stride],
            values: call.values,
            bias: bias.is_some(),
            accumulate,
            alignments: [call.a.at, call.b.at, c, call.d.at].map(alignment),
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.get(&shape) {
            Some(plan) => *plan,
            None => {
                // SAFETY: descriptors made here live as long as the handle.
                let plan = unsafe { self.plan(&shape) }.map_err(failed)?;
                plans.insert(shape, plan);
                plan
            }
        };
        // SAFETY: addresses of matrices of these shapes, alive in stream order.
        unsafe { self.execute(&plan, &call, bias, accumulate, c) }.map_err(failed)
    }

    unsafe fn plan(&self, shape: &Shape) -> std::result::Result<Plan, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.mnk;
        let [real, out] = shape.values.map(data_type);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let matmul = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let sides = [Attribute::CUBLASLT_MATMUL_DESC_TRANSA, Attribute::CUBLASLT_MATMUL_DESC_TRANSB];
        for (transposed, side) in shape.transposed.into_iter().zip(sides) {
            unsafe { set(matmul, side, i32::from(transposed))? };
        }
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            unsafe { set(matmul, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)? };
        }
        let stored = |transposed: bool, rows: usize, columns: usize, stride: usize| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            result::create_matrix_layout(real, rows as u64, columns as u64, stride as i64)
        };
        let layouts = [
            stored(shape.transposed[0], m, k, shape.strides[0])?,
            stored(shape.transposed[1], k, n, shape.strides[1])?,
            result::create_matrix_layout(out, m as u64, n as u64, shape.strides[2] as i64)?,
        ];
        let algorithm = unsafe { self.choose(shape, matmul, layouts)? };
        Ok(Plan { matmul, layouts, algorithm })
    }

    unsafe fn choose(
        &self,
        shape: &Shape,
        matmul: sys::cublasLtMatmulDesc_t,
        [a, b, d]: [sys::cublasLtMatrixLayout_t; 3],
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let wishes = result::create_matmul_pref()?;
        unsafe {
            let bytes = WORKSPACE;
            result::set_matmul_pref_attribute(
                wishes,
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&bytes).cast(),
                size_of::<usize>(),
            )?;
            let sides = [
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ];
            for (side, alignment) in sides.into_iter().zip(shape.alignments) {
                let alignment = alignment as u32;
                let value = std::ptr::from_ref(&alignment).cast();
                result::set_matmul_pref_attribute(wishes, side, value, size_of::<u32>())?;
            }
            let chosen = result::get_matmul_algo_heuristic(self.handle, matmul, a, b, d, d, wishes);
            result::destroy_matmul_pref(wishes)?;
            Ok(chosen?.algo)
        }
    }

    unsafe fn execute(
        &self,
        plan: &Plan,
        call: &Call,
        bias: Option<u64>,
        accumulate: bool,
        c: u64,
    ) -> std::result::Result<(), CublasError> {
        let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0f32 });
        let [a, b, d] = plan.layouts;
        unsafe {
            if let Some(bias) = bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                set(plan.matmul, attribute, bias)?;
            }
            result::matmul(
                self.handle,
                plan.matmul,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                call.a.at as *const c_void,
                a,
                call.b.at as *const c_void,
                b,
                c as *const c_void,
                d,
                call.d.at as *mut c_void,
                d,
                &plan.algorithm,
                slice_address(&self.workspace, &self.stream) as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
    }
}

unsafe fn set<V>(
    matmul: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: V,
) -> std::result::Result<(), CublasError> {
    unsafe { result::set_matmul_desc_attribute(matmul, attribute, std::ptr::from_ref(&value).cast(), size_of::<V>()) }
}

fn data_type(real: Real) -> sys::cudaDataType {
    match real {
        Real::F32 => sys::cudaDataType::CUDA_R_32F,
        Real::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// The power of two that divides an address, 256 at most.
fn alignment(at: u64) -> u64 {
    (1 << at.trailing_zeros().min(63)).min(ALIGNMENT)
}

fn failed(error: CublasError) -> Error {
    Error::Msg(format!("cuBLASLt: {error}"))
}
