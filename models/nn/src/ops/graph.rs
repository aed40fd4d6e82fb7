//! Wraps the fused operators as Candle operators, so that Candle's `backward` includes them.
//!
//! Candle passes only arguments and result to `bwd`, so each operator stores the intermediate results for its backward
//! pass itself.  It stores nothing if no argument needs a gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use macrl_bundle::tokens::{PREFIX, TokenLayout};
use macrl_kernels::buffer::Buffer;

use super::block::{self, Block};
use super::layer_norm::add;
use super::{activation, layer_norm, linear};

/// A differentiable function of an input and a flat vector of parameters.
trait Layer: Send + Sync + 'static {
    const NAME: &'static str;
    type Saved: Send;
    /// The result, its shape and, if `save`, the intermediate results for [`Layer::backward`].
    fn forward(&self, x: &[f32], shape: &[usize], params: &[f32], save: bool) -> Result<Forward<Self::Saved>>;
    /// Gradients of `x` (if `wants_dx`) and of the parameters.
    fn backward(&self, x: &[f32], params: &[f32], saved: Self::Saved, dy: &[f32], wants_dx: bool) -> Gradients;
}

struct Forward<S> {
    values: Vec<f32>,
    shape: Vec<usize>,
    saved: Option<S>,
}

type Gradients = (Option<Vec<f32>>, Vec<f32>);

struct Node<L: Layer> {
    layer: L,
    save: bool,
    wants_dx: bool,
    saved: Mutex<Option<L::Saved>>,
}

fn apply<L: Layer>(layer: L, x: &Tensor, params: &Tensor) -> Result<Tensor> {
    let save = x.track_op() || params.track_op();
    let node = Node { layer, save, wants_dx: x.track_op(), saved: Mutex::new(None) };
    if save { x.apply_op2(params, node) } else { x.apply_op2_no_bwd(params, &node) }
}

impl<L: Layer> CustomOp2 for Node<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, p: &CpuStorage, pl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, p) = (slice(x, xl)?, slice(p, pl)?);
        let Forward { values, shape, saved } = self.layer.forward(x, dims(xl), p, self.save)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok((CpuStorage::F32(values), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, p: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(saved) = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: backward ran twice through one forward pass", L::NAME)
        };
        let dy = dy.contiguous()?;
        let (dx, dp) = with_values(x, |x_values| {
            with_values(p, |p| with_values(&dy, |dy| Ok(self.layer.backward(x_values, p, saved, dy, self.wants_dx))))
        })?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(dp, p.shape(), p.device())?)))
    }
}

