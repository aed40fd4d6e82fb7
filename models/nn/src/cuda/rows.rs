//! Addresses of a group's parameters, and launches of the row-wise kernels that layers and blocks share.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::address::{address, address_or_null};
use super::engine::{Engine, blocks, launch};
use super::memory::Scratch;
use super::scalar::ScalarType;
use crate::params::Group;

/// Threads in a block of most kernels.
pub(super) const THREADS: u32 = 256;
/// Largest row widths of the kernels that keep a row in registers or in a block's shared memory.
const WIDEST_NORM: usize = 1024;
const WIDEST: usize = 4096;
/// Groups of four values per thread of the GELU kernel; equal to `QUADS_EACH` in `rowwise.cuh`.
const GELU_QUADS: usize = 4;
/// Blocks of a column kernel per multiprocessor: 256 threads with at most 64 registers each.
const COLUMN_BLOCKS: usize = 4;

/// Device addresses of a group's parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    values: u64,
    weights: u64,
    gradient: u64,
    size: u64,
}

impl Params {
    /// # Errors
    /// The group is not on the GPU, or has no copy in the required format.
    pub(super) fn of(group: &Group, scalar: ScalarType) -> Result<Self> {
        let Some(place) = group.on_device() else { bail!("these parameters are not on the GPU") };
        let values = address(group.values())?;
        let weights = match (scalar, &place.half) {
            (ScalarType::F32, _) => values,
            (ScalarType::Bf16, Some(half)) => address(half)?,
            (ScalarType::Bf16, None) => bail!("these parameters have no bfloat16 copy"),
        };
        let gradient = address_or_null(place.gradient.as_ref())?;
        Ok(Params { values, weights, gradient, size: scalar.size() as u64 })
    }

    /// Address of the float32 value at `offset`.
    pub(super) fn master(&self, offset: usize) -> u64 {
        self.values + 4 * offset as u64
    }

    /// Address of the value at `offset` in the format of matrix products.
    pub(super) fn weight(&self, offset: usize) -> u64 {
        self.weights + self.size * offset as u64
    }

    /// Address of the gradient of the value at `offset`.
    pub(super) fn gradient(&self, offset: usize) -> u64 {
        self.gradient + 4 * offset as u64
    }
}

/// The anchor of a trained group; `None` if neither the group nor `x` needs a gradient.
///
/// # Errors
/// `x` needs a gradient but the parameters are frozen: the kernels always add the parameters' gradient too.
pub(super) fn anchor<'a>(x: &Tensor, group: &'a Group) -> Result<Option<&'a Tensor>> {
    let anchor = group.on_device().and_then(|place| place.anchor.as_ref());
    if anchor.is_none() && x.track_op() {
        bail!("on the GPU no gradient passes through frozen parameters")
    }
    Ok(anchor)
}

/// Groups of four values of a row that one lane holds.
fn quads(width: usize) -> Result<usize> {
    if width > WIDEST_NORM || !width.is_multiple_of(4) {
        bail!(
            "normalisation on the GPU: expected a width that is a multiple of 4 and at most {WIDEST_NORM}, found {width}"
        )
    }
    Ok(if width <= 256 { 2 } else { width.next_power_of_two() / 128 })
}

/// `y = norm(x)`; beta is stored after `gamma`.
pub(super) fn norm(
    engine: &Engine,
    scalar: ScalarType,
    x: u64,
    gamma: u64,
    y: u64,
    rows: usize,
    width: usize,
) -> Result<()> {
    let beta = gamma + 4 * width as u64;
    // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
    unsafe {
        launch!(
            engine, scalar.kernel(&format!("ln_fwd_{}", quads(width)?)), blocks(rows, 8), THREADS, 0;
            x, gamma, beta, y, rows as i32, width as i32,
        )
    }
}

