//! Embeds patches as encoder tokens, and converts encoder tokens to decoder tokens.

use std::sync::Arc;

use candle_core::{CudaStorage, Result, Tensor, bail};
use macrl_bundle::tokens::{PREFIX, TokenLayout};

use super::address::address;
use super::engine::{Engine, blocks, launch};
use super::gemm::{Addend, matrix};
use super::memory::Scratch;
use super::node::{Forward, Layer, apply};
use super::rows::{Params, THREADS, anchor, column_sums};
use super::scalar::ScalarType;
use super::spans::{Spans, rows_of};
use crate::params::Group;

const _: () = assert!(PREFIX == 1, "the kernels in tokens.cuh put one token in front");

/// The patches of a view that the encoder gets.
#[derive(Debug, Clone)]
pub struct Seen {
    /// (B, K, P) normalised pixels
    pub patches: Tensor,
    /// (B, K) u32 indexes into the N patches
    pub kept: Tensor,
}

/// Embeds the kept patches of all views as tokens; class token (D), weight (D, P) and bias (D) are in `group`.
///
/// # Shapes
/// `positions` (1 + N, D) f32; the result (rows, D).
///
/// # Errors
/// The shapes of the views, the group and the positions do not match.
pub fn embed(views: &[Seen], group: &Group, positions: &Tensor) -> Result<(Tensor, Spans)> {
    let Some(first) = views.first() else { bail!("embed: expected at least one view") };
    let (_, _, values) = first.patches.dims3()?;
    let width = positions.dim(1)?;
    if group.values().elem_count() != width * (values + 1 + PREFIX) {
        bail!("embed: {} parameters for {width} x {values}", group.values().elem_count())
    }
    let mut spans = Vec::new();
    for view in views {
        let (images, k, p) = view.patches.dims3()?;
        if p != values || view.kept.elem_count() != images * k || view.patches.dtype() != first.patches.dtype() {
            bail!("embed: {} indexes for {images} x {k} patches of {p} values", view.kept.elem_count())
        }
        spans.push((images, TokenLayout::of_patches(k).count()));
    }
    let scalar = ScalarType::of(first.patches.dtype())?;
    let layer =
        Embed { views: views.to_vec(), group: group.clone(), positions: positions.clone(), width, values, scalar };
    // SAFETY: the shapes were checked above; `Kept` contains indexes of patches.
    let tokens = unsafe { apply(layer, &first.patches, anchor(&first.patches, group)?)? };
    Ok((tokens, spans))
}

struct Embed {
    views: Vec<Seen>,
    group: Group,
    positions: Tensor,
    width: usize,
    values: usize,
    scalar: ScalarType,
}

impl Embed {
    /// (view, images, K, first row) of each view.
    fn each(&self) -> impl Iterator<Item = (&Seen, usize, usize, usize)> {
        let mut row = 0;
        self.views.iter().map(move |view| {
            let (images, k) = (view.patches.dims()[0], view.patches.dims()[1]);
            let first = row;
            row += images * TokenLayout::of_patches(k).count();
            (view, images, k, first)
        })
    }
}

impl Layer for Embed {
    const NAME: &'static str = "embed";
    type Saved = ();

    unsafe fn forward(&self, engine: &Arc<Engine>, _x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (d, p, scalar) = (self.width, self.values, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            let rows: usize = self.each().map(|(_, images, k, _)| images * TokenLayout::of_patches(k).count()).sum();
            let (storage, out) = engine.room(scalar.dtype(), rows * d)?;
            for (view, images, k, first) in self.each() {
                let tokens = Scratch::new(engine, scalar, images * k * d)?;
                let (x, w) = (matrix(address(&view.patches)?, p), matrix(params.weight(d), p));
                engine.gemm.forward(scalar, scalar, [images * k, p, d], x, w, matrix(tokens.at(), d), Addend::None)?;
                launch!(
                    engine, scalar.kernel("embed_place"), blocks(images * TokenLayout::of_patches(k).count() * d / 4, 256), THREADS, 0;
                    tokens.at(), params.master(d + d * p), params.master(0), address(&self.positions)?,
                    address(&view.kept)?, out + (first * d * scalar.size()) as u64, images as i32, k as i32, d as i32,
                )?;
            }
            Ok(Forward { storage, shape: vec![rows, d], saved: Some(()) })
        }
    }

    unsafe fn backward(&self, engine: &Arc<Engine>, _x: u64, (): (), dy: u64, _: bool) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let (d, p, scalar) = (self.width, self.values, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            for (view, images, k, first) in self.each() {
                let dy = dy + (first * d * scalar.size()) as u64;
                let tokens = Scratch::new(engine, scalar, images * k * d)?;
                launch!(
                    engine, scalar.kernel("embed_take"), blocks(images * k * d / 4, 256), THREADS, 0;
                    dy, tokens.at(), images as i32, k as i32, d as i32,
                )?;
                column_sums(
                    engine,
                    scalar,
                    dy,
                    None,
                    params.gradient(0),
                    (images, TokenLayout::of_patches(k).count()),
                    d,
                )?;
                column_sums(engine, scalar, tokens.at(), None, params.gradient(d + d * p), (images * k, 1), d)?;
                let (g, x, dw) =
                    (matrix(tokens.at(), d), matrix(address(&view.patches)?, p), matrix(params.gradient(d), p));
                engine.gemm.weight_gradient(scalar, [images * k, p, d], g, x, dw)?;
            }
            Ok(None)
        }
    }
}

