//! Whole-vector updates after the backward pass: AdamW, the moving average, norms.

use macrl_kernels::simd::{fma, reduce};
use macrl_kernels::vectorised;
use rayon::prelude::*;

const PART: usize = 16 * 1024;

/// One AdamW step's numbers (decoupled weight decay, arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Moments' decay rates.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of this stretch of parameters.
    pub weight_decay: f32,
    /// 1 - beta^t for both betas, t counted from 1.
    pub corrections: [f32; 2],
    /// Factor on the gradient: clipping and loss scale.
    pub gradient_scale: f32,
}

vectorised! {
    fn adamw_part(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamStep) {
        let [b1, b2] = step.betas;
        let keep = 1.0 - step.lr * step.weight_decay;
        let rate = step.lr / step.corrections[0];
        let root = 1.0 / step.corrections[1].sqrt();
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * step.gradient_scale;
            *m = fma::<FMA>(b1, *m, (1.0 - b1) * g);
            *v = fma::<FMA>(b2, *v, (1.0 - b2) * g * g);
            *p = *p * keep - rate * *m / fma::<FMA>(v.sqrt(), root, step.eps);
        }
    }
}

vectorised! {
    fn average_part(average: &mut [f32], values: &[f32], momentum: f32) {
        for (a, &v) in average.iter_mut().zip(values) {
            *a = fma::<FMA>(momentum, *a - v, v);
        }
    }
}

vectorised! {
    fn squares(x: &[f32]) -> f32 {
        reduce(x.len(), |i| x[i] * x[i])
    }
}

/// One step of AdamW on parameters `p` with gradient `g` and moments `m`, `v`, all of one length.
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamStep) {
    let parts = p.par_chunks_mut(PART).zip(g.par_chunks(PART)).zip(m.par_chunks_mut(PART)).zip(v.par_chunks_mut(PART));
    parts.for_each(|(((p, g), m), v)| adamw_part(p, g, m, v, step));
}

/// `average = momentum * average + (1 - momentum) * values`.
pub fn moving_average(average: &mut [f32], values: &[f32], momentum: f32) {
    average.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(a, v)| average_part(a, v, momentum));
}

/// Sum of squares; not finite if any value is not.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(PART).map(|x| f64::from(squares(x))).collect();
    parts.iter().sum()
}
