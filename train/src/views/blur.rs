//! Gaussian blur, as `torchvision.transforms.v2.functional.gaussian_blur`: separable, borders reflected.

use macrl_kernels::vectorised;

/// The kernel ends after this many standard deviations.  The weights beyond sum to less than 1e-4, a fortieth of a grey level.
const REACH: f32 = 4.0;

/// Buffers that a worker keeps from image to image.
#[derive(Default)]
pub struct Scratch {
    padded: Vec<f32>,
    rows: Vec<f32>,
}

/// Largest radius for views of `size` pixels: the kernel is about a tenth of the image (23 of 224), as SimCLR has it.
pub fn radius(size: usize) -> usize {
    size / 20
}

/// Blurs each plane of `planes` (3, size, size) with a kernel of `2 * radius + 1` taps.
pub fn gaussian(planes: &mut [f32], size: usize, sigma: f32, radius: usize, scratch: &mut Scratch) {
    let radius = reach(size, sigma, radius);
    if radius == 0 {
        return;
    }
    let weights = kernel(sigma, radius);
    scratch.padded.resize(size + 2 * radius, 0.0);
    scratch.rows.resize(size * size, 0.0);
    for plane in planes.chunks_exact_mut(size * size) {
        along_rows(plane, &mut scratch.rows, &mut scratch.padded, size, &weights);
        along_columns(&scratch.rows, plane, size, &weights);
    }
}

/// The radius that is used: weights further out are negligible, and a border can be mirrored only once.
pub fn reach(size: usize, sigma: f32, radius: usize) -> usize {
    radius.min((REACH * sigma).ceil() as usize).min(size.saturating_sub(1))
}

/// `exp(-x^2 / (2 sigma^2))` for x in -radius..=radius, of sum 1.
fn kernel(sigma: f32, radius: usize) -> Vec<f32> {
    let weight = |x: isize| (-0.5 * (x as f32 / sigma).powi(2)).exp();
    let reach = radius as isize;
    let weights: Vec<f32> = (-reach..=reach).map(weight).collect();
    let total: f32 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Position outside 0..size mirrored back without repeating the border.
#[inline(always)]
fn reflect(position: isize, size: usize) -> usize {
    let last = size as isize - 1;
    let position = position.abs();
    (if position > last { 2 * last - position } else { position }) as usize
}

vectorised! {
    fn along_rows(plane: &[f32], out: &mut [f32], padded: &mut [f32], size: usize, weights: &[f32]) {
        let radius = weights.len() / 2;
        for (row, out) in plane.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            padded[radius..radius + size].copy_from_slice(row);
            for i in 0..radius {
                padded[i] = row[reflect(i as isize - radius as isize, size)];
                padded[radius + size + i] = row[reflect((size + i) as isize, size)];
            }
            weigh(out, weights, |t| &padded[t..t + size]);
        }
    }
}

vectorised! {
    fn along_columns(rows: &[f32], plane: &mut [f32], size: usize, weights: &[f32]) {
        let radius = weights.len() / 2;
        for (y, out) in plane.chunks_exact_mut(size).enumerate() {
            weigh(out, weights, |t| {
                let source = reflect((y + t) as isize - radius as isize, size);
                &rows[source * size..(source + 1) * size]
            });
        }
    }
}

/// `out = sum over t of weights[t] * source(t)`, using that the kernel is symmetric.
#[inline(always)]
fn weigh<'a>(out: &mut [f32], weights: &[f32], source: impl Fn(usize) -> &'a [f32]) {
    let radius = weights.len() / 2;
    let centre = weights[radius];
    for (value, x) in out.iter_mut().zip(source(radius)) {
        *value = x * centre;
    }
    for (t, weight) in weights[..radius].iter().enumerate() {
        let (before, after) = (source(t), source(2 * radius - t));
        for ((value, a), b) in out.iter_mut().zip(before).zip(after) {
            *value += (a + b) * weight;
        }
    }
}