/// Encoder tokens -> decoder tokens, for all views; weight (E, D), bias (E) and mask token (E) are in `group`.
///
/// # Shapes
/// `x` (rows, D), the views' rows as in `spans`; `sources` (B, 1 + N) u32 of each view, counted from the view's first
/// row; `positions` (1 + N, E); the result (views B (1 + N), E).
///
/// # Errors
/// The shapes of the tokens, the group, the sources and the positions do not match.
pub fn fill(
    x: &Tensor,
    spans: &Spans,
    group: &Group,
    sources: &[Tensor],
    positions: &Tensor,
) -> Result<(Tensor, Spans)> {
    let (rows, width) = x.dims2()?;
    let (all, out) = positions.dims2()?;
    if group.values().elem_count() != out * (width + 2) {
        bail!("fill: {} parameters for {width} -> {out}", group.values().elem_count())
    }
    let fits = |(of, (images, _)): (&Tensor, &(usize, usize))| of.elem_count() == images * all;
    if rows != rows_of(spans) || sources.len() != spans.len() || !sources.iter().zip(spans).all(fits) {
        bail!("fill: {rows} rows and {} views of sources for {spans:?}", sources.len())
    }
    let layer = Fill {
        spans: spans.clone(),
        group: group.clone(),
        sources: sources.to_vec(),
        positions: positions.clone(),
        shape: [rows, width, out],
        all,
        scalar: ScalarType::of(x.dtype())?,
    };
    let spans = spans.iter().map(|(images, _)| (*images, all)).collect();
    // SAFETY: the shapes were checked above; `Kept` contains row numbers of the view.
    Ok((unsafe { apply(layer, x, anchor(x, group)?)? }, spans))
}

struct Fill {
    spans: Spans,
    group: Group,
    sources: Vec<Tensor>,
    positions: Tensor,
    shape: [usize; 3],
    all: usize,
    scalar: ScalarType,
}

impl Fill {
    /// (sources, images, first encoder row, first decoder row) of each view; rows as addresses in matrices of width E.
    fn each(&self, encoded: u64, decoded: u64) -> impl Iterator<Item = (&Tensor, usize, u64, u64)> {
        let mut at = (encoded, decoded);
        let row = (self.shape[2] * self.scalar.size()) as u64;
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

    unsafe fn forward(&self, engine: &Arc<Engine>, x: u64, _save: bool) -> Result<Forward<()>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let ([rows, d, e], scalar) = (self.shape, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            let images: usize = self.spans.iter().map(|(images, _)| images).sum();
            let (storage, out) = engine.room(scalar.dtype(), images * self.all * e)?;
            let tokens = Scratch::new(engine, scalar, rows * e)?;
            let w = matrix(params.weight(0), d);
            engine.gemm.forward(scalar, scalar, self.shape, matrix(x, d), w, matrix(tokens.at(), e), Addend::None)?;
            for (sources, images, encoded, decoded) in self.each(tokens.at(), out) {
                launch!(
                    engine, scalar.kernel("fill_place"), blocks(images * self.all * e / 4, 256), THREADS, 0;
                    encoded, params.master(e * d), params.master(e * d + e), address(&self.positions)?,
                    address(sources)?, decoded, images as i32, self.all as i32, e as i32,
                )?;
            }
            Ok(Forward { storage, shape: vec![images * self.all, e], saved: Some(()) })
        }
    }

    unsafe fn backward(
        &self,
        engine: &Arc<Engine>,
        x: u64,
        (): (),
        dy: u64,
        wants_dx: bool,
    ) -> Result<Option<CudaStorage>> {
        // SAFETY: the layer was made for the tensor at `x`; every other buffer has the shape that is passed with it.
        unsafe {
            let ([rows, d, e], scalar) = (self.shape, self.scalar);
            let params = Params::of(&self.group, scalar)?;
            let tokens = Scratch::new(engine, scalar, rows * e)?;
            for (sources, images, encoded, decoded) in self.each(tokens.at(), dy) {
                let (at, count) = (address(sources)?, images * self.all);
                launch!(
                    engine, scalar.kernel("fill_take"), blocks(count * e / 4, 256), THREADS, 0;
                    decoded, at, encoded, images as i32, self.all as i32, e as i32,
                )?;
                column_sums(engine, scalar, decoded, Some(at), params.gradient(e * d + e), (count, 1), e)?;
            }
            column_sums(engine, scalar, tokens.at(), None, params.gradient(e * d), (rows, 1), e)?;
            let g = matrix(tokens.at(), e);
            engine.gemm.weight_gradient(scalar, self.shape, g, matrix(x, d), matrix(params.gradient(0), d))?;
            if !wants_dx {
                return Ok(None);
            }
            let (storage, dx) = engine.room(scalar.dtype(), rows * d)?;
            let (w, dx) = (matrix(params.weight(0), d), matrix(dx, d));
            engine.gemm.input_gradient(scalar, scalar, self.shape, g, w, dx, Addend::None)?;
            Ok(Some(storage))
        }
    }
}