fn dims(layout: &Layout) -> &[usize] {
    layout.shape().dims()
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a fused operator needs contiguous input") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` with the values of a contiguous f32 tensor: in place on the CPU, copied to the host from a GPU.
///
/// # Errors
/// The tensor has another dtype, a non-contiguous layout, or an unsupported device.
pub fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => f(slice(cpu, layout)?),
        #[cfg(feature = "cuda")]
        Storage::Cuda(_) => f(&crate::cuda::memory::fetch(tensor)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Layers with parameters

/// One transformer block; `params` flat, in the order of [`Block::layout`].
///
/// # Shapes
/// `x` and the result (B, T, D).
pub fn block(block: Block, x: &Tensor, params: &Tensor) -> Result<Tensor> {
    apply(block, x, params)
}

impl Layer for Block {
    const NAME: &'static str = "block";
    type Saved = block::Saved;

    fn forward(&self, x: &[f32], shape: &[usize], params: &[f32], save: bool) -> Result<Forward<Self::Saved>> {
        let [_, tokens, width] = shape else { bail!("block: expected (B, T, D), got {shape:?}") };
        if (*tokens, *width) != (self.at.tokens, self.at.width) {
            bail!("block: expected {} tokens of {}, got {shape:?}", self.at.tokens, self.at.width)
        }
        let (values, saved) = Block::forward(self, x, params, save);
        Ok(Forward { values, shape: shape.to_vec(), saved })
    }

    fn backward(&self, x: &[f32], params: &[f32], saved: Self::Saved, dy: &[f32], _wants_dx: bool) -> Gradients {
        let (dx, dparams) = Block::backward(self, x, params, saved, dy);
        (Some(dx), dparams)
    }
}

/// Layer normalisation; `params` = weight (D), bias (D).
///
/// # Shapes
/// `x` and the result (..., D).
pub fn norm(x: &Tensor, params: &Tensor) -> Result<Tensor> {
    apply(Norm, x, params)
}

struct Norm;

impl Layer for Norm {
    const NAME: &'static str = "layer_norm";
    type Saved = ();

    fn forward(&self, x: &[f32], shape: &[usize], params: &[f32], _save: bool) -> Result<Forward<()>> {
        let (gamma, beta) = params.split_at(params.len() / 2);
        let mut values = vec![0f32; x.len()];
        layer_norm::forward(x, gamma, beta, &mut values);
        Ok(Forward { values, shape: shape.to_vec(), saved: Some(()) })
    }

    fn backward(&self, x: &[f32], params: &[f32], (): (), dy: &[f32], _wants_dx: bool) -> Gradients {
        let width = params.len() / 2;
        let (mut dx, mut dparams) = (vec![0f32; x.len()], vec![0f32; params.len()]);
        let (dgamma, dbeta) = dparams.split_at_mut(width);
        layer_norm::backward(x, &params[..width], dy, &mut dx, dgamma, dbeta);
        (Some(dx), dparams)
    }
}

/// `x W^T + b`, followed by GELU if `gelu`; `params` = weight (O, I), bias (O).
///
/// # Shapes
/// `x` (..., I), the result (..., O).
pub fn linear(x: &Tensor, params: &Tensor, outputs: usize, gelu: bool) -> Result<Tensor> {
    apply(Linear { outputs, gelu }, x, params)
}

struct Linear {
    outputs: usize,
    gelu: bool,
}

impl Linear {
    fn split<'a>(&self, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        params.split_at(params.len() - self.outputs)
    }
}

impl Layer for Linear {
    const NAME: &'static str = "linear";
    /// Values before the GELU; empty without GELU.
    type Saved = Buffer;

    fn forward(&self, x: &[f32], shape: &[usize], params: &[f32], save: bool) -> Result<Forward<Buffer>> {
        let (weight, bias) = self.split(params);
        let Some((inputs, rows)) = shape.split_last() else { bail!("linear: a scalar has no last dimension") };
        if inputs * self.outputs != weight.len() {
            bail!("linear: {} weights for {inputs} inputs and {} outputs", weight.len(), self.outputs)
        }
        let shape = [rows, &[self.outputs]].concat();
        let mut values = vec![0f32; shape.iter().product()];
        let mut before = Buffer::default();
        if self.gelu {
            before = Buffer::dirty(values.len());
            linear::forward(x, weight, bias, &mut before);
            activation::gelu(&before, &mut values);
        } else {
            linear::forward(x, weight, bias, &mut values);
        }
        Ok(Forward { values, shape, saved: save.then_some(before) })
    }

    fn backward(&self, x: &[f32], params: &[f32], mut saved: Buffer, dy: &[f32], wants_dx: bool) -> Gradients {
        let (weight, _) = self.split(params);
        let mut scaled = Buffer::dirty(if self.gelu { dy.len() } else { 0 });
        if self.gelu {
            activation::gelu_and_slope(&mut saved, &mut scaled);
            scaled.copy_from_slice(dy);
            activation::multiply(&mut scaled, &saved);
        }
        let dy = if self.gelu { &*scaled } else { dy };
        let mut dparams = vec![0f32; params.len()];
        let (dweight, dbias) = dparams.split_at_mut(weight.len());
        linear::backward_parameters(x, dy, dweight, dbias);
        let dx = wants_dx.then(|| {
            let mut dx = vec![0f32; x.len()];
            linear::backward_input(dy, weight, self.outputs, &mut dx);
            dx
        });
        (dx, dparams)
    }
}

/// Embeds kept patches as tokens `W patch + b + position`, after the prefix tokens; `params` = prefix (prefix, D),
/// weight (D, P), bias (D).
///
/// # Shapes
/// `patches` (B, K, P); `kept` (B, K) indexes into the N patches; `positions` (prefix + N, D); the result
/// (B, prefix + K, D).
pub fn embed(patches: &Tensor, params: &Tensor, kept: Arc<Vec<u32>>, positions: Arc<Vec<f32>>) -> Result<Tensor> {
    let (batch, k, values) = patches.dims3()?;
    let width = params.elem_count() / (values + 1 + PREFIX);
    apply(Embed { batch, tokens: TokenLayout::of_patches(k), width, kept, positions }, patches, params)
}

struct Embed {
    batch: usize,
    tokens: TokenLayout,
    width: usize,
    kept: Arc<Vec<u32>>,
    positions: Arc<Vec<f32>>,
}

impl Embed {
    fn position(&self, patch: u32) -> &[f32] {
        &self.positions[self.tokens.of_patch(patch as usize) * self.width..][..self.width]
    }
}

impl Layer for Embed {
    const NAME: &'static str = "embed";
    type Saved = ();

    fn forward(&self, x: &[f32], _shape: &[usize], params: &[f32], _save: bool) -> Result<Forward<()>> {
        let (d, k) = (self.width, self.tokens.patches);
        if self.kept.len() != self.batch * k {
            bail!("embed: {} indexes for {} x {k} patches", self.kept.len(), self.batch)
        }
        let (prefix, rest) = params.split_at(self.tokens.prefix * d);
        let (weight, bias) = rest.split_at(rest.len() - d);
        let mut tokens = Buffer::dirty(self.batch * k * d);
        linear::forward(x, weight, bias, &mut tokens);
        let mut values = Vec::with_capacity(self.batch * self.tokens.count() * d);
        for (tokens, kept) in tokens.chunks_exact(k * d).zip(self.kept.chunks_exact(k)) {
            values.extend(prefix.iter().zip(self.positions.iter()).map(|(c, p)| c + p));
            for (token, patch) in tokens.chunks_exact(d).zip(kept) {
                values.extend(token.iter().zip(self.position(*patch)).map(|(t, p)| t + p));
            }
        }
        Ok(Forward { values, shape: vec![self.batch, self.tokens.count(), d], saved: Some(()) })
    }

    fn backward(&self, x: &[f32], params: &[f32], (): (), dy: &[f32], _wants_dx: bool) -> Gradients {
        let (d, k, prefix) = (self.width, self.tokens.patches, self.tokens.prefix * self.width);
        let mut dparams = vec![0f32; params.len()];
        let (dprefix, rest) = dparams.split_at_mut(prefix);
        let (dweight, dbias) = rest.split_at_mut(params.len() - prefix - d);
        let mut dtokens = Buffer::dirty(self.batch * k * d);
        for (dtokens, dy) in dtokens.chunks_exact_mut(k * d).zip(dy.chunks_exact(self.tokens.count() * d)) {
            add(dprefix, &dy[..prefix]);
            dtokens.copy_from_slice(&dy[prefix..]);
        }
        linear::backward_parameters(x, &dtokens, dweight, dbias);
        // pixels are data: nothing needs their gradient
        (None, dparams)
    }
}

/// Encoded tokens -> decoder tokens: `W token + b` for kept patches, the mask token for removed ones, plus positions;
/// `params` = weight (E, D), bias (E), mask token (E).
///
/// # Shapes
/// `x` (B, prefix + K, D); `kept` (B, K); `positions` (prefix + N, E); the result (B, prefix + N, E).
pub fn fill(x: &Tensor, params: &Tensor, kept: Arc<Vec<u32>>, positions: Arc<Vec<f32>>) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let out = params.elem_count() / (width + 2);
    let sources = sources(&kept, batch, TokenLayout::of_tokens(tokens), positions.len() / out);
    apply(Fill { out, sources, positions }, x, params)
}

