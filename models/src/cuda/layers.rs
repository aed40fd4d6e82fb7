//! Layers around the blocks, and the row-wise launches that blocks share.

use std::sync::Arc;

use candle_core::{CudaStorage, Result, Tensor, bail};

use super::engine::{Engine, Real, blocks, launch};
use super::gemm::{Plus, mat};
use super::memory::{Scratch, address, address_or_null};
use super::node::{Forward, Layer, apply};
use super::stack::{Spans, rows_of};
use crate::params::Group;

const THREADS: u32 = 256;
/// Widest rows of the kernels that hold a row in registers or a block.
const WIDEST_NORM: usize = 1024;
const WIDEST: usize = 4096;

/// Addresses of a group's parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    values: u64,
    weights: u64,
    gradient: u64,
    size: u64,
}

impl Params {
    /// # Errors
    /// A group that is not on the GPU, or not in the dtype wanted.
    pub(super) fn of(group: &Group, real: Real) -> Result<Self> {
        let Some(place) = group.on_device() else { bail!("these parameters are not on the GPU") };
        let values = address(group.values())?;
        let weights = match (real, &place.half) {
            (Real::F32, _) => values,
            (Real::Bf16, Some(half)) => address(half)?,
            (Real::Bf16, None) => bail!("these parameters have no bfloat16 copy"),
        };
        let gradient = address_or_null(place.gradient.as_ref())?;
        Ok(Params { values, weights, gradient, size: real.size() as u64 })
    }

    /// float32 value `offset`.
    pub(super) fn master(&self, offset: usize) -> u64 {
        self.values + 4 * offset as u64
    }

    /// Value `offset` as products take it.
    pub(super) fn weight(&self, offset: usize) -> u64 {
        self.weights + self.size * offset as u64
    }

    /// Gradient of value `offset`.
    pub(super) fn gradient(&self, offset: usize) -> u64 {
        self.gradient + 4 * offset as u64
    }
}

/// The anchor of a group that trains; `None` where neither it nor `x` wants a gradient.
///
/// # Errors
/// Frozen parameters behind which something wants a gradient: no kernel passes one on without adding its own.
pub(super) fn anchor<'a>(x: &Tensor, group: &'a Group) -> Result<Option<&'a Tensor>> {
    let anchor = group.on_device().and_then(|place| place.anchor.as_ref());
    if anchor.is_none() && x.track_op() {
        bail!("on the GPU no gradient passes through frozen parameters")
    }
    Ok(anchor)
}

// ---------------------------------------------------------------------------------------------------------------
// Launches

fn norm_kernel(name: &str, real: Real, width: usize) -> Result<String> {
    if width > WIDEST_NORM || !width.is_multiple_of(4) {
        bail!("normalisation on the GPU takes widths that 4 divides, up to {WIDEST_NORM}; found {width}")
    }
    let quads = if width <= 256 { 2 } else { width.next_power_of_two() / 128 };
    Ok(real.kernel(&format!("{name}_{quads}")))
}

/// `y = norm(x)`; `gamma` is followed by beta.
pub(super) fn norm(engine: &Engine, real: Real, x: u64, gamma: u64, y: u64, rows: usize, width: usize) -> Result<()> {
    let beta = gamma + 4 * width as u64;
    launch!(
        engine, norm_kernel("ln_fwd", real, width)?, blocks(rows, 8), THREADS, 0;
        x, gamma, beta, y, rows as i32, width as i32,
    )
}

/// `dx = residual + gradient`; adds gamma's and beta's gradients, and dx's column sums to `columns` (0: nowhere).
/// Addresses: x, gamma, dy, residual (0: none), dx, gradient, columns.
pub(super) fn norm_backward(
    engine: &Arc<Engine>,
    real: Real,
    [x, gamma, dy, residual, dx, gradient, columns]: [u64; 7],
    rows: usize,
    width: usize,
) -> Result<()> {
    // Few blocks: the last one adds up their parts.
    let grid = blocks(rows, 8 * 4).0.min(2 * engine.processors as u32);
    let partial = Scratch::new(engine, Real::F32, grid as usize * 3 * width)?;
    launch!(
        engine, norm_kernel("ln_bwd", real, width)?, (grid, 1), THREADS, 12 * width;
        x, gamma, dy, residual, dx, gradient, columns, partial.at(), engine.counter(), rows as i32, width as i32,
    )
}

/// `out = gelu(h)`.
pub(super) fn gelu(engine: &Engine, real: Real, h: u64, out: u64, count: usize) -> Result<()> {
    launch!(engine, real.kernel("gelu_fwd"), blocks(count / 4, THREADS as usize), THREADS, 0; h, out, count as u64)
}

