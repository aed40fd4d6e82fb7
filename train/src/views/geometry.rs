//! Crop, resize and flip in one pass: u8 pixels -> three float planes in [0, 1].
//!
//! The resize is torchvision's bilinear with antialiasing (`F.resized_crop(..., antialias=True)`): a triangle filter as
//! wide as the reduction, on the cropped pixels alone.

use image::RgbImage;

use super::draw::Crop;
use macrl_kernels::vectorised;

/// Buffers that a worker keeps from image to image.
#[derive(Default)]
pub struct Scratch {
    rows: Axis,
    columns: Axis,
    line: Vec<f32>,
}

/// For each output position the first input position and the weights from there on.
#[derive(Default)]
struct Axis {
    start: Vec<usize>,
    weights: Vec<f32>,
    taps: usize,
}

impl Axis {
    /// Fills the table for `input` -> `output` positions, as ATen's `_compute_indices_weights_aa` does.
    fn fill(&mut self, input: usize, output: usize, gain: f32, reversed: bool) {
        let scale = input as f32 / output as f32;
        let support = scale.max(1.0);
        self.taps = (2 * support.ceil() as usize + 1).min(input);
        self.start.clear();
        self.weights.clear();
        self.weights.resize(output * self.taps, 0.0);
        for position in 0..output {
            let center = scale * (if reversed { output - 1 - position } else { position } as f32 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let count = ((center + support + 0.5) as usize).min(input) - first;
            // Every row of the table has the same number of taps.  Unused ones have weight 0, and must lie inside the image as well.
            let start = first.min(input - self.taps);
            let row = &mut self.weights[position * self.taps + first - start..][..count];
            let mut total = 0.0;
            for (j, weight) in row.iter_mut().enumerate() {
                let distance = ((first + j) as f32 - center + 0.5) / support;
                *weight = (1.0 - distance.abs()).max(0.0);
                total += *weight;
            }
            row.iter_mut().for_each(|w| *w *= gain / total);
            self.start.push(start);
        }
    }
}

/// Cuts `crop` out of `image`, resizes it to `size` x `size` and mirrors it where `flip` says so.
///
/// # Shapes
/// `planes`: (3, size, size), values in [0, 1].
pub fn resized_crop(image: &RgbImage, crop: Crop, flip: bool, size: usize, scratch: &mut Scratch, planes: &mut [f32]) {
    scratch.rows.fill(crop.height, size, 1.0 / 255.0, false);
    scratch.columns.fill(crop.width, size, 1.0, flip);
    let Scratch { rows, columns, line } = scratch;
    // One value more than the pixels have: the horizontal pass loads pixels as four values.
    line.clear();
    line.resize(3 * crop.width + 1, 0.0);
    resample(image.as_raw(), image.width() as usize, crop, rows, columns, line, planes);
}

vectorised! {
    fn resample(
        pixels: &[u8],
        width: usize,
        crop: Crop,
        rows: &Axis,
        columns: &Axis,
        line: &mut [f32],
        planes: &mut [f32],
    ) {
        let size = rows.start.len();
        let (red, rest) = planes.split_at_mut(size * size);
        let (green, blue) = rest.split_at_mut(size * size);
        for y in 0..size {
            vertical(pixels, width, crop, rows, y, line);
            let out = y * size..(y + 1) * size;
            horizontal(line, columns, &mut red[out.clone()], &mut green[out.clone()], &mut blue[out]);
        }
    }
}

/// One output row over the crop's width: a weighted sum of input rows, R G B interleaved.
#[inline(always)]
fn vertical(pixels: &[u8], width: usize, crop: Crop, rows: &Axis, y: usize, line: &mut [f32]) {
    let count = 3 * crop.width;
    let weights = &rows.weights[y * rows.taps..(y + 1) * rows.taps];
    let source = |t: usize| &pixels[3 * ((crop.top + rows.start[y] + t) * width + crop.left)..][..count];
    let line = &mut line[..count];
    for (value, pixel) in line.iter_mut().zip(source(0)) {
        *value = f32::from(*pixel) * weights[0];
    }
    for (t, weight) in weights.iter().enumerate().skip(1) {
        if *weight == 0.0 {
            continue;
        }
        for (value, pixel) in line.iter_mut().zip(source(t)) {
            *value += f32::from(*pixel) * weight;
        }
    }
}

/// One output row: weighted sums of that line's pixels, split into planes.
#[inline(always)]
fn horizontal(line: &[f32], columns: &Axis, red: &mut [f32], green: &mut [f32], blue: &mut [f32]) {
    let taps = columns.taps;
    let pixels = columns.start.iter().zip(columns.weights.chunks_exact(taps));
    let planes = red.iter_mut().zip(green).zip(blue);
    for ((start, weights), ((r, g), b)) in pixels.zip(planes) {
        let mut sum = [0.0f32; 4];
        for (values, weight) in line[3 * start..].windows(4).step_by(3).zip(weights) {
            for lane in 0..4 {
                sum[lane] += values[lane] * weight;
            }
        }
        (*r, *g, *b) = (sum[0], sum[1], sum[2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_sizes_keep_a_flat_colour_flat() {
        let mut scratch = Scratch::default();
        let sizes = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 32), (31, 33), (64, 64), (100, 37), (1500, 3)];
        for (height, width) in sizes {
            let image = RgbImage::from_pixel(width, height, image::Rgb([51, 102, 255]));
            for size in [1, 2, 5, 8, 32, 33] {
                let crop = Crop { top: 0, left: 0, height: height as usize, width: width as usize };
                let mut planes = vec![-1.0; 3 * size * size];
                resized_crop(&image, crop, true, size, &mut scratch, &mut planes);
                for (channel, plane) in planes.chunks(size * size).enumerate() {
                    let expected = [0.2, 0.4, 1.0][channel];
                    let worst = plane.iter().map(|v: &f32| (v - expected).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-5, "{height} x {width} to {size}: {worst}");
                }
            }
        }
    }

    #[test]
    fn a_whole_image_of_the_right_size_stays_as_it_is() {
        let image = RgbImage::from_fn(8, 8, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
        let crop = Crop { top: 0, left: 0, height: 8, width: 8 };
        let mut planes = vec![0.0; 192];
        for flip in [false, true] {
            resized_crop(&image, crop, flip, 8, &mut Scratch::default(), &mut planes);
            for (x, y, pixel) in image.enumerate_pixels() {
                let x = if flip { 7 - x } else { x };
                let at = |c: usize| planes[c * 64 + (y * 8 + x) as usize] * 255.0;
                assert!((0..3).all(|c| (at(c) - f32::from(pixel[c])).abs() < 1e-4));
            }
        }
    }
}