/// The source of each decoder token: the row of its encoded token, or `u32::MAX` for the mask token.  `all` is the
/// number of decoder tokens of an image.
fn sources(kept: &[u32], batch: usize, encoded: TokenLayout, all: usize) -> Vec<u32> {
    let k = encoded.patches;
    let mut sources = vec![u32::MAX; batch * all];
    for (b, sources) in sources.chunks_exact_mut(all).enumerate() {
        encoded.sources(&kept[b * k..(b + 1) * k], b, sources);
    }
    sources
}

struct Fill {
    out: usize,
    sources: Vec<u32>,
    positions: Arc<Vec<f32>>,
}

impl Layer for Fill {
    const NAME: &'static str = "fill";
    type Saved = ();

    fn forward(&self, x: &[f32], shape: &[usize], params: &[f32], _save: bool) -> Result<Forward<()>> {
        let e = self.out;
        let (rest, mask) = params.split_at(params.len() - e);
        let (weight, bias) = rest.split_at(rest.len() - e);
        let mut tokens = Buffer::dirty(shape[0] * shape[1] * e);
        linear::forward(x, weight, bias, &mut tokens);
        let all = self.positions.len() / e;
        let mut values = Vec::with_capacity(self.sources.len() * e);
        for (i, source) in self.sources.iter().enumerate() {
            let token = match *source {
                u32::MAX => mask,
                row => &tokens[row as usize * e..][..e],
            };
            let position = &self.positions[i % all * e..][..e];
            values.extend(token.iter().zip(position).map(|(t, p)| t + p));
        }
        Ok(Forward { values, shape: vec![shape[0], all, e], saved: Some(()) })
    }