/// (grid, threads, shared bytes) of a column kernel.
fn columns(engine: &Engine, rows: usize, width: usize) -> Result<(u32, u32, usize)> {
    if width > WIDEST || !width.is_multiple_of(4) {
        bail!("sums over rows on the GPU take widths that 4 divides, up to {WIDEST}; found {width}")
    }
    let quads = width / 4;
    let groups = (512 / quads).max(1);
    let grid = rows.div_ceil(groups * 8).clamp(1, 2 * engine.processors);
    Ok((grid as u32, (quads * groups) as u32, 16 * quads * groups))
}

/// `d` becomes the gradient before the GELU, `active` gelu(h) (0: not wanted); adds d's column sums to `bias`.
#[allow(clippy::too_many_arguments)]
pub(super) fn gelu_backward(
    engine: &Arc<Engine>,
    real: Real,
    h: u64,
    d: u64,
    active: u64,
    bias: u64,
    rows: usize,
    width: usize,
) -> Result<()> {
    let (grid, threads, shared) = columns(engine, rows, width)?;
    let partial = Scratch::new(engine, Real::F32, grid as usize * width)?;
    launch!(
        engine, real.kernel("gelu_bwd"), (grid, 1), threads, shared;
        h, d, active, bias, partial.at(), engine.counter(), rows as i32, width as i32,
    )
}

/// Adds the sums of each column to `out`, over `rows` rows, each `stride` rows behind the last; where there are
/// `sources`, only of rows whose patch was removed.
pub(super) fn column_sums(
    engine: &Arc<Engine>,
    real: Real,
    x: u64,
    sources: Option<u64>,
    out: u64,
    (rows, stride): (usize, usize),
    width: usize,
) -> Result<()> {
    if !width.is_multiple_of(4) && sources.is_none() && stride == 1 {
        let grid = blocks(width, THREADS as usize);
        return launch!(engine, real.kernel("column_sums_any"), grid, THREADS, 0; x, out, rows as i32, width as i32);
    }
    let (grid, threads, shared) = columns(engine, rows, width)?;
    let partial = Scratch::new(engine, Real::F32, grid as usize * width)?;
    launch!(
        engine, real.kernel("column_sums"), (grid, 1), threads, shared;
        x, sources.unwrap_or(0), out, partial.at(), engine.counter(), rows as i32, stride as i32, width as i32,
    )
}

// ---------------------------------------------------------------------------------------------------------------
// Normalisation

/// Layer normalisation of packed rows (rows, D).
///
/// # Errors
/// A width that the kernels do not take.
pub fn normalise(x: &Tensor, group: &Group) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    apply(Norm { group: group.clone(), rows, width, real: Real::of(x.dtype())? }, x, anchor(x, group)?)
}

struct Norm {
    group: Group,
    rows: usize,
    width: usize,
    real: Real,
}

impl Layer for Norm {
    const NAME: &'static str = "layer_norm";
    type Saved = ();

    fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        let params = Params::of(&self.group, self.real)?;
        let (storage, y) = engine.room(self.real.dtype(), self.rows * self.width)?;
        norm(engine, self.real, x, params.master(0), y, self.rows, self.width)?;
        Ok(Forward { storage, shape: vec![self.rows, self.width], saved: Some(()) })
    }

    fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        let params = Params::of(&self.group, self.real)?;
        let (storage, dx) = engine.room(self.real.dtype(), self.rows * self.width)?;
        let given = [x, params.master(0), dy, 0, dx, params.gradient(0), 0];
        norm_backward(engine, self.real, given, self.rows, self.width)?;
        Ok(Some(storage))
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Linear

/// `x w^T + b`, with GELU behind it where `gelu`; weight (O, I) and bias (O) in `group`.
///
/// # Shapes
/// `x` (rows, I), the result (rows, O).
///
/// # Errors
/// The driver's.
pub fn linear(x: &Tensor, group: &Group, outputs: usize, gelu: bool) -> Result<Tensor> {
    let (rows, inputs) = x.dims2()?;
    if (inputs + 1) * outputs != group.values().elem_count() {
        bail!("linear: {} parameters for {inputs} inputs and {outputs} outputs", group.values().elem_count())
    }
    apply(
        Linear { group: group.clone(), shape: [rows, inputs, outputs], gelu, real: Real::of(x.dtype())? },
        x,
        anchor(x, group)?,
    )
}

struct Linear {
    group: Group,
    shape: [usize; 3],
    gelu: bool,
    real: Real,
}