/// `dx = residual + gradient`; also adds the gradients of gamma and beta, and dx's column sums to `columns` (0: none).
/// The addresses are: x, gamma, dy, residual (0: none), dx, gradient, columns.
pub(super) fn norm_backward(
    engine: &Arc<Engine>,
    scalar: ScalarType,
    [x, gamma, dy, residual, dx, gradient, columns]: [u64; 7],
    rows: usize,
    width: usize,
) -> Result<()> {
    let quads = quads(width)?;
    // As many blocks as can run at once by the kernel's launch bounds; their sums are added at the end.
    let each = match quads {
        2 => 3,
        4 => 2,
        _ => 1,
    };
    let grid = engine.summing_blocks(rows.div_ceil(8 * 4), each);
    let partial = Scratch::new(engine, ScalarType::F32, grid * 3 * width)?;
    // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
    unsafe {
        launch!(
            engine, scalar.kernel(&format!("ln_bwd_{quads}")), (grid as u32, 1), THREADS, 12 * width;
            x, gamma, dy, residual, dx, gradient, columns, partial.at(), engine.counters(), rows as i32, width as i32,
        )
    }
}

/// `out = gelu(h)`, element by element.
pub(super) fn gelu(engine: &Engine, scalar: ScalarType, h: u64, out: u64, count: usize) -> Result<()> {
    let grid = blocks(count / 4, GELU_QUADS * THREADS as usize);
    // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
    unsafe { launch!(engine, scalar.kernel("gelu_fwd"), grid, THREADS, 0; h, out, count as u64) }
}

/// Grid, threads per block and bytes of shared memory of a column kernel.
fn columns(engine: &Engine, rows: usize, width: usize) -> Result<(u32, u32, usize)> {
    if width > WIDEST || !width.is_multiple_of(4) {
        bail!("sums over rows on the GPU: expected a width that is a multiple of 4 and at most {WIDEST}, found {width}")
    }
    let quads = width / 4;
    let groups = (THREADS as usize / quads).max(1);
    let grid = engine.summing_blocks(rows.div_ceil(groups * 8), COLUMN_BLOCKS);
    Ok((grid as u32, (quads * groups) as u32, 16 * quads * groups))
}

/// Replaces `d` by the gradient before the GELU, writes gelu(h) to `active` (0: skipped), and adds d's column sums to
/// `bias`.
#[allow(clippy::too_many_arguments)]
pub(super) fn gelu_backward(
    engine: &Arc<Engine>,
    scalar: ScalarType,
    h: u64,
    d: u64,
    active: u64,
    bias: u64,
    rows: usize,
    width: usize,
) -> Result<()> {
    let (grid, threads, shared) = columns(engine, rows, width)?;
    let partial = Scratch::new(engine, ScalarType::F32, grid as usize * width)?;
    // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
    unsafe {
        launch!(
            engine, scalar.kernel("gelu_bwd"), (grid, 1), threads, shared;
            h, d, active, bias, partial.at(), engine.counters(), rows as i32, width as i32,
        )
    }
}

/// Adds column sums of `x` to `out`: over `rows` rows, taking every `stride`-th; with `sources`, only over rows whose
/// patch was removed.
pub(super) fn column_sums(
    engine: &Arc<Engine>,
    scalar: ScalarType,
    x: u64,
    sources: Option<u64>,
    out: u64,
    (rows, stride): (usize, usize),
    width: usize,
) -> Result<()> {
    if !width.is_multiple_of(4) && sources.is_none() && stride == 1 {
        let grid = blocks(width, THREADS as usize);
        // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
        return unsafe {
            launch!(engine, scalar.kernel("column_sums_any"), grid, THREADS, 0; x, out, rows as i32, width as i32)
        };
    }
    let (grid, threads, shared) = columns(engine, rows, width)?;
    let partial = Scratch::new(engine, ScalarType::F32, grid as usize * width)?;
    // SAFETY: callers in this module pass matrices of these sizes that stay allocated in stream order.
    unsafe {
        launch!(
            engine, scalar.kernel("column_sums"), (grid, 1), threads, shared;
            x, sources.unwrap_or(0), out, partial.at(), engine.counters(), rows as i32, stride as i32, width as i32,
        )
    }
}
