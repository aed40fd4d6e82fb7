//! Images for the parity check, as the encoder takes them.

use candle_core::{Device, Tensor};
use macrl_bundle::preprocess::Preprocess;

/// Images as the encoder takes them, for the parity check.
#[derive(Debug, Clone)]
pub struct ParityImages {
    /// n, the number of images.
    pub count: usize,
    /// S, the edge of an image in pixels.
    pub size: usize,
    /// (n, 3, S, S), normalised.
    pub pixels: Vec<f32>,
}

impl ParityImages {
    /// From pixels u8 (n, S, S, 3).
    pub fn normalized(rgb: &[u8], preprocess: &Preprocess) -> Self {
        let (size, values) = (preprocess.image_size, preprocess.values());
        let mut pixels = vec![0.0; rgb.len()];
        rgb.chunks(values).zip(pixels.chunks_mut(values)).for_each(|(rgb, out)| preprocess.normalize(rgb, out));
        Self { count: rgb.len() / values, size, pixels }
    }

    /// At most `count` of these images, evenly spread over them.
    pub fn spread(&self, count: usize) -> Self {
        let (values, count) = (3 * self.size * self.size, count.min(self.count));
        let chosen = (0..count).map(|i| i * self.count / count);
        let pixels = chosen.flat_map(|i| self.pixels[i * values..(i + 1) * values].iter().copied()).collect();
        Self { count, size: self.size, pixels }
    }

    /// Images `from..to` as a tensor (to - from, 3, S, S).
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn batch(&self, from: usize, to: usize) -> candle_core::Result<Tensor> {
        let values = 3 * self.size * self.size;
        let shape = (to - from, 3, self.size, self.size);
        Tensor::from_slice(&self.pixels[from * values..to * values], shape, &Device::Cpu)
    }
}
