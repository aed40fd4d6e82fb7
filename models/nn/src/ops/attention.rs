//! Multi-head self-attention on packed queries, keys and values (arXiv 1706.03762): softmax(q k^T / sqrt(d)) v.
//!
//! The sequences of a masked ViT are short (tens of tokens), so one thread computes an image, and the backward pass
//! recomputes the attention weights instead of storing B H T T values.

use macrl_kernels::buffer::Buffer;
use macrl_kernels::matmul::MatrixView;
use macrl_kernels::panels::{Panels, Start, product};
use macrl_kernels::simd::exp;
use macrl_kernels::vectorised;

/// Geometry of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// T, tokens of an image.
    pub tokens: usize,
    /// H, attention heads.
    pub heads: usize,
    /// D = H x d, values of a token.
    pub width: usize,
}

impl Heads {
    /// d, values of a token in one head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_width() as f32).sqrt()
    }

    /// The queries (`part` 0), keys (1) or values (2) of head `h` in an image's packed (T, 3 D) values.
    fn part<'a>(&self, qkv: &'a [f32], part: usize, h: usize) -> MatrixView<'a> {
        let start = part * self.width + h * self.head_width();
        MatrixView::strided(&qkv[start..], self.tokens, self.head_width(), 3 * self.width)
    }
}

/// Rows of attention weights are padded to a multiple of this, so that loops over them have no remainder.
const PAD: usize = 16;

#[inline(always)]
fn fold(row: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; PAD];
    for part in row.chunks_exact(PAD) {
        for (lane, v) in lanes.iter_mut().zip(part) {
            *lane = f(*lane, *v);
        }
    }
    let mut width = PAD / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
        width /= 2;
    }
    lanes[0]
}

vectorised! {
    /// Replaces the first `width` values of each row of `stride` by their softmax, and the others by 0.
    fn softmax_rows(scores: &mut [f32], width: usize, stride: usize) {
        for row in scores.chunks_exact_mut(stride) {
            row[width..].fill(f32::NEG_INFINITY);
            // a NaN may be ignored here; it still reaches the sum
            let top = fold(row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
            for v in row.iter_mut() {
                *v = exp::<FMA>(*v - top);
            }
            row[width..].fill(0.0);
            let scale = 1.0 / fold(row, 0.0, |a, b| a + b);
            for v in row.iter_mut() {
                *v *= scale;
            }
        }
    }
}

vectorised! {
    /// `grad = weights * (grad - sum(grad * weights))`: the backward pass of the softmax, row by row.
    fn softmax_backward_rows(weights: &[f32], grad: &mut [f32], stride: usize) {
        for (p, g) in weights.chunks_exact(stride).zip(grad.chunks_exact_mut(stride)) {
            let mut lanes = [0f32; PAD];
            for (p, g) in p.chunks_exact(PAD).zip(g.chunks_exact(PAD)) {
                for ((lane, p), g) in lanes.iter_mut().zip(p).zip(g) {
                    *lane += p * g;
                }
            }
            let dot = fold(&lanes, 0.0, |a, b| a + b);
            for (g, &p) in g.iter_mut().zip(p) {
                *g = p * (*g - dot);
            }
        }
    }
}

/// Attention weights of one head at a time, and their gradients.
pub(super) struct Room {
    weights: Buffer,
    gradients: Buffer,
    /// Values from one row to the next.
    stride: usize,
}

impl Room {
    pub(super) fn new(at: Heads) -> Self {
        let stride = at.tokens.next_multiple_of(PAD);
        let size = at.tokens * stride;
        Room { weights: Buffer::dirty(size), gradients: Buffer::dirty(size), stride }
    }

    /// Computes the attention weights (T, T) of head `h`.
    fn weigh(&mut self, at: Heads, qkv: &[f32], h: usize) {
        let keys = Panels::padded(at.part(qkv, 1, h).t(), self.stride);
        product(at.part(qkv, 0, h), &keys, at.scale(), Start::Zero, &mut self.weights, self.stride);
        softmax_rows(&mut self.weights, at.tokens, self.stride);
    }
}

/// `out = attention(qkv)` of some images; the results of the heads are concatenated.
///
/// # Shapes
/// `qkv` (B, T, 3 D) packed as in timm, `out` (B, T, D).
pub(super) fn forward(at: Heads, qkv: &[f32], out: &mut [f32]) {
    let (t, d) = (at.tokens, at.head_width());
    let mut room = Room::new(at);
    for (out, qkv) in out.chunks_exact_mut(t * at.width).zip(qkv.chunks_exact(3 * t * at.width)) {
        for h in 0..at.heads {
            room.weigh(at, qkv, h);
            let weights = MatrixView::strided(&room.weights, t, t, room.stride);
            product(weights, &Panels::of(at.part(qkv, 2, h)), 1.0, Start::Zero, &mut out[h * d..], at.width);
        }
    }
}

/// Writes the gradient of the packed queries, keys and values of some images to `dqkv`.
///
/// # Shapes
/// `qkv`, `dqkv` (B, T, 3 D), `dout` (B, T, D).
pub(super) fn backward(at: Heads, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let (t, width) = (at.tokens, at.width);
    let mut room = Room::new(at);
    let images = dqkv.chunks_exact_mut(3 * t * width).zip(qkv.chunks_exact(3 * t * width));
    for ((dqkv, qkv), dout) in images.zip(dout.chunks_exact(t * width)) {
        for h in 0..at.heads {
            head_backward(at, h, &mut room, qkv, dout, dqkv);
        }
    }
}

/// The backward pass of head `h` of one image.
fn head_backward(at: Heads, h: usize, room: &mut Room, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let (t, d, width) = (at.tokens, at.head_width(), at.width);
    room.weigh(at, qkv, h);
    let Room { weights, gradients, stride } = room;
    let stride = *stride;
    let dout = MatrixView::strided(&dout[h * d..], t, d, width);
    let values = Panels::padded(at.part(qkv, 2, h).t(), stride);
    product(dout, &values, 1.0, Start::Zero, gradients, stride);
    softmax_backward_rows(weights, gradients, stride);
    let (p, g) = (MatrixView::strided(weights, t, t, stride), MatrixView::strided(gradients, t, t, stride));
    let mut write = |part: usize, a: MatrixView, b: MatrixView, scale: f32| {
        product(a, &Panels::of(b), scale, Start::Zero, &mut dqkv[part * width + h * d..], 3 * width);
    };
    write(0, g, at.part(qkv, 1, h), at.scale());
    write(1, g.t(), at.part(qkv, 0, h), at.scale());
    write(2, p.t(), dout, 1.0);
}
