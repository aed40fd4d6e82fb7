//! Photometric corruption of float planes in [0, 1], with torchvision's formulas for float images.

use super::draw::Adjust;
use macrl_kernels::vectorised;

/// Weights of R, G, B in a pixel's grey (`torchvision.transforms.v2.functional.rgb_to_grayscale`).
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];
/// Partial sums of a mean: independent, so that they fill a vector register.
const LANES: usize = 16;

/// Applies one jitter step.  `planes`: (3, n).
pub fn adjust(planes: &mut [f32], step: Adjust) {
    match step {
        Adjust::Brightness(factor) => brightness(planes, factor),
        Adjust::Contrast(factor) => contrast(planes, factor),
        Adjust::Saturation(factor) => saturation(planes, factor),
        Adjust::Hue(turns) => hue(planes, turns),
    }
}

/// Planes R, G, B of n values each.
#[inline(always)]
fn split(planes: &mut [f32]) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let n = planes.len() / 3;
    let (red, rest) = planes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    (red, green, &mut blue[..n])
}

#[inline(always)]
fn gray_of(r: f32, g: f32, b: f32) -> f32 {
    GRAY[0] * r + GRAY[1] * g + GRAY[2] * b
}

/// Clamps to [0, 1]; written so that it compiles to two instructions.
#[inline(always)]
fn unit(value: f32) -> f32 {
    let value = if value > 0.0 { value } else { 0.0 };
    if value < 1.0 { value } else { 1.0 }
}

vectorised! {
    /// torchvision's `adjust_brightness`: pixels times a factor.
    pub fn brightness(planes: &mut [f32], factor: f32) {
        planes.iter_mut().for_each(|v| *v = unit(*v * factor));
    }
}

vectorised! {
    /// `adjust_contrast`: blends with the mean grey of the whole image.
    pub fn contrast(planes: &mut [f32], factor: f32) {
        let n = planes.len() / 3;
        let mean = GRAY[0] * sum(&planes[..n]) + GRAY[1] * sum(&planes[n..2 * n]) + GRAY[2] * sum(&planes[2 * n..]);
        let shift = (1.0 - factor) * mean / n as f32;
        planes.iter_mut().for_each(|v| *v = unit(*v * factor + shift));
    }
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

vectorised! {
    /// `adjust_saturation`: blends with each pixel's grey.
    pub fn saturation(planes: &mut [f32], factor: f32) {
        let (red, green, blue) = split(planes);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let shift = (1.0 - factor) * gray_of(*r, *g, *b);
            *r = unit(*r * factor + shift);
            *g = unit(*g * factor + shift);
            *b = unit(*b * factor + shift);
        }
    }
}

vectorised! {
    /// `rgb_to_grayscale` to three equal channels.
    pub fn gray(planes: &mut [f32]) {
        let (red, green, blue) = split(planes);
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let value = gray_of(*r, *g, *b);
            (*r, *g, *b) = (value, value, value);
        }
    }
}

vectorised! {
    /// `solarize` at one half.
    pub fn solarize(planes: &mut [f32]) {
        planes.iter_mut().for_each(|v| *v = if *v >= 0.5 { 1.0 - *v } else { *v });
    }
}

vectorised! {
    /// `adjust_hue`: RGB -> HSV, hue rotated by `turns`, -> RGB, without a branch.
    ///
    /// Hue in sextants (0..6); a channel is then `max - range * clamp(min(k, 4 - k), 0, 1)` with
    /// `k = (offset + hue) mod 6` and offsets 5, 3, 1 for R, G, B: the usual piecewise form in closed shape.
    pub fn hue(planes: &mut [f32], turns: f32) {
        let (red, green, blue) = split(planes);
        // In [0, 6), so that one conditional subtraction brings any later sum back.
        let rotation = 6.0 * (turns - if turns < 0.0 { -1.0 } else { 0.0 });
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let (cr, cg, cb) = (*r, *g, *b);
            let high = larger(larger(cr, cg), cb);
            let low = smaller(smaller(cr, cg), cb);
            let range = high - low;
            let inverse = 1.0 / if range == 0.0 { 1.0 } else { range };
            let from_red = (cg - cb) * inverse;
            let from_green = (cb - cr) * inverse + 2.0;
            let from_blue = (cr - cg) * inverse + 4.0;
            let sextant = if high == cr { from_red } else if high == cg { from_green } else { from_blue };
            let sextant = sextant + if sextant < 0.0 { 6.0 } else { 0.0 };
            let turned = wrap(sextant + rotation);
            *r = high - range * ramp(wrap(turned + 5.0));
            *g = high - range * ramp(wrap(turned + 3.0));
            *b = high - range * ramp(wrap(turned + 1.0));
        }
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// [0, 12) -> [0, 6).
#[inline(always)]
fn wrap(sextant: f32) -> f32 {
    sextant - if sextant >= 6.0 { 6.0 } else { 0.0 }
}

/// How far a channel lies below the highest, as a share of the range.
#[inline(always)]
fn ramp(k: f32) -> f32 {
    unit(smaller(k, 4.0 - k))
}
