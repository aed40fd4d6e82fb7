//! GELU with the exact normal distribution function (not the tanh approximation), as in timm's ViT.
//!
//! gelu(x) = x Phi(x); gelu'(x) = Phi(x) + x phi(x), with phi the normal density.  Phi comes from formula 7.1.26 of
//! Abramowitz and Stegun (absolute error below 1.5e-7), which shares its exponential with phi.

use macrl_kernels::simd::{exp, fma};
use macrl_kernels::vectorised;
use rayon::prelude::*;

const PART: usize = 16 * 1024;

/// (Phi(x), phi(x)): the normal distribution function and density.
#[inline(always)]
fn normal<const FMA: bool>(x: f32) -> (f32, f32) {
    const P: f32 = 0.327_591_1;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / fma::<FMA>(P, z, 1.0);
    let poly = fma::<FMA>(1.061_405_4, t, -1.453_152);
    let poly = fma::<FMA>(poly, t, 1.421_413_7);
    let poly = fma::<FMA>(poly, t, -0.284_496_74);
    let poly = fma::<FMA>(poly, t, 0.254_829_6) * t;
    let e = exp::<FMA>(-0.5 * x * x);
    // half of erfc(|x| / sqrt 2): the tail probability beyond |x|, without cancellation
    let tail = 0.5 * poly * e;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, 0.398_942_3 * e)
}

vectorised! {
    pub(super) fn gelu_part(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * normal::<FMA>(x).0;
        }
    }
}

vectorised! {
    /// `x = gelu(x)`.
    pub(super) fn gelu_in_place(x: &mut [f32]) {
        for x in x {
            *x *= normal::<FMA>(*x).0;
        }
    }
}

vectorised! {
    pub(super) fn gelu_and_slope_part(x: &mut [f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            let v = *x;
            let (cdf, density) = normal::<FMA>(v);
            *out = v * cdf;
            *x = fma::<FMA>(v, density, cdf);
        }
    }
}

vectorised! {
    pub(super) fn multiply_part(values: &mut [f32], by: &[f32]) {
        for (value, by) in values.iter_mut().zip(by) {
            *value *= by;
        }
    }
}

/// `out = gelu(x)`, element by element.
pub fn gelu(x: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(out, x)| gelu_part(x, out));
}

/// `out = gelu(x)` and `x = gelu'(x)`: both values for a backward pass, with one exponential.
pub fn gelu_and_slope(x: &mut [f32], out: &mut [f32]) {
    out.par_chunks_mut(PART).zip(x.par_chunks_mut(PART)).for_each(|(out, x)| gelu_and_slope_part(x, out));
}

/// `values *= by`: the multiplication by the slopes in the chain rule.
pub fn multiply(values: &mut [f32], by: &[f32]) {
    values.par_chunks_mut(PART).zip(by.par_chunks(PART)).for_each(|(values, by)| multiply_part(values, by));
}
