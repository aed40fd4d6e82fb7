//! Multi-head self-attention on packed queries, keys and values (arXiv 1706.03762): softmax(q k^T / sqrt(d)) v.
//!
//! The sequences of a masked ViT are short (tens of tokens), so one image's head is a task of its own, and the
//! backward pass computes the attention weights again instead of keeping B H T T values.

use macrl_kernels::buffer::Buffer;
use macrl_kernels::matmul::{Mat, Threads, matmul};
use macrl_kernels::simd::{exp, largest, reduce};
use macrl_kernels::vectorised;
use rayon::prelude::*;

/// Geometry: T tokens of an image, H heads, D values in a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// T.
    pub tokens: usize,
    /// H.
    pub heads: usize,
    /// D = H x d.
    pub width: usize,
}

impl Heads {
    /// d, values of one head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_width() as f32).sqrt()
    }

    /// Head `h` of part 0 (query), 1 (key) or 2 (value) of an image's packed (T, 3 D) values.
    fn part<'a>(&self, qkv: &'a [f32], part: usize, h: usize) -> Mat<'a> {
        let start = part * self.width + h * self.head_width();
        Mat::strided(&qkv[start..], self.tokens, self.head_width(), 3 * self.width)
    }
}

vectorised! {
    /// Each row of length `width` becomes its softmax.
    fn softmax_rows(scores: &mut [f32], width: usize) {
        for row in scores.chunks_exact_mut(width) {
            let top = largest(row);
            for v in row.iter_mut() {
                *v = exp::<FMA>(*v - top);
            }
            let scale = 1.0 / reduce(width, |i| row[i]);
            for v in row.iter_mut() {
                *v *= scale;
            }
        }
    }
}

vectorised! {
    /// `grad = weights * (grad - sum(grad * weights))`: the softmax's backward pass, row by row.
    fn softmax_backward_rows(weights: &[f32], grad: &mut [f32], width: usize) {
        for (p, g) in weights.chunks_exact(width).zip(grad.chunks_exact_mut(width)) {
            let dot = reduce(width, |i| p[i] * g[i]);
            for (g, &p) in g.iter_mut().zip(p) {
                *g = p * (*g - dot);
            }
        }
    }
}

/// Attention weights (T, T) of head `h`.
fn weights(at: Heads, qkv: &[f32], h: usize, out: &mut [f32]) {
    let (q, k) = (at.part(qkv, 0, h), at.part(qkv, 1, h));
    matmul(q, k.t(), at.scale(), false, out, at.tokens, Threads::One);
    softmax_rows(out, at.tokens);
}

/// `out = attention(qkv)`, heads side by side.
///
/// # Shapes
/// `qkv` (B, T, 3 D) as timm packs it, `out` (B, T, D).
pub fn forward(at: Heads, qkv: &[f32], out: &mut [f32]) {
    let (t, d) = (at.tokens, at.head_width());
    out.par_chunks_mut(t * at.width).zip(qkv.par_chunks(3 * t * at.width)).for_each_init(
        || Buffer::dirty(t * t),
        |p, (out, qkv)| {
            for h in 0..at.heads {
                weights(at, qkv, h, p);
                let p = Mat::new(p, t, t);
                matmul(p, at.part(qkv, 2, h), 1.0, false, &mut out[h * d..], at.width, Threads::One);
            }
        },
    );
}

/// Writes the gradient of the packed queries, keys and values.
///
/// # Shapes
/// `qkv`, `dqkv` (B, T, 3 D), `dout` (B, T, D).
pub fn backward(at: Heads, qkv: &[f32], dout: &[f32], dqkv: &mut [f32]) {
    let (t, d, width) = (at.tokens, at.head_width(), at.width);
    let images = dqkv.par_chunks_mut(3 * t * width).zip(qkv.par_chunks(3 * t * width)).zip(dout.par_chunks(t * width));
    images.for_each_init(
        || (Buffer::dirty(t * t), Buffer::dirty(t * t)),
        |(p, g), ((dqkv, qkv), dout)| {
            for h in 0..at.heads {
                weights(at, qkv, h, p);
                let dout = Mat::strided(&dout[h * d..], t, d, width);
                matmul(dout, at.part(qkv, 2, h).t(), 1.0, false, g, t, Threads::One);
                softmax_backward_rows(p, g, t);
                let (p, g, stride) = (Mat::new(p, t, t), Mat::new(g, t, t), 3 * width);
                let mut write = |part: usize, a: Mat, b: Mat, scale: f32| {
                    matmul(a, b, scale, false, &mut dqkv[part * width + h * d..], stride, Threads::One);
                };
                write(0, g, at.part(qkv, 1, h), at.scale());
                write(1, g.t(), at.part(qkv, 0, h), at.scale());
                write(2, p.t(), dout, 1.0);
            }
        },
    );
}