impl Layer for Linear {
    const NAME: &'static str = "linear";
    /// Values before the GELU.
    type Saved = Option<Scratch>;

    fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<Option<Scratch>>> {
        let ([rows, inputs, outputs], real) = (self.shape, self.real);
        let params = Params::of(&self.group, real)?;
        let (storage, y) = engine.room(real.dtype(), rows * outputs)?;
        let before = if self.gelu { Some(Scratch::new(engine, real, rows * outputs)?) } else { None };
        let (w, bias) = (mat(params.weight(0), inputs), Plus::Bias(params.weight(inputs * outputs)));
        let to = mat(before.as_ref().map_or(y, Scratch::at), outputs);
        engine.gemm.forward(real, real, self.shape, mat(x, inputs), w, to, bias)?;
        if let Some(before) = &before {
            gelu(engine, real, before.at(), y, rows * outputs)?;
        }
        Ok(Forward { storage, shape: vec![rows, outputs], saved: Some(before) })
    }

    fn backward(
        &self,
        engine: &Arc<Engine>,
        x: u64,
        saved: Option<Scratch>,
        dy: u64,
        wants_dx: bool,
    ) -> Result<Option<CudaStorage>> {
        let ([rows, inputs, outputs], real) = (self.shape, self.real);
        let params = Params::of(&self.group, real)?;
        let bias = params.gradient(inputs * outputs);
        match &saved {
            // dy is Candle's own sum of gradients, which nobody reads after this.
            Some(before) => gelu_backward(engine, real, before.at(), dy, 0, bias, rows, outputs)?,
            None => column_sums(engine, real, dy, None, bias, (rows, 1), outputs)?,
        }
        let (g, w) = (mat(dy, outputs), mat(params.weight(0), inputs));
        engine.gemm.weight_gradient(real, self.shape, g, mat(x, inputs), mat(params.gradient(0), inputs))?;
        if !wants_dx {
            return Ok(None);
        }
        let (storage, dx) = engine.room(real.dtype(), rows * inputs)?;
        engine.gemm.input_gradient(real, real, self.shape, g, w, mat(dx, inputs), Plus::Nothing)?;
        Ok(Some(storage))
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Patches -> tokens -> the decoder's tokens

/// A view's kept patches: (B, K, P) values, (B, K) which ones.
#[derive(Debug, Clone)]
pub struct Seen {
    /// (B, K, P)
    pub patches: Tensor,
    /// (B, K) u32
    pub kept: Tensor,
}

/// Kept patches of all views -> packed tokens; class token (D), weight (D, P), bias (D) in `group`.
///
/// # Shapes
/// `positions` (1 + N, D) f32; the result (rows, D).
///
/// # Errors
/// Views that do not fit each other.
pub fn embed(views: &[Seen], group: &Group, positions: &Tensor) -> Result<(Tensor, Spans)> {
    let (_, _, values) = views[0].patches.dims3()?;
    let width = group.values().elem_count() / (values + 2);
    let mut spans = Vec::new();
    for view in views {
        let (images, k, p) = view.patches.dims3()?;
        if p != values || view.kept.elem_count() != images * k {
            bail!("embed: {} indexes for {images} x {k} patches of {p} values", view.kept.elem_count())
        }
        spans.push((images, 1 + k));
    }
    let real = Real::of(views[0].patches.dtype())?;
    let layer =
        Embed { views: views.to_vec(), group: group.clone(), positions: positions.clone(), width, values, real };
    Ok((apply(layer, &views[0].patches, anchor(&views[0].patches, group)?)?, spans))
}

struct Embed {
    views: Vec<Seen>,
    group: Group,
    positions: Tensor,
    width: usize,
    values: usize,
    real: Real,
}

impl Embed {
    /// (view, images, K, first row) of each view.
    fn each(&self) -> impl Iterator<Item = (&Seen, usize, usize, usize)> {
        let mut row = 0;
        self.views.iter().map(move |view| {
            let (images, k) = (view.patches.dims()[0], view.patches.dims()[1]);
            let first = row;
            row += images * (1 + k);
            (view, images, k, first)
        })
    }
}

impl Layer for Embed {
    const NAME: &'static str = "embed";
    type Saved = ();

    fn forward(&self, engine: &Arc<Engine>, _x: u64, _save: bool) -> Result<Forward<()>> {
        let (d, p, real) = (self.width, self.values, self.real);
        let params = Params::of(&self.group, real)?;
        let rows: usize = self.each().map(|(_, images, k, _)| images * (1 + k)).sum();
        let (storage, out) = engine.room(real.dtype(), rows * d)?;
        for (view, images, k, first) in self.each() {
            let tokens = Scratch::new(engine, real, images * k * d)?;
            let (x, w) = (mat(address(&view.patches)?, p), mat(params.weight(d), p));
            engine.gemm.forward(real, real, [images * k, p, d], x, w, mat(tokens.at(), d), Plus::Nothing)?;
            launch!(
                engine, real.kernel("embed_place"), blocks(images * (1 + k) * d / 4, 256), THREADS, 0;
                tokens.at(), params.master(d + d * p), params.master(0), address(&self.positions)?,
                address(&view.kept)?, out + (first * d * real.size()) as u64, images as i32, k as i32, d as i32,
            )?;
        }
        Ok(Forward { storage, shape: vec![rows, d], saved: Some(()) })
    }

    fn backward(&self, engine: &Arc<Engine>, _x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        let (d, p, real) = (self.width, self.values, self.real);
        let params = Params::of(&self.group, real)?;
        for (view, images, k, first) in self.each() {
            let dy = dy + (first * d * real.size()) as u64;
            let tokens = Scratch::new(engine, real, images * k * d)?;
            launch!(
                engine, real.kernel("embed_take"), blocks(images * k * d / 4, 256), THREADS, 0;
                dy, tokens.at(), images as i32, k as i32, d as i32,
            )?;
            column_sums(engine, real, dy, None, params.gradient(0), (images, 1 + k), d)?;
            column_sums(engine, real, tokens.at(), None, params.gradient(d + d * p), (images * k, 1), d)?;
            let (g, x, dw) = (mat(tokens.at(), d), mat(address(&view.patches)?, p), mat(params.gradient(d), p));
            engine.gemm.weight_gradient(real, [images * k, p, d], g, x, dw)?;
        }
        Ok(None)
    }
}

/// Encoded tokens -> the decoder's, all views behind each other; weight (E, D), bias (E), mask token (E) in `group`.
///
/// # Shapes
/// `x` (rows, D) as `spans` says; `sources` (B, 1 + N) u32 of each view, counted from the view's first row; `positions`
/// (1 + N, E); the result (views B (1 + N), E).
///
/// # Errors
/// Shapes that do not fit.
pub fn fill(
    x: &Tensor,
    spans: &Spans,
    group: &Group,
    sources: &[Tensor],
    positions: &Tensor,
) -> Result<(Tensor, Spans)> {
    let (rows, width) = x.dims2()?;
    let (all, out) = positions.dims2()?;
    if rows != rows_of(spans) || sources.len() != spans.len() {
        bail!("fill: {rows} rows and {} views of sources for {spans:?}", sources.len())
    }
    let layer = Fill {
        spans: spans.clone(),
        group: group.clone(),
        sources: sources.to_vec(),
        positions: positions.clone(),
        shape: [rows, width, out],
        all,
        real: Real::of(x.dtype())?,
    };
    let spans = spans.iter().map(|(images, _)| (*images, all)).collect();
    Ok((apply(layer, x, anchor(x, group)?)?, spans))
}

struct Fill {
    spans: Spans,
    group: Group,
    sources: Vec<Tensor>,
    positions: Tensor,
    shape: [usize; 3],
    all: usize,
    real: Real,
}

impl Fill {
    /// (sources, images, first encoded row, first decoder row) of each view, as addresses into matrices of width E.
    fn each(&self, encoded: u64, decoded: u64) -> impl Iterator<Item = (&Tensor, usize, u64, u64)> {
        let mut at = (encoded, decoded);
        let row = (self.shape[2] * self.real.size()) as u64;
        self.spans.iter().zip(&self.sources).map(move |((images, tokens), sources)| {
            let here = at;
            at.0 += row * (images * tokens) as u64;
            at.1 += row * (images * self.all) as u64;
            (sources, *images, here.0, here.1)
        })
    }
}

impl Layer for Fill {
    const NAME: &'static str = "fill";
    type Saved = ();

    fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        let ([rows, d, e], real) = (self.shape, self.real);
        let params = Params::of(&self.group, real)?;
        let images: usize = self.spans.iter().map(|(images, _)| images).sum();
        let (storage, out) = engine.room(real.dtype(), images * self.all * e)?;
        let tokens = Scratch::new(engine, real, rows * e)?;
        let w = mat(params.weight(0), d);
        engine.gemm.forward(real, real, self.shape, mat(x, d), w, mat(tokens.at(), e), Plus::Nothing)?;
        for (sources, images, encoded, decoded) in self.each(tokens.at(), out) {
            launch!(
                engine, real.kernel("fill_place"), blocks(images * self.all * e / 4, 256), THREADS, 0;
                encoded, params.master(e * d), params.master(e * d + e), address(&self.positions)?,
                address(sources)?, decoded, images as i32, self.all as i32, e as i32,
            )?;
        }
        Ok(Forward { storage, shape: vec![images * self.all, e], saved: Some(()) })
    }

    fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, wants_dx: bool) -> Result<Option<CudaStorage>> {
        let ([rows, d, e], real) = (self.shape, self.real);
        let params = Params::of(&self.group, real)?;
        let tokens = Scratch::new(engine, real, rows * e)?;
        for (sources, images, encoded, decoded) in self.each(tokens.at(), dy) {
            let (at, count) = (address(sources)?, images * self.all);
            launch!(
                engine, real.kernel("fill_take"), blocks(count * e / 4, 256), THREADS, 0;
                decoded, at, encoded, images as i32, self.all as i32, e as i32,
            )?;
            column_sums(engine, real, decoded, Some(at), params.gradient(e * d + e), (count, 1), e)?;
        }
        column_sums(engine, real, tokens.at(), None, params.gradient(e * d), (rows, 1), e)?;
        let g = mat(tokens.at(), e);
        engine.gemm.weight_gradient(real, self.shape, g, mat(x, d), mat(params.gradient(0), d))?;
        if !wants_dx {
            return Ok(None);
        }
        let (storage, dx) = engine.room(real.dtype(), rows * d)?;
        let (w, dx) = (mat(params.weight(0), d), mat(dx, d));
        engine.gemm.input_gradient(real, real, self.shape, g, w, dx, Plus::Nothing)?;
        Ok(Some(storage))
    }
}

