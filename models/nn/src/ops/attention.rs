//! Multi-head self-attention on packed queries, keys and values (arXiv 1706.03762): softmax(q k^T / sqrt(d)) v.
//!
//! The sequences of a masked ViT are short (tens of tokens), so each task handles one image, and the backward pass
//! recomputes the attention weights instead of storing B H T T values.

use macrl_kernels::buffer::Buffer;
use macrl_kernels::matmul::{MatrixView, Threads, matmul};
use macrl_kernels::simd::{exp, largest, reduce};
use macrl_kernels::vectorised;
use rayon::prelude::*;

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

vectorised! {
    /// Replaces each row of length `width` by its softmax.
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
    /// `grad = weights * (grad - sum(grad * weights))`: the backward pass of the softmax, row by row.
    fn softmax_backward_rows(weights: &[f32], grad: &mut [f32], width: usize) {
        for (p, g) in weights.chunks_exact(width).zip(grad.chunks_exact_mut(width)) {
            let dot = reduce(width, |i| p[i] * g[i]);
            for (g, &p) in g.iter_mut().zip(p) {
                *g = p * (*g - dot);
            }
        }
    }
}

/// Computes the attention weights (T, T) of head `h`.
fn weights(at: Heads, qkv: &[f32], h: usize, out: &mut [f32]) {
    let (q, k) = (at.part(qkv, 0, h), at.part(qkv, 1, h));
    matmul(q, k.t(), at.scale(), false, out, at.tokens, Threads::One);
    softmax_rows(out, at.tokens);
}

/// `out = attention(qkv)`; the results of the heads are concatenated.
///
/// # Shapes
/// `qkv` (B, T, 3 D) packed as in timm, `out` (B, T, D).
pub fn forward(at: Heads, qkv: &[f32], out: &mut [f32]) {
    let (t, d) = (at.tokens, at.head_width());
    out.par_chunks_mut(t * at.width).zip(qkv.par_chunks(3 * t * at.width)).for_each_init(
        || Buffer::dirty(t * t),
        |p, (out, qkv)| {
            for h in 0..at.heads {
                weights(at, qkv, h, p);
                let p = MatrixView::new(p, t, t);
                matmul(p, at.part(qkv, 2, h), 1.0, false, &mut out[h * d..], at.width, Threads::One);
            }
        },
    );
}

/// Writes the gradient of the packed queries, keys and values to `dqkv`.
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
                let dout = MatrixView::strided(&dout[h * d..], t, d, width);
                matmul(dout, at.part(qkv, 2, h).t(), 1.0, false, g, t, Threads::One);
                softmax_backward_rows(p, g, t);
                let (p, g, stride) = (MatrixView::new(p, t, t), MatrixView::new(g, t, t), 3 * width);
                let mut write = |part: usize, a: MatrixView, b: MatrixView, scale: f32| {
                    matmul(a, b, scale, false, &mut dqkv[part * width + h * d..], stride, Threads::One);
                };
                write(0, g, at.part(qkv, 1, h), at.scale());
                write(1, g.t(), at.part(qkv, 0, h), at.scale());
                write(2, p.t(), dout, 1.0);
            }
        },
    );
}
