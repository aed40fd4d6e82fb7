//! Planes in [0, 1] -> normalised patches, in one pass.

use super::simd::dispatch;

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

dispatch! {
    fn copy_wide(geometry: &Patchify, planes: &[f32], corner: usize, out: &mut [f32]) {
        copy(geometry, planes, corner, out, 16);
    }
}