    fn backward(&self, x: &[f32], params: &[f32], (): (), dy: &[f32], wants_dx: bool) -> Gradients {
        let e = self.out;
        let weights = params.len() - 2 * e;
        let mut dparams = vec![0f32; params.len()];
        let (rest, dmask) = dparams.split_at_mut(params.len() - e);
        let (dweight, dbias) = rest.split_at_mut(weights);
        let rows = x.len() / (weights / e);
        let mut dtokens = Buffer::dirty(rows * e);
        for (source, dy) in self.sources.iter().zip(dy.chunks_exact(e)) {
            match *source {
                u32::MAX => add(dmask, dy),
                row => dtokens[row as usize * e..][..e].copy_from_slice(dy),
            }
        }
        linear::backward_parameters(x, &dtokens, dweight, dbias);
        let dx = wants_dx.then(|| {
            let mut dx = vec![0f32; x.len()];
            linear::backward_input(&dtokens, &params[..weights], e, &mut dx);
            dx
        });
        (dx, dparams)
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Functions without parameters

/// A scalar function whose gradient is computed together with its value.
struct ScalarFunction<F: Fn(&[f32], &[usize]) -> Result<(Vec<f32>, Vec<usize>, Vec<f32>)>> {
    name: &'static str,
    evaluate: F,
    gradient: Mutex<Option<Vec<f32>>>,
}

impl<F: Fn(&[f32], &[usize]) -> Result<(Vec<f32>, Vec<usize>, Vec<f32>)>> CustomOp1 for ScalarFunction<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (values, shape, gradient) = (self.evaluate)(slice(x, layout)?, dims(layout))?;
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradient);
        Ok((CpuStorage::F32(values), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(mut gradient) = self.gradient.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("{}: backward ran twice through one forward pass", self.name)
        };
        let scale = dy.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        if scale != 1.0 {
            gradient.iter_mut().for_each(|g| *g *= scale);
        }
        Ok(Some(Tensor::from_vec(gradient, x.shape(), &Device::Cpu)?))
    }
}

/// Applies a scalar function whose gradient is computed together with its value.  `evaluate` gets the values and the
/// shape of `x`, and returns the result's values, its shape, and the gradient of `x`.
///
/// # Errors
/// The error of `evaluate`.
pub fn with_gradient(
    name: &'static str,
    x: &Tensor,
    evaluate: impl Fn(&[f32], &[usize]) -> Result<(Vec<f32>, Vec<usize>, Vec<f32>)> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(ScalarFunction { name, evaluate, gradient: Mutex::new(None) })
}

/// Divides each row by its Euclidean length.
///
/// # Shapes
/// `x` and the result (B, C).
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Normalize)
}

struct Normalize;

/// Smallest divisor: a row of zeros stays zero instead of NaN, as in `torch.nn.functional.normalize`.
const MIN_LENGTH: f32 = 1e-12;

fn length(row: &[f32]) -> f32 {
    row.iter().map(|v| v * v).sum::<f32>().sqrt().max(MIN_LENGTH)
}

impl CustomOp1 for Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = dims(layout).last().copied().unwrap_or(1);
        let mut values = slice(x, layout)?.to_vec();
        for row in values.chunks_exact_mut(width) {
            let scale = 1.0 / length(row);
            row.iter_mut().for_each(|v| *v *= scale);
        }
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims().last().copied().unwrap_or(1);
        let mut dx = dy.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        with_values(x, |x| {
            with_values(res, |y| {
                for ((dx, x), y) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(y.chunks_exact(width)) {
                    let along: f32 = dx.iter().zip(y).map(|(g, y)| g * y).sum();
                    let scale = 1.0 / length(x);
                    dx.iter_mut().zip(y).for_each(|(g, y)| *g = (*g - along * y) * scale);
                }
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