// ---------------------------------------------------------------------------------------------------------------
// One vector an image

/// What stands for each image of view `which`: its class token, or the mean of the others.
///
/// # Shapes
/// `x` (rows, D), the result (B, D).
///
/// # Errors
/// The driver's.
pub fn pool(x: &Tensor, spans: &Spans, which: usize, mean: bool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let first = rows_of(&spans[..which]);
    let (images, tokens) = spans[which];
    apply(Pool { rows, first, images, tokens, width, mean, real: Real::of(x.dtype())? }, x, None)
}

struct Pool {
    rows: usize,
    first: usize,
    images: usize,
    tokens: usize,
    width: usize,
    mean: bool,
    real: Real,
}

impl Layer for Pool {
    const NAME: &'static str = "pool";
    type Saved = ();

    fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        let (storage, out) = engine.room(self.real.dtype(), self.images * self.width)?;
        let x = x + (self.first * self.width * self.real.size()) as u64;
        launch!(
            engine, self.real.kernel("pool_fwd"), blocks(self.images * self.width / 4, 256), THREADS, 0;
            x, out, self.images as i32, self.tokens as i32, self.width as i32, i32::from(self.mean),
        )?;
        Ok(Forward { storage, shape: vec![self.images, self.width], saved: Some(()) })
    }

    fn backward(&self, engine: &Arc<Engine>, _x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        let (storage, dx) = engine.room(self.real.dtype(), self.rows * self.width)?;
        launch!(
            engine, self.real.kernel("pool_bwd"), blocks(self.rows * self.width / 4, 256), THREADS, 0;
            dy, dx, self.rows as i32, self.first as i32, self.images as i32, self.tokens as i32, self.width as i32,
            i32::from(self.mean),
        )?;
        Ok(Some(storage))
    }
}

/// Each row divided by its Euclidean length.
///
/// # Errors
/// The driver's.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    apply(Unit { rows, width, real: Real::of(x.dtype())? }, x, None)
}

struct Unit {
    rows: usize,
    width: usize,
    real: Real,
}

impl Layer for Unit {
    const NAME: &'static str = "l2_normalize";
    type Saved = ();

    fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        let (storage, y) = engine.room(self.real.dtype(), self.rows * self.width)?;
        let grid = blocks(self.rows, 8);
        launch!(engine, self.real.kernel("unit_fwd"), grid, THREADS, 0; x, y, self.rows as i32, self.width as i32)?;
        Ok(Forward { storage, shape: vec![self.rows, self.width], saved: Some(()) })
    }

    fn backward(&self, engine: &Arc<Engine>, x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        let (storage, dx) = engine.room(self.real.dtype(), self.rows * self.width)?;
        let grid = blocks(self.rows, 8);
        launch!(engine, self.real.kernel("unit_bwd"), grid, THREADS, 0; x, dy, dx, self.rows as i32, self.width as i32)?;
        Ok(Some(storage))
    }
}
