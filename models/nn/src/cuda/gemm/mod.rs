//! Matrix products of row-major matrices with cuBLASLt; bias and residual are added in the same call.
//!
//! cuBLASLt is column-major: it sees a row-major (r, c) matrix as a column-major (c, r) one, so the operands are
//! swapped.
//!
//! The first product of a shape uses cuBLASLt's first choice of algorithm.  The second product times all candidates on
//! the device and keeps the fastest ([`timing`]).  A step is captured only after both.

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
use super::scalar::ScalarType;

/// Alignment in bytes that a bias needs to be added in a product's epilogue.
const BIAS_ALIGNMENT: u64 = 16;

/// A row-major matrix on the device.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Address of the first value.
    pub at: u64,
    /// Distance between rows in values.
    pub stride: usize,
}

/// A matrix with contiguous rows of `stride` values.
pub fn matrix(at: u64, stride: usize) -> Matrix {
    Matrix { at, stride }
}

/// The epilogue of a product: what is added to it.
#[derive(Debug, Clone, Copy)]
pub enum Addend {
    /// The result is the product alone.
    None,
    /// Adds a bias to every row.  The bias is given by its address and has the result's dtype.
    Bias(u64),
    /// Adds a bias, and a matrix of the result's shape, which may be the result itself (addresses).
    BiasAndMatrix(u64, u64),
    /// Adds the product to the present values of the result.
    Output,
}

/// A cuBLASLt handle and the algorithms chosen so far.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    plans: Mutex<HashMap<Shape, Plan>>,
    /// True while a step is captured: algorithms cannot be timed then.
    capturing: Arc<AtomicBool>,
    /// Kernels for float32 and bfloat16 that write a bias whose alignment the epilogue does not support.
    bias_rows: [CudaFunction; 2],
    timed: bool,
}

// SAFETY: any thread may use a cuBLASLt handle; descriptors are only used while the lock on the plans is held.
unsafe impl Send for Gemm {}
unsafe impl Sync for Gemm {}

/// A product in cuBLASLt's notation: D (m, n) = op(A) op(B) + ...
struct Call {
    a: Matrix,
    b: Matrix,
    d: Matrix,
    transposed: [bool; 2],
    mnk: [usize; 3],
    values: [ScalarType; 2],
    addend: Addend,
}

