//! Matrix products by cuBLASLt on row-major matrices, with bias and residual in the same call.
//!
//! cuBLASLt is column-major: a row-major (r, c) matrix is its (c, r) one, so the operands change places.
//!
//! A shape's first product runs by the first algorithm that cuBLASLt names; its second one times them all on the device
//! and keeps the fastest ([`timing`]).  A captured step finds both behind it.

mod plan;
mod timing;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda::cudarc::cublaslt::sys;
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use candle_core::{Error, Result};
use plan::{ALIGNMENT, Plan, Shape, WORKSPACE};

use super::address::slice_address;
use super::real::Real;

/// Alignment of a bias that a product's epilogue takes.
const BIAS_ALIGNMENT: u64 = 16;

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
    /// Set while a step is captured: nothing may be timed then.
    capturing: Arc<AtomicBool>,
    /// For float32 and bfloat16: writes a bias that no epilogue takes.
    bias_rows: [CudaFunction; 2],
    timed: bool,
}

// SAFETY: cuBLASLt handles may be used by any thread; descriptors are only touched under the plans' lock.
unsafe impl Send for Gemm {}
unsafe impl Sync for Gemm {}

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

/// Where a product's operands lie.
#[derive(Clone, Copy)]
struct Operands {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    bias: Option<u64>,
    accumulate: bool,
}

impl Gemm {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        capturing: Arc<AtomicBool>,
        bias_rows: [CudaFunction; 2],
    ) -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        // SAFETY: cuBLASLt writes before it reads.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.w()?;
        let timed = std::env::var_os("MACRL_NO_GEMM_TIMING").is_none();
        let stream = stream.clone();
        Ok(Gemm { handle, workspace, stream, plans: Mutex::default(), capturing, bias_rows, timed })
    }

    /// `out (rows, O) = x (rows, I) w^T (O, I) + ...`: a layer's forward pass.
    ///
    /// # Safety
    /// The matrices have these shapes and strides and live until the stream has passed this point; nothing else has the
    /// result.
    ///
    /// # Errors
    /// cuBLASLt's.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn forward(
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
        // SAFETY: as the caller promises.
        unsafe { self.run(Call { a: w, b: x, d: out, transposed, mnk, values: [real, out_real], plus }) }
    }

    /// `dx (rows, I) = dy (rows, O) w (O, I) + ...`
    ///
    /// # Safety
    /// The matrices have these shapes and strides and live until the stream has passed this point; nothing else has the
    /// result.
    ///
    /// # Errors
    /// cuBLASLt's.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn input_gradient(
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
        // SAFETY: as the caller promises.
        unsafe { self.run(Call { a: w, b: dy, d: dx, transposed, mnk, values: [real, out_real], plus }) }
    }

    /// `dw (O, I) += dy^T (O, rows) x (rows, I)`, float32.
    ///
    /// # Safety
    /// The matrices have these shapes and strides and live until the stream has passed this point; nothing else has the
    /// result.
    ///
    /// # Errors
    /// cuBLASLt's.
    pub unsafe fn weight_gradient(
        &self,
        real: Real,
        [rows, inputs, outputs]: [usize; 3],
        dy: Mat,
        x: Mat,
        dw: Mat,
    ) -> Result<()> {
        let (transposed, mnk) = ([false, true], [inputs, outputs, rows]);
        // SAFETY: as the caller promises.
        unsafe { self.run(Call { a: x, b: dy, d: dw, transposed, mnk, values: [real, Real::F32], plus: Plus::Result }) }
    }

    /// # Safety
    /// As for the products above.
    unsafe fn run(&self, call: Call) -> Result<()> {
        // SAFETY: as the caller promises, here and below.
        let call = unsafe { self.aligned(call)? };
        let (bias, accumulate, c) = match call.plus {
            Plus::Nothing => (None, false, call.d.at),
            Plus::Bias(bias) => (Some(bias), false, call.d.at),
            Plus::BiasAnd(bias, c) => (Some(bias), true, c),
            Plus::Result => (None, true, call.d.at),
        };
        let at = Operands { a: call.a.at, b: call.b.at, c, d: call.d.at, bias, accumulate };
        let shape = Shape {
            transposed: call.transposed,
            mnk: call.mnk,
            strides: [call.a.stride, call.b.stride, call.d.stride],
            values: call.values,
            bias: bias.map(alignment),
            accumulate,
            in_place: c == call.d.at,
            alignments: [call.a.at, call.b.at, c, call.d.at].map(alignment),
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(found) => found.into_mut(),
            // SAFETY: descriptors made here live as long as the handle.
            Entry::Vacant(place) => place.insert(unsafe { Plan::new(self.handle, &shape, bias) }.map_err(failed)?),
        };
        plan.uses += 1;
        if plan.uses == 2 && self.timed && !self.capturing.load(Ordering::SeqCst) {
            unsafe { self.choose(plan, &shape, at)? };
        }
        let algorithm = plan.algorithms.first().ok_or_else(|| Error::Msg("cuBLASLt: no algorithm".into()))?;
        // SAFETY: addresses of matrices of these shapes, alive in stream order.
        unsafe { self.execute(plan, algorithm, at) }.map_err(failed)
    }

    /// Writes a bias that is not aligned well enough for an epilogue into the result, to which the product is added.
    ///
    /// # Safety
    /// As for the products above.
    unsafe fn aligned(&self, call: Call) -> Result<Call> {
        let (bias, c) = match call.plus {
            Plus::Bias(bias) => (bias, 0),
            Plus::BiasAnd(bias, c) => (bias, c),
            Plus::Nothing | Plus::Result => return Ok(call),
        };
        if bias.is_multiple_of(BIAS_ALIGNMENT) {
            return Ok(call);
        }
        let [width, rows, _] = call.mnk;
        let [grid, threads] = [(rows * width).div_ceil(256).max(1) as u32, 256];
        let (width, stride, count) = (width as i32, call.d.stride as i32, (rows * width) as u64);
        let function = &self.bias_rows[usize::from(call.values[1] == Real::Bf16)];
        let mut builder = self.stream.launch_builder(function);
        builder.arg(&bias).arg(&c).arg(&call.d.at).arg(&width).arg(&stride).arg(&count);
        let shape = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel's arguments, with addresses of matrices that live in stream order.
        unsafe { builder.launch(shape) }.w()?;
        Ok(Call { plus: Plus::Result, ..call })
    }

    /// # Safety
    /// As for the products above; the plan is one of such operands.
    unsafe fn execute(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        at: Operands,
    ) -> std::result::Result<(), CublasError> {
        let (alpha, beta) = (1f32, if at.accumulate { 1f32 } else { 0f32 });
        let [a, b, d] = plan.layouts;
        // SAFETY: as the caller promises.
        unsafe {
            if let Some(bias) = at.bias {
                plan.set_bias(bias)?;
            }
            result::matmul(
                self.handle,
                plan.matmul,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                at.a as *const c_void,
                a,
                at.b as *const c_void,
                b,
                at.c as *const c_void,
                d,
                at.d as *mut c_void,
                d,
                algorithm,
                slice_address(&self.workspace, &self.stream) as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
    }
}

/// The power of two that divides an address, 256 at most.
fn alignment(at: u64) -> u64 {
    (1 << at.trailing_zeros().min(63)).min(ALIGNMENT)
}

fn failed(error: CublasError) -> Error {
    Error::Msg(format!("cuBLASLt: {error}"))
}
