//! Planes in [0, 1] -> normalised patches, in one pass.

use macrl_kernels::vectorised;

/// Geometry of the patch grid and the normalisation `(x - mean) / std` per channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Patchify {
    /// S, edge of the view in pixels.
    pub size: usize,
    /// p, edge of a patch in pixels; divides S.
    pub patch: usize,
    /// 1 / std per channel.
    pub scale: [f32; 3],
    /// -mean / std per channel.
    pub shift: [f32; 3],
}

impl Patchify {
    /// Values in a patch, P = 3 * p * p.
    pub fn values(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// Writes the patches `which` (row-major over the grid) one after the other.
    ///
    /// # Shapes
    /// `planes` (3, S, S) -> `out` (which, P), a patch's values in the order (channel, row, column) as timm's
    /// `patch_embed.proj.weight` flattens.
    pub fn write(&self, planes: &[f32], which: impl Iterator<Item = u32>, out: &mut [f32]) {
        let grid = self.size / self.patch;
        for (patch, out) in which.zip(out.chunks_exact_mut(self.values())) {
            let (row, column) = (patch as usize / grid, patch as usize % grid);
            let corner = row * self.patch * self.size + column * self.patch;
            // Edges known at compile time become single vector moves.
            match self.patch {
                2 => copy(self, planes, corner, out, 2),
                4 => copy(self, planes, corner, out, 4),
                8 => copy(self, planes, corner, out, 8),
                16 => copy_wide(self, planes, corner, out),
                edge => copy(self, planes, corner, out, edge),
            }
        }
    }
}

#[inline(always)]
fn copy(geometry: &Patchify, planes: &[f32], corner: usize, out: &mut [f32], edge: usize) {
    let size = geometry.size;
    for (channel, out) in out.chunks_exact_mut(edge * edge).enumerate() {
        let (scale, shift) = (geometry.scale[channel], geometry.shift[channel]);
        let plane = &planes[channel * size * size + corner..];
        for (y, out) in out.chunks_exact_mut(edge).enumerate() {
            for (value, x) in out.iter_mut().zip(&plane[y * size..y * size + edge]) {
                *value = x * scale + shift;
            }
        }
    }
}

vectorised! {
    fn copy_wide(geometry: &Patchify, planes: &[f32], corner: usize, out: &mut [f32]) {
        copy(geometry, planes, corner, out, 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// x = torch.arange(3 * s * s).float().reshape(1, 3, s, s)
    /// F.unfold(x, p, stride=p)[0].T   # (N, P), P in the order of the convolution's weight (channel, row, column)
    /// ```
    /// The value at (channel c, row y, column x) is `c * s * s + y * s + x`, whatever s and p.
    #[test]
    fn patches_are_in_the_order_of_a_convolution() {
        for (size, patch) in [(4, 2), (8, 4), (16, 8), (32, 16), (9, 3)] {
            let planes: Vec<f32> = (0..3 * size * size).map(|i| i as f32).collect();
            let geometry = Patchify { size, patch, scale: [1.0, 2.0, 1.0], shift: [0.0, 0.0, 0.5] };
            let grid = size / patch;
            let which = [1, (grid * grid - 1) as u32];
            let mut out = vec![0.0; 2 * geometry.values()];
            geometry.write(&planes, which.into_iter(), &mut out);
            for (slot, n) in which.iter().map(|n| *n as usize).enumerate() {
                for i in 0..geometry.values() {
                    let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
                    let source = c * size * size + (n / grid * patch + y) * size + n % grid * patch + x;
                    let expected = source as f32 * geometry.scale[c] + geometry.shift[c];
                    assert_eq!(out[slot * geometry.values() + i], expected, "size {size}, patch {patch}, value {i}");
                }
            }
        }
    }
}