/// Device addresses of a product's operands.
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
        // SAFETY: cuBLASLt writes to the workspace before it reads from it.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.w()?;
        let timed = std::env::var_os("MACRL_NO_GEMM_TIMING").is_none();
        let stream = stream.clone();
        Ok(Gemm { handle, workspace, stream, plans: Mutex::default(), capturing, bias_rows, timed })
    }

    /// `out (rows, O) = x (rows, I) w^T (O, I) + ...`: a layer's forward pass.
    ///
    /// # Safety
    /// The matrices have these shapes and strides and stay allocated until the stream has passed this point; nothing
    /// else uses the result until then.
    ///
    /// # Errors
    /// A cuBLASLt error, for example an unsupported shape.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn forward(
        &self,
        scalar: ScalarType,
        out_scalar: ScalarType,
        [rows, inputs, outputs]: [usize; 3],
        x: Matrix,
        w: Matrix,
        out: Matrix,
        addend: Addend,
    ) -> Result<()> {
        let (transposed, mnk) = ([true, false], [outputs, rows, inputs]);
        // SAFETY: as the caller promises.
        unsafe { self.run(Call { a: w, b: x, d: out, transposed, mnk, values: [scalar, out_scalar], addend }) }
    }

    /// `dx (rows, I) = dy (rows, O) w (O, I) + ...`
    ///
    /// # Safety
    /// The matrices have these shapes and strides and stay allocated until the stream has passed this point; nothing
    /// else uses the result until then.
    ///
    /// # Errors
    /// A cuBLASLt error, for example an unsupported shape.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn input_gradient(
        &self,
        scalar: ScalarType,
        out_scalar: ScalarType,
        [rows, inputs, outputs]: [usize; 3],
        dy: Matrix,
        w: Matrix,
        dx: Matrix,
        addend: Addend,
    ) -> Result<()> {
        let (transposed, mnk) = ([false, false], [inputs, rows, outputs]);
        // SAFETY: as the caller promises.
        unsafe { self.run(Call { a: w, b: dy, d: dx, transposed, mnk, values: [scalar, out_scalar], addend }) }
    }

    /// `dw (O, I) += dy^T (O, rows) x (rows, I)`, float32.
    ///
    /// # Safety
    /// The matrices have these shapes and strides and stay allocated until the stream has passed this point; nothing
    /// else uses the result until then.
    ///
    /// # Errors
    /// A cuBLASLt error, for example an unsupported shape.
    pub unsafe fn weight_gradient(
        &self,
        scalar: ScalarType,
        [rows, inputs, outputs]: [usize; 3],
        dy: Matrix,
        x: Matrix,
        dw: Matrix,
    ) -> Result<()> {
        let (transposed, mnk) = ([false, true], [inputs, outputs, rows]);
        // SAFETY: as the caller promises.
        unsafe {
            self.run(Call {
                a: x,
                b: dy,
                d: dw,
                transposed,
                mnk,
                values: [scalar, ScalarType::F32],
                addend: Addend::Output,
            })
        }
    }

    /// # Safety
    /// As for the products above.
    unsafe fn run(&self, call: Call) -> Result<()> {
        // SAFETY: as the caller promises, here and below.
        let call = unsafe { self.aligned(call)? };
        let (bias, accumulate, c) = match call.addend {
            Addend::None => (None, false, call.d.at),
            Addend::Bias(bias) => (Some(bias), false, call.d.at),
            Addend::BiasAndMatrix(bias, c) => (Some(bias), true, c),
            Addend::Output => (None, true, call.d.at),
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
            // SAFETY: the descriptors are created here and live as long as the handle.
            Entry::Vacant(place) => place.insert(unsafe { Plan::new(self.handle, &shape, bias) }.map_err(failed)?),
        };
        plan.uses += 1;
        if plan.uses == 2 && self.timed && !self.capturing.load(Ordering::SeqCst) {
            unsafe { self.choose(plan, &shape, at)? };
        }
        let algorithm = plan.algorithms.first().ok_or_else(|| Error::Msg("cuBLASLt: no algorithm".into()))?;
        // SAFETY: the addresses point to matrices of these shapes that are valid in stream order.
        unsafe { self.execute(plan, algorithm, at) }.map_err(failed)
    }

    /// Writes a bias that is not aligned for an epilogue to the result; the product is then added to the result.
    ///
    /// # Safety
    /// As for the products above.
    unsafe fn aligned(&self, call: Call) -> Result<Call> {
        let (bias, c) = match call.addend {
            Addend::Bias(bias) => (bias, 0),
            Addend::BiasAndMatrix(bias, c) => (bias, c),
            Addend::None | Addend::Output => return Ok(call),
        };
        if bias.is_multiple_of(BIAS_ALIGNMENT) {
            return Ok(call);
        }
        let [width, rows, _] = call.mnk;
        let [grid, threads] = [(rows * width).div_ceil(256).max(1) as u32, 256];
        let (width, stride, count) = (width as i32, call.d.stride as i32, (rows * width) as u64);
        let function = &self.bias_rows[usize::from(call.values[1] == ScalarType::Bf16)];
        let mut builder = self.stream.launch_builder(function);
        builder.arg(&bias).arg(&c).arg(&call.d.at).arg(&width).arg(&stride).arg(&count);
        let shape = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: these are the kernel's arguments; the addresses point to matrices that are valid in stream order.
        unsafe { builder.launch(shape) }.w()?;
        Ok(Call { addend: Addend::Output, ..call })
    }

    /// # Safety
    /// As for the products above; the plan was made for such operands.
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

/// The largest power of two that divides an address, at most 256.
fn alignment(at: u64) -> u64 {
    (1 << at.trailing_zeros().min(63)).min(ALIGNMENT)
}

fn failed(error: CublasError) -> Error {
    Error::Msg(format!("cuBLASLt: {error}"))
}
